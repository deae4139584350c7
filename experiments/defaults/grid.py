"""What the sweeps of this folder share: static and BasisNet, with both optimizers, at three learning rates."""

RMSPROP = {  # the rest of configs/default.py's optimizer, in configs that have AdamW
    "config.optimizer.name": "rmsprop",
    "config.optimizer.second_moment_decay": 0.9,
    "config.optimizer.epsilon": 1e-3,
    "config.optimizer.weight_decay": 1e-5,
}
ADAMW = {"config.optimizer.name": "adamw"}


def grid(rates, bases, seed, **setting):
    """The runs of one setting and seed: `rates` by optimizer, and the static network before BasisNet with `bases`."""
    for name, fields in (("adamw", ADAMW), ("rmsprop", RMSPROP)):
        for rate in rates[name]:
            run = {**setting, "config.optimizer.learning_rate": rate, **fields}
            yield {"config.model": "static", **run, "seed": seed}
            for number in bases:
                yield {"config.model": "basisnet", "bases": number, **run, "seed": seed}
