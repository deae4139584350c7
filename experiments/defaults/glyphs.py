"""Do the defaults hold on letters? One epoch; the fonts are those that basisnet_jax/data/glyphs.py names.

basisnet sweep --sweep=experiments/defaults/glyphs.py --workdir=runs/defaults/glyphs
"""

import pathlib
import runpy

grid = runpy.run_path(str(pathlib.Path(__file__).with_name("grid.py")))["grid"]
CONFIG = "configs/glyphs.py"
COMMON = {"config.num_epochs": 1.0, "config.eval_every_epochs": 1.0}
RATES = {"adamw": (0.008, 0.032, 0.128), "rmsprop": (0.004, 0.016, 0.064)}


def sweep():
    for seed in range(3):
        yield from grid(RATES, (4, 8, 16), seed)
