"""Packages that only exports need, imported where they are used."""

import importlib
import types

from basisnet_jax.errors import UserError


def required(name: str) -> types.ModuleType:
    """The module, or a line that names the extra which brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise UserError(f"this format needs {package}: pip install 'basisnet_jax[export]'") from error
