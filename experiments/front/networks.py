"""What the sweeps of this folder share: the networks that are compared, each at every rate and with every seed."""

RATES = (0.016, 0.032, 0.064, 0.128)
SEEDS = 5
CONSTANT = {"config.coefficients.temperature": 1e6}  # coefficients that are even for every image


def networks(widths, static_only, controls):
    """BasisNet with 8, 1, 4 and 16 bases at `widths`; its rivals and constant coefficients at the widths `controls`."""
    for width in widths:
        yield {"model": "basisnet", "width": width, "bases": 8}
        yield {"model": "static", "width": width}
        yield {"model": "basisnet", "width": width, "bases": 1}
    for width in static_only:
        yield {"model": "static", "width": width}
    for width in controls:
        yield {"model": "basisnet", "width": width, "bases": 8, **CONSTANT}
    for width in widths:
        for bases in (4, 16):
            yield {"model": "basisnet", "width": width, "bases": bases}
    for width in controls:
        for model in ("condconv", "dy"):
            yield {"model": model, "width": width, "bases": 8}


def runs(widths, static_only, controls):
    for network in networks(widths, static_only, controls):
        for rate in RATES:
            for seed in range(SEEDS):
                yield {**network, "config.optimizer.learning_rate": rate, "seed": seed}
