"""BasisNet against CondConv and dynamic convolution with as many bases, of width 0.5.

    basisnet sweep --sweep=experiments/fashion_mnist/baselines.py --workdir=runs/fashion_mnist/baselines

Each as published (CondConv at a temperature of 1, dynamic convolution annealed from 30 to 1), and at BasisNet's
temperature, since 1 is a poor one for BasisNet here. The unchanged runs are those of bases_width.py.
"""

CONFIG = "configs/fashion_mnist.py:bases=8,width=0.5"
WARM = {"config.coefficients.temperature": 10.0, "config.coefficients.annealing_epochs": 0.0}
CHANGES = {
    "CondConv": {"model": "condconv"},
    "CondConv, temperature 10": {"model": "condconv", **WARM},
    "dynamic convolution": {"model": "dy"},
    "dynamic convolution, temperature 10": {"model": "dy", **WARM},
}


def sweep():
    for seed in range(3):
        for change in CHANGES.values():
            yield {**change, "seed": seed}
