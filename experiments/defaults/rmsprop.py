"""Why does BasisNet fail on Fashion-MNIST with RMSProp at four times the best rate, where its static network learns?

basisnet sweep --sweep=experiments/defaults/rmsprop.py --workdir=runs/defaults/rmsprop
"""

import pathlib
import runpy

RMSPROP = runpy.run_path(str(pathlib.Path(__file__).with_name("grid.py")))["RMSPROP"]
CONFIG = "configs/fashion_mnist.py"
COMMON = {"config.optimizer.learning_rate": 0.064}
CONSTANT = {"config.coefficients.temperature": 1e6}  # coefficients that are even for every image


def sweep():
    for seed in range(3):
        for model, change in (
            ("basisnet", CONSTANT),
            ("basisnet", {"config.optimizer.clip_norm": 1.0}),
            ("static", {"config.optimizer.clip_norm": 1.0}),
        ):
            yield {"model": model, **RMSPROP, **change, "seed": seed}
