"""CondConv-MobileNetV2 on ImageNet (Yang et al. 2019): 328.3M multiply-adds, 27.5M parameters.

    basisnet train --config=configs/imagenet_condconv_mv2.py --workdir=DIR

Meant for a TPU v5e or v4 slice (global batch 4096). The paper reports 74.6 % top-1 at 329M multiply-adds, Chen et al.
2020 27.5M parameters (15.5M at width 0.5, as here). Which layers have the eight experts is an assumption that fits
these counts: from the sixth block on all, routed once a block, the last 1x1 convolution and the classifier. Experts in
the last six blocks and the classifier alone would make 322.9M and 22.9M. Recipe and batch are BasisNet's, another
assumption. Arguments: bases (8), width (1.0), seed (0).
"""

from basisnet_jax.configs import default, imagenet_static, models


def get_config(arg=""):
    args = default.parse_arg(arg, bases=8, width=1.0, seed=0)
    config = imagenet_static.get_config(f"network=mobilenet_v2,width={args['width']},seed={args['seed']}")
    models.condconv(config, args["bases"], r"stages/(2/2|[3-6]/\d)", ["head/conv", "classifier"])
    return config
