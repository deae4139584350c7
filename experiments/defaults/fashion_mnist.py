"""Do the defaults hold on Fashion-MNIST, after 2, 6 and 12 epochs?

    basisnet sweep --sweep=experiments/defaults/fashion_mnist.py --workdir=runs/defaults/fashion_mnist

Each of 4, 8 and 16 bases with two epochs, 8 with more.
"""

import pathlib
import runpy

grid = runpy.run_path(str(pathlib.Path(__file__).with_name("grid.py")))["grid"]
CONFIG = "configs/fashion_mnist.py"
RATES = {"adamw": (0.008, 0.032, 0.128), "rmsprop": (0.004, 0.016, 0.064)}


def sweep():
    for seed in range(3):
        for epochs, bases in ((2.0, (4, 8, 16)), (6.0, (8,)), (12.0, (8,))):
            lengths = {"config.num_epochs": epochs, "config.eval_every_epochs": epochs}
            yield from grid(RATES, bases, seed, **lengths)
