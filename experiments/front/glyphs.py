"""Is BasisNet above static networks of its multiply-adds? Letters of `glyphs`, four epochs.

basisnet sweep --sweep=experiments/front/glyphs.py --workdir=runs/front/glyphs

As fashion_mnist.py in this folder, but at two widths, and with a preview of 24 pixels.
"""

CONFIG = "configs/glyphs.py"
COMMON = {
    "config.num_epochs": 4.0,
    "config.eval_every_epochs": 4.0,
    "config.batch_size": 128,
    "config.preview.image_size": 24,
}
RATES = (0.016, 0.032, 0.064, 0.128)
SEEDS = 5
CONSTANT = {"config.coefficients.temperature": 1e6}  # coefficients that are even for every image


def models():
    for width in (0.25, 0.625):
        yield {"model": "basisnet", "width": width, "bases": 8}
        yield {"model": "static", "width": width}
        yield {"model": "basisnet", "width": width, "bases": 1}
    for width in (0.375, 0.75, 1.0, 1.25):
        yield {"model": "static", "width": width}
    for width in (0.25, 0.625):
        yield {"model": "basisnet", "width": width, "bases": 8, **CONSTANT}
    for width in (0.25, 0.625):
        for bases in (4, 16):
            yield {"model": "basisnet", "width": width, "bases": bases}
    for width in (0.25, 0.625):
        for model in ("condconv", "dy"):
            yield {"model": model, "width": width, "bases": 8}


def sweep():
    for model in models():
        for rate in RATES:
            for seed in range(SEEDS):
                yield {**model, "config.optimizer.learning_rate": rate, "seed": seed}
