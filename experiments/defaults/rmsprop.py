"""What made BasisNet fail on Fashion-MNIST with RMSProp at four times the best rate, where its static network learns?

basisnet sweep --sweep=experiments/defaults/rmsprop.py --workdir=runs/defaults/rmsprop

The defaults before 06df079 clipped nothing and had ten times today's rate of the coefficient head with RMSProp.
"""

import pathlib
import runpy

RMSPROP = runpy.run_path(str(pathlib.Path(__file__).with_name("grid.py")))["RMSPROP"]
CONFIG = "configs/fashion_mnist.py"
SETTING = {"config.optimizer.learning_rate": 0.064, "config.num_epochs": 2.0, **RMSPROP}
UNCLIPPED = {"config.optimizer.clip_norm": 0.0}
FAST_HEAD = {"config.optimizer.coefficient_rate": 80.0}
CONSTANT = {"config.coefficients.temperature": 1e6}  # coefficients that are even for every image


def sweep():
    """Today's defaults are in fashion_mnist.py."""
    for seed in range(3):
        yield {"model": "static", **SETTING, **UNCLIPPED, "seed": seed}
        yield {"model": "basisnet", **SETTING, **UNCLIPPED, **FAST_HEAD, "seed": seed}
        yield {"model": "basisnet", **SETTING, **UNCLIPPED, **FAST_HEAD, **CONSTANT, "seed": seed}
        yield {"model": "basisnet", **SETTING, **UNCLIPPED, "seed": seed}
        yield {"model": "basisnet", **SETTING, **FAST_HEAD, "seed": seed}
