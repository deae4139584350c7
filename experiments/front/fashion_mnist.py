"""Is BasisNet above static networks of its multiply-adds? Fashion-MNIST, ten epochs.

basisnet sweep --sweep=experiments/front/fashion_mnist.py --workdir=runs/front/fashion_mnist

One basis is the control of early termination: two static networks that share nothing, as a cascade. Of the learning
rates the validation split chooses one for each network.
"""

import pathlib
import runpy

runs = runpy.run_path(str(pathlib.Path(__file__).with_name("networks.py")))["runs"]
CONFIG = "configs/fashion_mnist.py"
COMMON = {
    "config.num_epochs": 10.0,
    "config.eval_every_epochs": 10.0,
    "config.batch_size": 128,
    "config.augment.shift": 0.0,
    "config.augment.flip": False,
}


def sweep():
    yield from runs(widths=(0.125, 0.25, 0.5, 1.0), static_only=(0.375, 0.625, 0.75, 1.25), controls=(0.25, 0.5))
