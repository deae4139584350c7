"""BasisNet on scikit-learn's digits: the whole of the project in about three minutes on 2 CPU cores.

    basisnet train --config=configs/digits.py --workdir=runs/digits

1,077 training images of 8x8 pixels, shown at 32x32 and to the preview at 16x16. The networks are the first stages of
MobileNetV3-Small, its stem at stride 1, so that the last stage still sees 4x4 pixels. Arguments: bases (8),
width (0.5), seed (0).
"""

from basisnet_jax.configs import default


def get_config(arg=""):
    args = default.parse_arg(arg, bases=8, width=0.5, seed=0)
    config = default.get_config()
    config.seed = args["seed"]

    config.dataset = "digits"
    config.num_classes = 10
    config.channels = 1
    config.image_size = 32
    config.mean = (0.3,)
    config.stddev = (0.35,)
    config.augment.shift = 0.1
    config.augment.rotation = 12.0
    config.augment.zoom = 0.12

    for network in (config.network, config.preview):
        network.name = "mobilenet_v3_small"
        network.stem_stride = 1
        network.momentum = 0.9
        network.dropout = 0.1
    config.network.width = args["width"]
    config.network.head_features = 128
    config.network.num_stages = 4
    config.network.stage_strides = (2, 2, 2, 1)
    config.preview.width = 0.35
    config.preview.head_features = 64
    config.preview.num_stages = 2
    config.preview.stage_strides = (2, 2)
    config.preview.image_size = 16
    config.basis.num_bases = args["bases"]

    config.num_epochs = 36.0
    config.batch_size = 64
    config.eval_batch_size = 360
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.weight_decay = 0.02
    config.optimizer.second_moment_decay = 0.999
    config.optimizer.epsilon = 1e-8
    config.ema_decay = 0.99
    config.log_every_steps = 50
    config.eval_every_epochs = 5.0
    config.checkpoint_every_steps = 100
    return config
