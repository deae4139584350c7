"""What makes the coefficients: BasisNet of width 0.5 with 8 bases, one thing changed at a time.

    basisnet sweep --sweep=experiments/fashion_mnist/coefficients.py --workdir=runs/fashion_mnist/coefficients

Constant ones are the control that must lose: at a temperature of a million every image has the same even mixture.
"""

CONFIG = "configs/fashion_mnist.py:model=basisnet,width=0.5,bases=8"
CHANGES = {
    "constant": {"config.coefficients.temperature": 1e6},
    "temperature 1": {"config.coefficients.temperature": 1.0},
    "independent kernels at first": {"config.basis.init": "independent"},
    "shared by all layers": {"config.coefficients.shared": True},
    "sigmoid": {"config.coefficients.activation": "sigmoid"},
    "preview of one stage": {"config.preview.num_stages": 1, "config.preview.stage_strides": (2,)},
    "preview at 28 pixels": {"config.preview.image_size": 28},
}


def sweep():
    for changes in (list(CHANGES.values())[:4], list(CHANGES.values())[4:]):  # a part of the sweep has all its seeds
        for seed in range(3):
            for change in changes:
                yield {**change, "seed": seed}
