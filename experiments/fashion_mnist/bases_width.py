"""Number of bases by width, against the static network at equal width and at equal multiply-adds.

basisnet sweep --sweep=experiments/fashion_mnist/bases_width.py --workdir=runs/fashion_mnist/bases_width
"""

CONFIG = "configs/fashion_mnist.py"


def sweep():
    # Two widths with all their seeds first: what is there when a part of the sweep has run.
    for static, widths in (((0.25, 0.5, 0.625), (0.25, 0.5)), ((1.0,), (0.625,))):
        for seed in range(3):
            for width in static:
                yield {"model": "static", "width": width, "seed": seed}
            for width in widths:
                for bases in (1, 2, 4, 8, 16):
                    yield {"model": "basisnet", "width": width, "bases": bases, "seed": seed}
