"""Dynamic convolution in MobileNetV3-Large on ImageNet: 223.3M multiply-adds, 11.0M parameters.

    basisnet train --config=configs/imagenet_dy_mv3.py --workdir=DIR

Meant for a TPU v5e or v4 slice (global batch 4096). All but the network is as in imagenet_dy_mv2. The paper reports
77.1 % top-1 at 228M for DY-MobileNetV3-Large; that it means this method, with four kernels in these layers, is an
assumption. Arguments: bases (4), width (1.0), seed (0).
"""

from basisnet_jax.configs import imagenet_dy_mv2


def get_config(arg=""):
    return imagenet_dy_mv2.get_config(arg, network="mobilenet_v3_large")
