"""BasisNet against CondConv and dynamic convolution with as many bases, of width 0.5.

    basisnet sweep --sweep=experiments/fashion_mnist/baselines.py --workdir=runs/fashion_mnist/baselines

Each as published (CondConv with sigmoids, dynamic convolution annealed from a temperature of 30 to 1), and dynamic
convolution with BasisNet's temperature and first kernels too. The unchanged runs are those of bases_width.py.
"""

CONFIG = "configs/fashion_mnist.py:bases=8,width=0.5"
CHANGES = {
    "CondConv": {"model": "condconv"},
    "dynamic convolution": {"model": "dy"},
    "dynamic convolution, as BasisNet": {
        "model": "dy",
        "config.basis.init": "copies",
        "config.coefficients.temperature": 10.0,
        "config.coefficients.annealing_epochs": 0.0,
    },
}


def sweep():
    for seed in range(3):
        for change in CHANGES.values():
            yield {**change, "seed": seed}
