"""A network of one's own, by the name PACKAGE.MODULE:FACTORY.

The factory is any callable that returns an `nnx.Module` of images to logits [B, classes]. It is called with the
keywords `num_classes` and `rngs`, with `channels` and `dtype` if it takes them, and with the other fields given.
"""

import difflib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from basisnet_jax.errors import UserError

EXPECTED = "expected PACKAGE.MODULE:FACTORY"
NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


def create(
    name: str, *, num_classes: int, rngs: nnx.Rngs, channels: int = 3, dtype=jnp.float32, **fields
) -> nnx.Module:
    """The network of a factory.

    Args:
      fields: passed on, each of them.
      channels, dtype: passed on if the factory takes them. A dtype other than float32 must be taken.

    Raises:
      UserError: the factory does not exist, lacks an argument, does not take one that is given, or its code fails.
    """
    factory = find(name)
    takes = parameters(factory)
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in takes.values())
    given = {"num_classes": num_classes, "rngs": rngs} | fields
    given = {key: value for key, value in (("channels", channels), ("dtype", dtype)) if key in takes} | given
    if dtype != jnp.float32 and "dtype" not in takes:
        other = jnp.dtype(dtype).name
        raise UserError(f"network {name!r} takes no dtype; config.dtype={other} given, expected float32")
    if unknown := sorted(given.keys() - takes.keys() if not takes_any else ()):
        raise UserError(f"network {name!r} takes {', '.join(takes)}; {unknown[0]}={given[unknown[0]]!r} given")
    needed = [key for key, of in takes.items() if of.default is of.empty and of.kind in NAMED]
    if missing := [key for key in needed if key not in given]:
        fields = f"config.network.{missing[0]}, or config.preview.{missing[0]} for the preview"
        raise UserError(f"network {name!r} needs {', '.join(missing)}; give {fields}")
    try:
        network = factory(**given)
    except Exception as error:
        raise UserError(told(name, error)) from error
    if not isinstance(network, nnx.Module):
        raise UserError(f"network {name!r} returned {type(network).__name__}, expected an nnx.Module")
    return network


def parameters(factory: Callable) -> dict[str, inspect.Parameter]:
    """What a factory takes, by name. The signature of an nnx.Module class itself would hide it."""
    partial = factory if isinstance(factory, functools.partial) else functools.partial(factory)
    is_class = isinstance(partial.func, type)
    takes = inspect.signature(partial.func.__init__ if is_class else partial.func).parameters
    return dict(list(takes.items())[is_class + len(partial.args) :])


def find(name: str) -> Callable:
    """The factory itself. Its module is installed, or a file in the working directory."""
    module_name, _, factory_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there never hides what is installed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        is_absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        if is_absent or not module_name:
            where = f"neither installed nor in {os.getcwd()}"
            raise UserError(f"network {name!r}: module {module_name!r} is {where}; {EXPECTED}") from None
        raise UserError(told(name, error)) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        close = difflib.get_close_matches(factory_name, vars(module), n=1)
        hint = f"did you mean {module_name}:{close[0]}?" if close else EXPECTED
        raise UserError(f"network {name!r}: {module_name} has no callable {factory_name!r}; {hint}")
    return factory


def told(name: str, error: Exception) -> str:
    """An error of a network's code in one line, with the last line of its own file that led to it."""
    lines = _lines(name, error)
    where = f", line {lines[-1]} of {sys.modules[_module(name)].__file__}" if lines else ""
    return f"network {name!r}{where}: {type(error).__name__}: {' '.join(str(error).split('----')[0].split())}"


def blamed(names: list[str], error: Exception) -> str:
    """Of several networks, the first whose file led to the error."""
    return next((name for name in names if _lines(name, error)), " or ".join(names))


def _module(name: str) -> str:
    return name.partition(":")[0]


def _lines(name: str, error: Exception) -> list[int]:
    """The lines of a network's file that led to an error, the last one last."""
    file = getattr(sys.modules.get(_module(name)), "__file__", None)
    return [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
