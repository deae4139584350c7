"""Flags and configs from a list of arguments, for the commands and for the runs of a sweep."""

import contextlib
import json
import math
import os

import ml_collections
from absl import flags
from ml_collections import config_flags

from basisnet_jax.errors import UserError


def parse(argv: list[str], *required: str, rest: str = "", **optional: str | bool | None) -> flags.FlagValues:
    """The flags of one verb. "config" is an ml_collections file with overrides, the others strings or booleans.

    The field called `rest` gets the list of the arguments that are no flags; without that name they are refused.
    """
    values = flags.FlagValues()
    if rest:
        flags.DEFINE_multi_string(rest, [], "", flag_values=values)
    for name in required:
        if name == "config":
            config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=["basisnet", *argv])
        else:
            flags.DEFINE_string(name, None, "", flag_values=values)
    for name, default in optional.items():
        define = flags.DEFINE_bool if isinstance(default, bool) else flags.DEFINE_string
        define(name, default, "", flag_values=values)
    if "config" in required:
        check_config_file(argv)
    try:
        others = values(["basisnet", *argv])[1:]
    except flags.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if any(line.startswith("Traceback") for line in lines):  # ml_collections: of an error in the config file
            lines = [lines[0], lines[-1]]
        raise UserError(" ".join(lines)) from None
    except (AttributeError, KeyError) as error:  # what ml_collections raises for an unknown field
        name = str(error).strip("\"'")
        raise UserError(f"the config has no field {name!r}; configs/default.py lists all of them") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"--config: {' '.join(str(error).split())}") from None
    if rest:
        values[rest].value += others
    elif others:
        raise UserError(f"unexpected argument {others[0]!r}; flags are written --name=value")
    for name in required:
        if values[name].value is None:
            raise UserError(f"--{name} is missing")
    return values


def check_config_file(argv: list[str]) -> None:
    """A config that is not there is reported before ml_collections tries to run it."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config":
            path = (value if equals else "".join(argv[i + 1 : i + 2])).partition(":")[0]
            if not os.path.isfile(path):
                raise UserError(f"config file {path!r} does not exist")


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config as it will read back from `config.json`: plain values, tuples as lists."""
    return ml_collections.ConfigDict(json.loads(json.dumps(config.to_dict())))


def number(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise UserError(f"--{name}={text!r}, expected a number")
