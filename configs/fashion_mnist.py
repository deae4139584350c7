"""BasisNet and its rivals on Fashion-MNIST, so small that capacity is the limit: for 2 CPU cores.

    python experiments/fashion_mnist/prepare.py  # where there is no internet
    basisnet train --config=configs/fashion_mnist.py:model=basisnet --workdir=runs/fashion_mnist

55,000 training images of 28x28 pixels. The networks are the first two stages of MobileNetV3-Small, so narrow that they
are hardly better on training images than on test images: nothing overfits. Preview, coefficients and mixing cost a
fifth of the specialist (a third in the paper's network). The convolution after the pooling has no bases: to mix each
would cost as much as the convolution itself.

    basisnet   8 bases     0.39M multiply-adds    56,876 parameters
    static     1           0.33M                  11,082
    condconv   8           0.36M                  37,626
    dy         4           0.34M                  25,140

The paper has no such experiment: networks and recipe are assumptions.
Arguments: model (basisnet, or static, condconv, dy), bases (0: as many as stand above), width (0.5), seed (0).
"""

from basisnet_jax.configs import default, models


def get_config(arg=""):
    args = default.parse_arg(arg, model="basisnet", bases=0, width=0.5, seed=0)
    config = default.get_config()
    config.seed = args["seed"]

    config.dataset = "fashion_mnist"
    config.train_split = "train[:55000]"
    config.validation_split = "train[55000:]"
    config.test_split = "test"
    config.train_eval_split = "train[:10000]"
    config.num_classes = 10
    config.channels = 1
    config.image_size = 28
    config.mean = (0.286,)
    config.stddev = (0.353,)
    config.augment.shift = 0.08
    config.augment.flip = True

    for network in (config.network, config.preview):
        network.name = "mobilenet_v3_small"
        network.num_stages = 2
        network.momentum = 0.9
        network.dropout = 0.0
        network.head_features = 64
    config.network.width = args["width"]
    config.network.stage_strides = (1, 2)
    config.preview.width = 0.35
    config.preview.stage_strides = (2, 2)
    config.preview.image_size = 14
    config.basis.layers = r"stages/.*/(expand|depthwise|project)/conv|last/conv"
    models.choose(config, args["model"], args["bases"])
    if args["model"] == "dy":
        config.coefficients.annealing_epochs = 0.5

    config.num_epochs = 2.0
    config.batch_size = 64
    config.eval_batch_size = 500
    config.label_smoothing = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.032  # the static network's best on the validation split
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.weight_decay = 0.01
    config.optimizer.second_moment_decay = 0.999
    config.optimizer.epsilon = 1e-8
    config.ema_decay = 0.0  # the learning rate ends at 0: averages would be of older weights and statistics
    config.eval_every_epochs = 2.0
    return config
