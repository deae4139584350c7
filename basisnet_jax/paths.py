"""Paths as users write them, in flags, configs and the environment: `~` is the home folder.

A workdir is a folder on this machine (a mounted bucket is one), or in a bucket of Google Cloud Storage
(`workdir/stores.py`). Other stores are refused, because Orbax cannot write checkpoints there. Exports, sweeps and
caches must be on this machine: they are locked, renamed or mapped into memory, which needs a file system.
"""

import os
import re

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
BUCKET = re.compile(r"gs://[^/]+")
# The fields of a config that are paths, "" for none. `dataset` is one where it begins with "folder:".
FIELDS = ("data_dir", "init_from", "preview_init_from", "distillation.teacher", "distillation.cache")
ENVIRONMENT = ("TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR")
FOLDER = "folder:"


def expanded(path: str) -> str:
    """The path with its `~` or `~user` replaced. Raises ValueError where there is no such user."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise ValueError(f"{path!r} names a home folder that does not exist")
    return found


def local(path: str) -> str:
    """`expanded`. Raises ValueError where the path is of a remote store, such as gs://bucket."""
    if REMOTE.match(path):
        raise ValueError(f"{path!r} is on a remote store")
    return expanded(path)


def of_run(path: str) -> str:
    """The path of a workdir: one of a bucket without "/" at its end, else `local`."""
    return path.rstrip("/") if BUCKET.match(path) else local(path)


def holds(convert, path: str) -> bool:
    try:
        convert(path)
        return True
    except ValueError:
        return False


def is_local(path: str) -> bool:
    return holds(local, path)


def is_of_run(path: str) -> bool:
    return holds(of_run, path)


def is_place(path: str) -> bool:
    return bool(REMOTE.match(path)) or is_local(path)


def is_dataset(name: str) -> bool:
    return bool(name) and is_local(name.removeprefix(FOLDER))


def absolute(path: str) -> str:
    """The path from the root; one of a remote store, or "", as it is."""
    return path if not path or REMOTE.match(path) else os.path.abspath(os.path.expanduser(path))


def with_absolute(values: dict, prefix: str = "") -> dict:
    """A config as plain data, the paths in it absolute: a run's commands need not be given where it was started."""
    made = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = with_absolute(value, f"{prefix}{name}.")
        elif prefix + name in FIELDS and isinstance(value, str):
            value = absolute(value)
        elif prefix + name == "dataset" and str(value).startswith(FOLDER):
            value = FOLDER + absolute(value.removeprefix(FOLDER))
        made[name] = value
    return made


def expand_environment() -> None:
    """Replaces `~` in the variables that name folders: no shell does so behind every `=`."""
    for name in ENVIRONMENT:
        if os.environ.get(name, "").startswith("~"):
            os.environ[name] = os.path.expanduser(os.environ[name])
