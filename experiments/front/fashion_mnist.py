"""Is BasisNet above static networks of its multiply-adds? Fashion-MNIST, ten epochs.

basisnet sweep --sweep=experiments/front/fashion_mnist.py --workdir=runs/front/fashion_mnist

One basis is the control of early termination: two static networks that share nothing, as a cascade. Of the learning
rates the validation split chooses one for each network.
"""

CONFIG = "configs/fashion_mnist.py"
COMMON = {
    "config.num_epochs": 10.0,
    "config.eval_every_epochs": 10.0,
    "config.batch_size": 128,
    "config.augment.shift": 0.0,
    "config.augment.flip": False,
}
RATES = (0.016, 0.032, 0.064, 0.128)
SEEDS = 5
CONSTANT = {"config.coefficients.temperature": 1e6}  # coefficients that are even for every image


def models():
    for width in (0.125, 0.25, 0.5, 1.0):
        yield {"model": "basisnet", "width": width, "bases": 8}
        yield {"model": "static", "width": width}
        yield {"model": "basisnet", "width": width, "bases": 1}
    for width in (0.375, 0.625, 0.75, 1.25):
        yield {"model": "static", "width": width}
    for width in (0.25, 0.5):
        yield {"model": "basisnet", "width": width, "bases": 8, **CONSTANT}
    for width in (0.125, 0.25, 0.5, 1.0):
        for bases in (4, 16):
            yield {"model": "basisnet", "width": width, "bases": bases}
    for width in (0.25, 0.5):
        for model in ("condconv", "dy"):
            yield {"model": model, "width": width, "bases": 8}


def sweep():
    for model in models():
        for rate in RATES:
            for seed in range(SEEDS):
                yield {**model, "config.optimizer.learning_rate": rate, "seed": seed}
