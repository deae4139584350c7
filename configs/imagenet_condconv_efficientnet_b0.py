"""CondConv-EfficientNet-B0 on ImageNet (Yang et al. 2019): 407.2M multiply-adds, 24.0M parameters.

    basisnet train --config=configs/imagenet_condconv_efficientnet_b0.py --workdir=DIR

Meant for a TPU v5e or v4 slice (global batch 4096). Eight experts in the blocks of the last three stages, routed once a
block, as in the authors' code. With bases=4 it is 396.5M and 13.3M. The paper reports 78.3 % top-1 at 413M, and 390M for
EfficientNet-B0, where we count 385.8M. Recipe and batch are BasisNet's, an assumption. Arguments: bases (8), width
(1.0), seed (0).
"""

from basisnet_jax.configs import default, imagenet_static, models


def get_config(arg=""):
    args = default.parse_arg(arg, bases=8, width=1.0, seed=0)
    config = imagenet_static.get_config(f"network=efficientnet_b0,width={args['width']},seed={args['seed']}")
    models.condconv(config, args["bases"], r"stages/[456]/\d+")
    return config
