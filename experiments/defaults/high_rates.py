"""Is BasisNet below its static network at four times the best rate, and what makes it so? Two epochs, ten seeds.

basisnet sweep --sweep=experiments/defaults/high_rates.py --workdir=runs/defaults/high_rates
"""

import pathlib
import runpy

_shared = runpy.run_path(str(pathlib.Path(__file__).with_name("grid.py")))
CONFIG = "configs/fashion_mnist.py"
COMMON = {"config.num_epochs": 2.0}
SEEDS = 10
SETTINGS = {
    "adamw": {**_shared["ADAMW"], "config.optimizer.learning_rate": 0.128},
    "rmsprop": {**_shared["RMSPROP"], "config.optimizer.learning_rate": 0.064},
}
VARIANTS = {
    "defaults": {},
    "constant coefficients": {"config.coefficients.temperature": 1e6},
    "the head at a quarter of its rate": {"config.optimizer.coefficient_rate": 2.0},
    "the head at a sixteenth of its rate": {"config.optimizer.coefficient_rate": 0.5},
    "a quarter of the preview's loss": {"config.preview_loss_weight": 0.25},
}


def sweep():
    for seed in range(SEEDS):
        for setting in SETTINGS.values():
            yield {"model": "static", **setting, "seed": seed}
            for variant in VARIANTS.values():
                yield {"model": "basisnet", **setting, **variant, "seed": seed}
