"""Configs from a list of arguments, for the commands and for the runs of a sweep.

--config=digits:bases=4                         the name of a packaged config, and what its get_config gets
--config=DIR/mine.py                            or a file
--config.optimizer.learning_rate=1e-3           a field, in the type of its default; also with a space for the =
--config.mean=0.5,0.5,0.5                       a tuple, of any length, with or without brackets
--config.augment.flip, --noconfig.augment.flip  True, False
--config.remat_kernels=None                     where the default is a placeholder of configs/default.py
--config.network.name=mine:vit                  a network of one's own; its section then has only what is given with it
"""

import ast
import difflib
import json
import os
import pkgutil
import re
import runpy
import traceback

import ml_collections

import basisnet_jax.configs
from basisnet_jax import paths
from basisnet_jax.configs import default, ranges
from basisnet_jax.errors import UserError

OVERRIDE = re.compile(r"--(?P<no>no)?config\.(?P<field>[^=]*)(=(?P<value>.*))?", re.DOTALL)
NUMBER = re.compile(r"-\.?\d")  # how a negative one begins, which is no flag
HELPERS = ("models", "ranges")  # of the folder configs, what is no config
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
EXPECTED = {bool: "True or False", int: "int", float: "float", str: "str", tuple: "tuple", list: "list"}

# An override: the flag as it was written, the field, and its value. True and False are of a flag without any value.
Override = tuple[str, str, str | bool]


def read_config(argv: list[str]) -> ml_collections.ConfigDict:
    """The config of `--config=NAME|FILE[:args]` and its overrides; other arguments are refused."""
    others, overrides = take_overrides(argv)
    if len(others) != 1 or not others[0].startswith("--config="):
        raise UserError(f"{' '.join(others) or 'nothing'} given, expected --config=NAME|FILE and its fields")
    return load(others[0].removeprefix("--config="), overrides)


def take_overrides(argv: list[str]) -> tuple[list[str], list[Override]]:
    """Splits `argv` into all that is no override of a config's field, and the overrides."""
    others, overrides = [], []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":  # no flags behind it
            return [*others, argument, *waiting], overrides
        if not (match := OVERRIDE.fullmatch(argument)):
            others.append(argument)
            continue
        value = match["value"]
        # No verb with a config takes arguments that are no flags: what follows can only be the value.
        if value is None and not match["no"] and waiting and (waiting[0][:1] != "-" or NUMBER.match(waiting[0])):
            value = waiting.pop(0)
        overrides.append((argument, match["field"], not match["no"] if value is None else value))
    return others, overrides


def load(given: str, overrides: list[Override]) -> ml_collections.ConfigDict:
    """The config of `NAME|FILE[:args]` with its fields overridden; of a field given twice the last value stays."""
    name, colon, argument = given.partition(":")
    path = config_path(os.path.expanduser(name))
    config = None
    try:
        get_config = runpy.run_path(path).get("get_config")
        if callable(get_config):
            config = get_config(argument) if colon else get_config()
    except ValueError as error:  # a wrong argument, as `default.parse_arg` tells it
        raise UserError(f"--config={given}: {' '.join(str(error).split())}") from None
    except Exception as error:  # whatever the user's code raises
        raise UserError(located(error, path)) from None
    if not callable(get_config):
        raise UserError(f"{path} is not a config file: expected a function get_config()")
    if config is None:
        raise UserError(f"{path}: get_config() returns nothing, expected ml_collections.ConfigDict: `return config`")
    if not isinstance(config, ml_collections.ConfigDict):
        kind = type(config).__name__
        raise UserError(f"{path}: get_config() returns {kind}, expected ml_collections.ConfigDict")
    config.lock()
    names = [f"{section}.name" for section in ranges.SECTIONS]
    for flag, field, value in overrides:
        if field in names:  # they decide which fields a section has
            override(config, flag, field, value)
    # Then the size of the images, with which the preview's changes; that may be given too, before or behind it.
    sizes = [given for given in overrides if given[1] == "image_size"]
    before, preview = config.get("image_size"), config.get("preview")
    for flag, field, value in sizes:
        override(config, flag, field, value)
    of_preview = preview.get("image_size") if isinstance(preview, ml_collections.ConfigDict) else None
    if sizes and all(isinstance(side, int) and side > 0 for side in (before, of_preview)):
        size, config.image_size = config.image_size, before
        default.resize(config, size)
    for flag, field, value in overrides:
        if field not in ("image_size", *names):
            override(config, flag, field, value)
    return config


