"""BasisNet against CondConv and dynamic convolution with as many bases, of width 0.5.

    basisnet sweep --sweep=experiments/fashion_mnist/baselines.py --workdir=runs/fashion_mnist/baselines

Each as published (CondConv with sigmoids, dynamic convolution annealed from a temperature of 30 to 1), and dynamic
convolution at BasisNet's temperature too, since 1 is a poor one for BasisNet here. The unchanged runs are those of
bases_width.py.
"""

CONFIG = "configs/fashion_mnist.py:bases=8,width=0.5"
CHANGES = {
    "CondConv": {"model": "condconv"},
    "dynamic convolution": {"model": "dy"},
    "dynamic convolution, temperature 30": {
        "model": "dy",
        "config.coefficients.temperature": 30.0,
        "config.coefficients.annealing_epochs": 0.0,
    },
}


def sweep():
    for seed in range(3):
        for change in CHANGES.values():
            yield {**change, "seed": seed}
