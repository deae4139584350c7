"""Do the defaults hold on the digits?

basisnet sweep --sweep=experiments/defaults/digits.py --workdir=runs/defaults/digits
"""

import pathlib
import runpy

grid = runpy.run_path(str(pathlib.Path(__file__).with_name("grid.py")))["grid"]
CONFIG = "configs/digits.py"
COMMON = {"config.eval_every_epochs": 36.0, "config.checkpoint_every_steps": 1000}
RATES = {"adamw": (0.002, 0.008, 0.032), "rmsprop": (0.004, 0.016, 0.064)}


def sweep():
    for seed in range(3):
        yield from grid(RATES, (4, 8, 16), seed)
