"""BasisNet-MobileNetV2 on ImageNet: 366.5M multiply-adds, 39.7M parameters.

    basisnet train --config=configs/imagenet_basisnet_mv2.py --workdir=DIR

Meant for a TPU v5e or v4 slice (global batch 4096). The part of the paper we have gives no figures for it. The preview
is the one of imagenet_basisnet_mv3, an assumption, as are the number of bases and the layers that have them. Arguments:
bases (16), width (1.0), top_k (0: all), seed (0).
"""

from basisnet_jax.configs import imagenet_basisnet_mv3


def get_config(arg=""):
    config = imagenet_basisnet_mv3.get_config(arg)
    config.network.name = "mobilenet_v2"
    return config
