"""Three times as long, without augmentation: is a lack of training why BasisNet and the static network draw?

    basisnet sweep --sweep=experiments/fashion_mnist/longer.py --workdir=runs/fashion_mnist/longer

The two things by which a network of bases_width.py gained most. Constant coefficients are again the control. Three
seeds; seven of the comparison at width 0.25.
"""

CONFIG = "configs/fashion_mnist.py"
LONGER = {"config.num_epochs": 6.0, "config.augment.shift": 0.0, "config.augment.flip": False}
CHANGES = {"constant coefficients": {"config.coefficients.temperature": 1e6}}


def sweep():
    for seed in range(3):
        for width in (0.25, 0.5, 0.625):
            yield {"model": "static", "width": width, **LONGER, "seed": seed}
        for width in (0.25, 0.5):
            yield {"model": "basisnet", "width": width, "bases": 8, **LONGER, "seed": seed}
        for change in CHANGES.values():
            yield {"model": "basisnet", "width": 0.5, "bases": 8, **change, **LONGER, "seed": seed}
    for seed in range(3, 7):  # added when those above were known: the one comparison that they left open
        for model, width in (("static", 0.25), ("static", 0.5), ("basisnet", 0.25)):
            yield {
                "model": model,
                "width": width,
                **({} if model == "static" else {"bases": 8}),
                **LONGER,
                "seed": seed,
            }
