"""A plain network on ImageNet with BasisNet's recipe: what BasisNet is compared with.

    basisnet train --config=configs/imagenet_static.py:network=mobilenet_v3_large --workdir=DIR

Meant for a TPU v5e or v4 slice (global batch 4096). Top-1 and the second column are the paper's, the rest our count:

    mobilenet_v2         72.0 %                       300M   300.8M multiply-adds    3.5M parameters
    mobilenet_v3_large   75.2 %                       219M   216.6M                  5.5M
    efficientnet_b0      77.1 % (AA + KD: 78.0 %)     390M   385.8M                  5.3M
    efficientnet_b2      80.1 %                       1.0B   993.6M                  9.1M, at 260 pixels

Each of these figures had its own recipe; that this one serves all of them is an assumption. Arguments: network
(mobilenet_v3_large, or any other), bases (1: it has no more), width (1.0), seed (0).
"""

from basisnet_jax.configs import default, imagenet_basisnet_mv3, models

IMAGE_SIZES = {"efficientnet_b1": 240, "efficientnet_b2": 260}  # Tan & Le 2019; the others' is 224


def get_config(arg=""):
    args = default.parse_arg(arg, network="mobilenet_v3_large", bases=1, width=1.0, seed=0)
    config = imagenet_basisnet_mv3.get_config(f"width={args['width']},seed={args['seed']}")
    config.network.name = args["network"]
    config.image_size = IMAGE_SIZES.get(args["network"], config.image_size)
    models.static(config, args["bases"])
    return config
