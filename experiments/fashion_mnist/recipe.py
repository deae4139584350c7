"""What each part of the recipe does: BasisNet of width 0.5 with 8 bases, one thing changed at a time.

    basisnet train --config=configs/fashion_mnist.py:model=static,width=2 --workdir=runs/fashion_mnist/teacher
    basisnet sweep --sweep=experiments/fashion_mnist/recipe.py --workdir=runs/fashion_mnist/recipe

The unchanged runs are those of bases_width.py.
"""

CONFIG = "configs/fashion_mnist.py:model=basisnet,width=0.5,bases=8"
CHANGES = {
    "no augmentation": {"config.augment.shift": 0.0, "config.augment.flip": False},
    "basis model dropout": {"config.coefficients.dropout": 0.0625},
    "averaged weights (EMA)": {"config.ema_decay": 0.995},
    "no preview loss": {"config.preview_loss_weight": 0.0},
    "distillation": {
        "config.distillation.teacher": "runs/fashion_mnist/teacher",
        "config.distillation.temperature": 2.0,
        "config.distillation.cache": "runs/fashion_mnist/teacher/predictions",
    },
}


def sweep():
    for seed in range(3):
        for change in CHANGES.values():
            yield {**change, "seed": seed}
