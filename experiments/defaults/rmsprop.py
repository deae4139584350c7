"""What made BasisNet fail on Fashion-MNIST with RMSProp at four times the best rate, where its static network learns?

basisnet sweep --sweep=experiments/defaults/rmsprop.py --workdir=runs/defaults/rmsprop

The defaults until cb40a5e clipped nothing and had ten times today's rate of the coefficient head with RMSProp.
"""

import pathlib
import runpy

RMSPROP = runpy.run_path(str(pathlib.Path(__file__).with_name("grid.py")))["RMSPROP"]
CONFIG = "configs/fashion_mnist.py"
COMMON = {"config.optimizer.learning_rate": 0.064}
UNCLIPPED = {"config.optimizer.clip_norm": 0.0}
FAST_HEAD = {"config.optimizer.coefficient_rate": 80.0}
CONSTANT = {"config.coefficients.temperature": 1e6}  # coefficients that are even for every image
CHANGES = {
    "as until cb40a5e": {**UNCLIPPED, **FAST_HEAD},
    "and constant coefficients": {**UNCLIPPED, **FAST_HEAD, **CONSTANT},
    "the head's rate a tenth": UNCLIPPED,
    "clipped at 1": FAST_HEAD,
    "both: today's defaults": {},
}


def sweep():
    for seed in range(3):
        for change in (UNCLIPPED, {}):
            yield {"model": "static", **RMSPROP, **change, "seed": seed}
        for change in CHANGES.values():
            yield {"model": "basisnet", **RMSPROP, **change, "seed": seed}
