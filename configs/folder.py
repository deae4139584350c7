"""BasisNet-MobileNetV3 on one's own images, a few hundred to a few hundred thousand: for one GPU, or a patient CPU.

    basisnet train --config=configs/folder.py --config.dataset=folder:/path/to/images --workdir=runs/mine

The folder holds a folder of images for each class (basisnet_jax/data/listing.py says what else it may hold). With ten
classes it is 265.8M multiply-adds and 24.8M parameters; `--config.image_size=160` makes it 150.8M. A few thousand
images are too few to start from nothing: give imported weights (`basisnet import`), a lower rate, and padding, epsilon,
mean and stddev as the config.json of their workdir has them:

    --config.init_from=runs/imported --config.optimizer.learning_rate=3e-4
    --config.network.padding=symmetric --config.network.epsilon=1e-5

The recipe is an assumption, tuned on no data set. Arguments: bases (8), width (1.0), seed (0).
"""

from basisnet_jax.configs import default


def get_config(arg=""):
    args = default.parse_arg(arg, bases=8, width=1.0, seed=0)
    config = default.get_config()
    config.seed = args["seed"]

    config.dataset = "folder:"
    config.num_classes = 0
    config.augment.crop = 0.25
    config.augment.flip = True
    config.augment.policy = "randaugment"
    config.augment.magnitude = 5.0
    config.eval_crop = 0.875

    config.network.width = args["width"]
    config.network.momentum = 0.9
    config.preview.momentum = 0.9
    config.basis.num_bases = args["bases"]

    config.num_epochs = 40.0
    config.batch_size = 64
    config.eval_batch_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.second_moment_decay = 0.999
    config.optimizer.epsilon = 1e-8
    config.ema_decay = 0.999
    return config
