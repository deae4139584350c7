"""What stands in BasisNet's place: each function turns a config's `network` into the static network or a baseline."""

# As many bases as each model's paper has; of BasisNet half as many, for small images. `bases=0` stands for these.
BASES = {"basisnet": 8, "static": 1, "condconv": 8, "dy": 4}


def static(config, bases=1):
    """The plain network."""
    if bases != 1:
        raise ValueError(f"bases={bases}, but a static network has bases=1")
    config.model = "static"
    config.basis.num_bases = 1


def condconv(config, bases, blocks=r"stages/\d+/\d+", layers=()):
    """CondConv (Yang et al. 2019): sigmoids of one linear layer per block, shared by the block's convolutions.

    `blocks` and `layers`, each of which routes on its own, are regular expressions of paths.
    """
    config.model = "routed"
    config.basis.num_bases = bases
    config.basis.layers = "|".join([rf"({blocks})/(expand|depthwise|project)/conv", *layers])
    config.routing.units = "|".join([blocks, *layers])
    config.routing.hidden = 0.0
    config.coefficients.activation = "sigmoid"
    _as_published(config)


def dynamic(config, bases, annealing_epochs=10.0):
    """Dynamic convolution (Chen et al. 2020): every convolution of the blocks attends to its own input."""
    config.model = "routed"
    config.basis.num_bases = bases
    config.basis.layers = config.routing.units = r"stages/.*/conv"
    config.routing.hidden = 0.25
    config.coefficients.activation = "softmax"
    config.coefficients.initial_temperature = 30.0
    config.coefficients.annealing_epochs = annealing_epochs
    _as_published(config)


def _as_published(config):
    """Without what was found for BasisNet: neither paper has it."""
    config.basis.init = "independent"
    config.optimizer.match_static = False


def choose(config, model, bases):
    """What a config's arguments `model` and `bases` ask for."""
    if model not in BASES:
        raise ValueError(f"model={model}, expected one of {', '.join(BASES)}")
    bases = bases or BASES[model]
    if model == "basisnet":
        config.basis.num_bases = bases
    else:
        {"static": static, "condconv": condconv, "dy": dynamic}[model](config, bases)