def located(error: Exception, path: str) -> str:
    """`error`, which the user's file at `path` raised, in one line with the line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"


def config_path(name: str) -> str:
    """The file of a config: of a packaged one by its name, else where `name` says."""
    packaged = packaged_configs()
    if name in packaged:
        return packaged[name]
    if os.path.isfile(name):
        return name
    stem = os.path.splitext(os.path.basename(name))[0]
    if os.path.basename(name) == name != "" and not name.endswith(".py"):
        close = difflib.get_close_matches(name, packaged, cutoff=0.5) or packaged
        known = f"expected a file or the name of a packaged config, such as {', '.join(close)}"
        raise UserError(f"config {name!r} does not exist; {known}")
    hint = f"; the packaged one is --config={stem}" if stem in packaged else ""
    raise UserError(f"config file {name!r} does not exist{hint}")


def packaged_configs() -> dict[str, str]:
    """{name: file} of the configs that are installed with the package."""
    found = {}
    for folder in basisnet_jax.configs.__path__:
        for module in pkgutil.iter_modules([folder]):
            if not module.ispkg and module.name not in HELPERS:
                found.setdefault(module.name, os.path.join(folder, f"{module.name}.py"))
    return found


def described_configs() -> list[tuple[str, str, str]]:
    """(name, summary, arguments) of each packaged config, by its docstring; none of them is run."""
    described = []
    for name, path in packaged_configs().items():
        with open(path, encoding="utf-8") as file:
            docstring = ast.get_docstring(ast.parse(file.read())) or ""
        arguments = re.search(r"\bArguments:\s(.*)\.", docstring, re.DOTALL)
        described.append((name, docstring.partition("\n")[0], " ".join(arguments[1].split()) if arguments else ""))
    return described


def override(config: ml_collections.ConfigDict, flag: str, field: str, value: str | bool) -> None:
    """Sets a field, such as "optimizer.learning_rate", to a value of its default's type."""
    holder, names = config, field.split(".")
    if len(names) == 2 and names[0] in ranges.SECTIONS and names[0] in config:
        was_own = ranges.is_own(config[names[0]].get("name"))
        if names[1] == "name" and (was_own or ranges.is_own(value)):
            section = ml_collections.ConfigDict({"name": value}) if ranges.is_own(value) else default.network(value)
            if "image_size" in config[names[0]]:
                section.image_size = config[names[0]].image_size
            config[names[0]] = section
            return
        if was_own and names[1] not in config[names[0]]:
            with config[names[0]].unlocked():
                config[names[0]][names[1]] = untyped(value)
            return
    for name in names:
        if not isinstance(holder, ml_collections.ConfigDict) or name not in holder:
            raise UserError(ranges.unknown(field, ranges.flat(config.to_dict())))
        parent, holder = holder, holder[name]
    kind = parent.get_type(names[-1])
    if issubclass(kind, ml_collections.ConfigDict):
        # The name of a network first: it empties the section.
        for key, inner in sorted(fields_of(flag, value).items(), key=lambda item: item[0] != "name"):
            override(config, flag, f"{field}.{key}", str(inner))
        return
    reference = dict(parent.items(preserve_field_references=True))[names[-1]]
    optional = isinstance(reference, ml_collections.FieldReference)
    try:
        parent[names[-1]] = None if optional and value == "None" else parsed_value(value, kind, holder)
    except (ValueError, TypeError, SyntaxError):
        expected = EXPECTED.get(kind, kind.__name__)
        if isinstance(holder, tuple | list):
            expected += f" such as {holder}"
        given = f"{flag} is given without a value" if isinstance(value, bool) else f"--config.{field}={value!r}"
        raise UserError(f"{given}, expected {expected}{' or None' * optional}") from None


def fields_of(flag: str, value: str | bool) -> dict:
    """Several fields at once: --config.basis.paths={'pointwise': 'folded'}."""
    try:
        if isinstance(fields := ast.literal_eval(value), dict):
            return fields
    except (ValueError, SyntaxError):
        pass
    raise UserError(f"{flag}: {value!r}, expected one of its fields, as in {flag.partition('=')[0]}.FIELD=VALUE")


def parsed_value(value: str | bool, kind: type, default):
    """The value of a field, of its type. Raises ValueError, TypeError or SyntaxError where it is none."""
    if isinstance(value, bool):
        if kind is not bool:
            raise ValueError
        return value
    if kind is bool:
        if value.lower() not in BOOLEANS:
            raise ValueError
        return BOOLEANS[value.lower()]
    if kind is int:
        return int(value, 0)
    if kind in (float, str):
        return kind(value)
    if issubclass(kind, tuple | list):
        items = ast.literal_eval(value)
        items = items if isinstance(items, tuple | list) else (items,)
        kinds = {type(item) for item in default or ()}
        if len(kinds) == 1:  # else, as with None, any items will do
            (inner,) = kinds
            items = [parsed_value(str(item), inner, None) for item in items]
        return kind(items)
    return untyped(value)


def untyped(value: str | bool):
    """The value of a field that has no default, and so no type: what the text is in Python, else the text itself."""
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "false"):
        return BOOLEANS[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config as it will read back from `config.json`: plain values, tuples as lists, paths absolute.

    Raises:
      UserError: a field is unknown, missing or out of its range (configs/ranges.py), or a network of one's own is
        not found.
    """
    ranges.check(config)
    for section in ranges.SECTIONS:
        if ranges.is_own(config[section].name):
            from basisnet_jax.networks import own  # imports JAX, which others need not wait for

            own.find(config[section].name)
    return ml_collections.ConfigDict(paths.with_absolute(json.loads(json.dumps(config.to_dict()))))
