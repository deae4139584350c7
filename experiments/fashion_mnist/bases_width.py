"""Number of bases by width, against the static network at equal width and at equal multiply-adds.

    basisnet sweep --sweep=experiments/fashion_mnist/bases_width.py --workdir=runs/fashion_mnist/bases_width

Three seeds; seven of the static networks below width 1 and of 8 bases at 0.25 and 0.5, which were added later.
"""

CONFIG = "configs/fashion_mnist.py"


def sweep():
    # In an order in which a part of the sweep is of use.
    for seed in range(3):
        for width in (0.25, 0.5, 0.625):
            yield {"model": "static", "width": width, "seed": seed}
        for width in (0.25, 0.5):
            for bases in (1, 2, 4, 8, 16):
                yield {"model": "basisnet", "width": width, "bases": bases, "seed": seed}
    for seed in range(3, 7):
        for width in (0.25, 0.5, 0.625):
            yield {"model": "static", "width": width, "seed": seed}
        for width in (0.25, 0.5):
            yield {"model": "basisnet", "width": width, "bases": 8, "seed": seed}
    for seed in range(3):
        yield {"model": "static", "width": 1.0, "seed": seed}
        for bases in (1, 2, 4, 8, 16):
            yield {"model": "basisnet", "width": 0.625, "bases": bases, "seed": seed}
