"""How a network of one's own is called: which arguments its call takes, and how it is told that it trains."""

import inspect
from collections.abc import Callable

from flax import nnx

# The usual names of the argument that says whether a network trains, and its value in training.
IN_TRAINING = {
    "training": True,
    "train": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def names_of(call: Callable) -> list[str]:
    """The names of all arguments of a call."""
    return list(inspect.signature(call).parameters)


def taken(call: Callable, keywords: dict) -> dict:
    """Those of the keywords that a network's call takes."""
    known = inspect.signature(call).parameters.values()
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in known):
        return keywords
    return {name: keywords[name] for name in keywords.keys() & {parameter.name for parameter in known}}


def named(call: Callable, args: tuple) -> dict:
    """What is given by position after the first argument, as keywords."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    names = [parameter.name for parameter in parameters if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
    if len(args) > len(names):
        raise TypeError(f"{len(args)} arguments after the first, of which the specialist takes by name {names}")
    return dict(zip(names, args, strict=False))


def in_mode(call: Callable, deterministic: bool | None, rngs: nnx.Rngs | None = None) -> dict:
    """The keywords that tell a network's call whether it trains, and in training its `rngs`, where it takes them.

    Without them a call such as `network(x, training=False)` would never move its batch statistics.

    Args:
      deterministic: False in training; None: not known, so nothing is told.
      rngs: of its dropout.
    """
    if deterministic is None:
        return {}
    known = names_of(call)
    told = {name: value != deterministic for name, value in IN_TRAINING.items()}
    told |= {} if deterministic or rngs is None else {"rngs": rngs}
    return {name: value for name, value in told.items() if name in known}
