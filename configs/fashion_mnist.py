"""BasisNet and its rivals on Fashion-MNIST, so small that capacity is the limit: for 2 CPU cores.

    python experiments/fashion_mnist.py  # where there is no internet
    basisnet train --config=configs/fashion_mnist.py:model=basisnet --workdir=runs/fashion_mnist

55,000 training images of 28x28 pixels. The networks are the first stages of MobileNetV3-Small, 8 channels wide, mostly
at stride 1: kernels so few that mixing eight costs little, and one set of them is too small for the data.

    basisnet   8 bases     1.30M multiply-adds   122,788 parameters
    static     1           1.12M                  18,778
    condconv   8           1.19M                  83,418
    dy         4           1.16M                  51,884

The paper has no such experiment: networks and recipe are assumptions.
Arguments: model (basisnet, or static, condconv, dy), bases (0: as many as stand above), width (0.125), seed (0).
"""

from basisnet_jax.configs import default, models


def get_config(arg=""):
    args = default.parse_arg(arg, model="basisnet", bases=0, width=0.125, seed=0)
    config = default.get_config()
    config.seed = args["seed"]

    config.dataset = "fashion_mnist"
    config.train_split = "train[:55000]"
    config.validation_split = "train[55000:]"
    config.test_split = "test"
    config.num_classes = 10
    config.channels = 1
    config.image_size = 28
    config.mean = (0.286,)
    config.stddev = (0.353,)
    config.augment.shift = 0.08
    config.augment.flip = True
    config.augment.erasing = 0.25

    for network in (config.network, config.preview):
        network.name = "mobilenet_v3_small"
        network.stem_stride = 1
        network.momentum = 0.9
        network.dropout = 0.0
        network.head_features = 64
    config.network.width = args["width"]
    config.network.num_stages = 4
    config.network.stage_strides = (1, 2, 2, 1)
    config.preview.width = 0.35
    config.preview.num_stages = 2
    config.preview.stage_strides = (2, 2)
    config.preview.image_size = 14
    models.choose(config, args["model"], args["bases"])
    if args["model"] == "dy":
        config.coefficients.annealing_epochs = 2.0

    config.num_epochs = 12.0
    config.batch_size = 128
    config.eval_batch_size = 500
    config.label_smoothing = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.0
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.second_moment_decay = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 1.0
    config.ema_decay = 0.999
    config.eval_every_epochs = 1.0
    return config
