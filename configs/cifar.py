"""BasisNet and its rivals on CIFAR-10 and CIFAR-100: MobileNetV2 at stem stride 1, for one GPU.

    basisnet train --config=configs/cifar.py:classes=100,model=basisnet --workdir=runs/cifar

45,000 training images of 32x32 pixels; the preview is MobileNetV3-Small. For ten classes:

    basisnet   8 bases     111.4M multiply-adds   19.5M parameters
    static     1            88.0M                  2.2M
    condconv   8           102.2M                 14.7M
    dy         4            97.4M                  9.9M

The paper has no such experiment: strides and recipe are assumptions, and no accuracy is known.
Arguments: classes (10, or 100), model (basisnet, or static, condconv, dy), bases (0: as many as stand above), width
(1.0), seed (0).
"""

from basisnet_jax.configs import default, models

STATISTICS = {  # mean and standard deviation of the training images
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def get_config(arg=""):
    args = default.parse_arg(arg, classes=10, model="basisnet", bases=0, width=1.0, seed=0)
    if args["classes"] not in STATISTICS:
        raise ValueError(f"classes={args['classes']}, expected 10 or 100")
    config = default.get_config()
    config.seed = args["seed"]

    config.num_classes = args["classes"]
    config.dataset = f"cifar{config.num_classes}"
    config.train_split = "train[:45000]"
    config.validation_split = "train[45000:]"
    config.test_split = "test"
    config.image_size = 32
    config.mean, config.stddev = STATISTICS[config.num_classes]
    config.augment.shift = 0.125
    config.augment.flip = True
    config.augment.policy = "cifar10"  # of CIFAR-100 too, as its authors do

    config.network.name = "mobilenet_v2"
    config.network.width = args["width"]
    config.network.stage_strides = (1, 1, 2, 2, 1, 2, 1)
    config.preview.image_size = 32
    for network in (config.network, config.preview):
        network.stem_stride = 1
        network.momentum = 0.9
    models.choose(config, args["model"], args["bases"])

    config.num_epochs = 200.0
    config.batch_size = 128
    config.eval_batch_size = 500
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.second_moment_decay = 0.999
    config.optimizer.epsilon = 1e-8
    config.ema_decay = 0.999
    config.eval_every_epochs = 5.0
    return config
