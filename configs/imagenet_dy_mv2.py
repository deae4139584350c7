"""DY-MobileNetV2 on ImageNet (Chen et al. 2020): 310.2M multiply-adds, 11.1M parameters.

    basisnet train --config=configs/imagenet_dy_mv2.py --workdir=DIR

Meant for a TPU v5e or v4 slice (global batch 4096). Every convolution of the blocks has four kernels and attends to its
own input; the temperature falls from 30 to 1 within ten epochs. The paper reports 75.2 % top-1 at 313M, Chen et al.
11.1M parameters, which is why the last 1x1 convolution is left out, an assumption (with it: 311.9M and 12.4M). Recipe
and batch are BasisNet's, another assumption. Arguments: bases (4), width (1.0), seed (0).
"""

from basisnet_jax.configs import default, imagenet_static, models


def get_config(arg="", network="mobilenet_v2"):
    args = default.parse_arg(arg, bases=4, width=1.0, seed=0)
    config = imagenet_static.get_config(f"network={network},width={args['width']},seed={args['seed']}")
    models.dynamic(config, args["bases"])
    return config
