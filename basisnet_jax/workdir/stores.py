"""Workdirs in a bucket, gs://BUCKET/FOLDER: what an object store does otherwise than a file system.

A store has objects, no folders. An object comes into place whole when its writer ends, so nothing is renamed. It has no
`flock`: a lock is an object that only one writer can make. Paths are epath's, as Orbax's are, and are read and written
through fsspec, which needs the package of the store.
"""

import contextlib
import errno
import fcntl
import functools
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from absl import logging

from basisnet_jax import paths
from basisnet_jax.errors import UserError

COMMITTED = "commit_success.txt"  # Orbax's mark of a whole checkpoint


def at(path: str):
    """epath's path, with the methods of pathlib's.

    Raises:
      UserError: the package of the store is missing, or the store refuses.
    """
    from etils import epath

    connect(paths.BUCKET.match(path)[0])
    return epath.Path(path)


@functools.cache
def connect(bucket: str) -> None:
    """Makes epath use fsspec, once for a bucket. Raises UserError as `at`."""
    from etils.epath import gpath

    # Else it uses TensorFlow, with another login; and Orbax needs google-cloud-storage, which gcsfs brings, either way.
    os.environ.setdefault("EPATH_USE_TF", "false")
    with contextlib.suppress(AttributeError):
        gpath._is_tf_installed.cache_clear()  # it remembers the answer for any path, also a local one
    try:
        import fsspec
        import gcsfs  # noqa: F401
        from google.cloud import storage  # noqa: F401
    except ImportError as error:
        raise UserError(f"{bucket} needs {error.name}: pip install 'basisnet_jax[gcs]'") from None
    for protocol in ("gs", "gcs"):  # what others write, TensorStore in this process too, must be seen
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    try:
        filesystem(bucket)[0].exists(f"{bucket}/config.json")
    except Exception as error:  # of gcsfs, aiohttp and Google's authentication
        raise UserError(f"{bucket} cannot be read: {words(error)}") from error


def filesystem(path: str | os.PathLike) -> tuple:
    """fsspec's file system of a path, and the path in it."""
    import fsspec

    return fsspec.core.url_to_fs(os.fspath(path))


def words(error: BaseException) -> str:
    """What an error of a store says, in a line."""
    return " ".join(f"{error}".split())[:200] or type(error).__name__


@contextlib.contextmanager
def told(path: str | os.PathLike) -> Iterator[None]:
    """Errors of whatever type as those that a file system raises."""
    try:
        yield
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        raise OSError(errno.ENOENT if missing else errno.EIO, words(error), os.fspath(path)) from error


def read(path: str) -> bytes:
    place = at(path)
    with told(path):
        return place.read_bytes()


def write(path: str, content: bytes) -> None:
    place = at(path)
    with told(path):
        place.write_bytes(content)


def unwritable(path: str) -> str | None:
    """Why no object can be made and removed in a folder, in the store's words; None: it can be."""
    store, root = filesystem(at(path))
    trial = f"{root}/{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        store.pipe_file(trial, b"trial")
        store.rm_file(trial)
    except FileNotFoundError:
        return "there is no such bucket"
    except Exception as error:
        return words(error)
    return None


def listed(folder) -> list[str]:
    """The names of all objects in a folder and the folders in it, relative to it, in order."""
    store, root = filesystem(folder)
    return sorted(name.removeprefix(f"{root}/") for name in store.find(root))


def move(folder, target) -> None:
    """Copies all objects of a folder to another name, then removes them.

    Of a checkpoint the mark that it is whole goes first: if this is interrupted, none is left that lacks files.
    """
    store, source = filesystem(folder)
    with contextlib.suppress(FileNotFoundError):
        store.rm_file(f"{source}/{COMMITTED}")
    store.mv(source, filesystem(target)[1], recursive=True)


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Refuses a second run in the workdir while this one lasts, by the object `lock`, which is removed at the end.

    A killed run leaves it. A run on the same machine finds that its process is gone, and takes over. One on another
    machine cannot know: its user has to look, and to remove the object.
    """
    path = f"{workdir}/lock"
    store, name = filesystem(at(path))
    ours = Holder(str(os.getpid()), socket.gethostname(), machine(), uuid.uuid4().hex)
    try:
        with _in_turn():
            holder = _holder(store, name)
            if holder and _has_ended(holder):
                store.rm_file(name)
                holder = None
            if not holder:
                try:
                    store.pipe_file(name, " ".join(ours).encode(), mode="create")
                except FileExistsError:  # a run on another machine has been faster, or our own first try arrived
                    holder = _holder(store, name)
    except Exception as error:
        raise UserError(f"workdir {workdir} cannot be written: {words(error)}") from error
    if holder and holder != ours:
        where = f"process {holder.process} on {holder.host}"
        raise UserError(f"workdir {workdir} is in use by {where}; if that has ended, remove {path}")
    _held.add(ours)
    try:
        yield
    finally:
        _held.discard(ours)
        try:
            if _holder(store, name) == ours:
                store.rm_file(name)
        except Exception as error:  # the run has ended as it has
            logging.warning("%s is left behind: %s", path, words(error))


@contextlib.contextmanager
def _in_turn() -> Iterator[None]:
    """One process of this machine at a time: else two could take over from the same run, one from the other."""
    with open(os.path.join(tempfile.gettempdir(), f"basisnet_{os.getuid()}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Holder(NamedTuple):
    """The run that made a lock. Processes have the same number in two containers of one host, and one after another."""

    process: str
    host: str
    machine: str  # see `machine`
    token: str  # of this lock alone


_held: set[Holder] = set()  # by this process


def machine() -> str:
    """What two processes share that see each other: one boot of one system, and one table of processes."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return "-"


def _holder(store, name: str) -> Holder | None:
    """The run that made the lock; None where there is none. What no run wrote is of an unknown one."""
    try:
        parts = store.cat_file(name).decode(errors="replace").split()
    except FileNotFoundError:
        return None
    return Holder(*parts) if len(parts) == len(Holder._fields) and parts[0].isdigit() else Holder("?", "?", "?", "?")


def _has_ended(holder: Holder) -> bool:
    """Whether a process of this machine is gone; of another machine nobody here knows."""
    if (holder.host, holder.machine) != (socket.gethostname(), machine()):
        return False
    if int(holder.process) == os.getpid():  # an earlier process had our number, if the lock is not ours
        return holder not in _held
    try:
        os.kill(int(holder.process), 0)
        return False
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
