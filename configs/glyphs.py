"""BasisNet and its rivals on letters of five scripts in fonts that training has never seen: for 2 CPU cores.

    basisnet train --config=configs/glyphs.py:model=basisnet --workdir=runs/glyphs

100,480 training images of 32x32 pixels, 157 classes (basisnet_jax/data/glyphs.py names the font packages they are drawn
with). The networks are those of configs/fashion_mnist.py with a wider head, so small that nothing overfits. An epoch
takes one or two minutes on a core.

    basisnet   8 bases     0.53M multiply-adds    90,706 parameters
    static     1           0.45M                  35,357
    condconv   8           0.48M                  61,901
    dy         4           0.47M                  49,415

The paper has no such experiment: networks and recipe are assumptions.
Arguments: model (basisnet, or static, condconv, dy), bases (0: as many as in fashion_mnist.py), width (0.5), seed (0).
"""

from basisnet_jax.configs import fashion_mnist


def get_config(arg=""):
    config = fashion_mnist.get_config(arg)
    config.dataset = "glyphs"
    config.train_split = "train"
    config.validation_split = "validation"
    config.train_eval_split = "train[:10000]"
    config.num_classes = 157
    config.image_size = 32
    config.mean = (0.5,)
    config.stddev = (0.3,)
    config.augment.shift = 0.0  # the images are drawn with all of it
    config.augment.flip = False
    config.network.head_features = 128
    config.preview.head_features = 64
    config.preview.image_size = 16
    config.num_epochs = 4.0
    config.eval_every_epochs = 4.0
    return config
