"""A plain network on ImageNet with BasisNet's recipe: what BasisNet is compared with.

    basisnet train --config=configs/imagenet_static.py:network=mobilenet_v3_large --workdir=DIR

Meant for a TPU v5e or v4 slice (global batch 4096). The paper's table gives, as its own figures, top-1 of 72.0 % for
MobileNetV2 at 300M multiply-adds, 75.2 % for MobileNetV3-Large at 219M and 77.1 % for EfficientNet-B0 at 390M (78.0 %
with AutoAugment and distillation). By our exact count they cost 300.8M, 216.6M and 385.8M. Arguments: network
(mobilenet_v3_large), width (1.0), seed (0).
"""

from basisnet_jax.configs import default, imagenet_basisnet_mv3


def get_config(arg=""):
    args = default.parse_arg(arg, network="mobilenet_v3_large", width=1.0, seed=0)
    config = imagenet_basisnet_mv3.get_config()
    config.seed = args["seed"]
    config.model = "static"
    config.network.name = args["network"]
    config.network.width = args["width"]
    return config
