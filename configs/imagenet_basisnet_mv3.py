"""BasisNet-MobileNetV3 on ImageNet: 289.8M multiply-adds; 198.8M on average if 35 % of the images stop early.

    basisnet train --config=configs/imagenet_basisnet_mv3.py --workdir=DIR

48.7M parameters. Meant for a TPU v5e or v4 slice (global batch 4096; on a v5e better 128 images a device than 64 or
fewer, see benchmarks/README.md). The paper reports 80.3 % top-1 at 290M multiply-adds and 80.0 % at 198M on average;
those are the paper's figures. Preview size, number of bases and which layers have them are assumptions that fit its
count. Arguments: bases (16), width (1.0), seed (0).
"""

from basisnet_jax.configs import default


def get_config(arg=""):
    args = default.parse_arg(arg, bases=16, width=1.0, seed=0)
    config = default.get_config()
    config.seed = args["seed"]
    config.dataset = "imagenet2012"
    # ImageNet's public validation set is the test set of every paper; 10,000 training images choose the threshold.
    config.train_split = "train[10000:]"
    config.validation_split = "train[:10000]"
    config.test_split = "validation"
    config.num_classes = 1000
    config.augment.crop = 0.08
    config.augment.flip = True
    config.augment.policy = "imagenet"
    config.eval_crop = 0.875
    config.network.width = args["width"]
    config.basis.num_bases = args["bases"]
    config.dtype = "bfloat16"

    config.num_epochs = 600.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.second_moment_decay = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 1.0
    config.distillation.weight = 1.0
    return config
