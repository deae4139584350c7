"""Is BasisNet above static networks of its multiply-adds? Letters of `glyphs`, four epochs.

basisnet sweep --sweep=experiments/front/glyphs.py --workdir=runs/front/glyphs

As fashion_mnist.py in this folder, but at two widths, and with a preview of 24 pixels.
"""

import pathlib
import runpy

runs = runpy.run_path(str(pathlib.Path(__file__).with_name("networks.py")))["runs"]
CONFIG = "configs/glyphs.py"
COMMON = {
    "config.num_epochs": 4.0,
    "config.eval_every_epochs": 4.0,
    "config.batch_size": 128,
    "config.preview.image_size": 24,
}


def sweep():
    yield from runs(widths=(0.25, 0.625), static_only=(0.375, 0.75, 1.0, 1.25), controls=(0.25, 0.625))
