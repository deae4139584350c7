"""Files and folders that come into place whole or not at all, and what tells that they are still whole.

The files of a workdir are read and written here, wherever it is: paths may be of a bucket where nothing else is said.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import IO

from basisnet_jax import paths
from basisnet_jax.workdir import stores

_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


def at(path: str | os.PathLike) -> pathlib.Path:
    """The path; of a bucket one with the same methods, but for `rglob` and `rename`."""
    return stores.at(os.fspath(path)) if is_remote(path) else pathlib.Path(path)


def is_remote(path: str | os.PathLike) -> bool:
    return bool(paths.BUCKET.match(os.fspath(path)))


def exists(path: str | os.PathLike) -> bool:
    return at(path).exists()


def reading(path: str | os.PathLike) -> IO[str]:
    """The text file, open; of a bucket all of it."""
    return io.StringIO(stores.read(os.fspath(path)).decode()) if is_remote(path) else open(path)


def append(path: str | os.PathLike, line: str) -> None:
    """Adds a line to a file; of a bucket the whole object is read and written."""
    if is_remote(path):
        before = stores.read(os.fspath(path)) if exists(path) else b""
        stores.write(os.fspath(path), before + f"{line}\n".encode())
    else:
        with open(path, "a") as file:
            print(line, file=file)


def make_folder(path: str | os.PathLike) -> None:
    if not is_remote(path):  # a bucket has none
        os.makedirs(path, exist_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w", **options) -> Iterator[IO]:
    """A file to write, which becomes the one at `path` when the block ends well; `mode` is "w" or "wb".

    That it can be written is found out at once; in a bucket at the end. `options` are those of `open`.
    """
    if mode == "w":
        options = {"encoding": "utf-8", **options}
    if is_remote(path):
        content = io.BytesIO()
        file = io.TextIOWrapper(content, **options) if mode == "w" else content
        yield file
        file.flush()
        stores.write(os.fspath(path), content.getvalue())
        return
    unfinished = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(unfinished, mode, **options) as file:
            yield file
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A new folder beside `path` to write into. It gets that name, which is free or of an empty one, at the end.

    Both are on this machine.
    """
    target = pathlib.Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_json(path: str | os.PathLike, value: dict | list, indent: int | None = 1) -> None:
    with replacing(path) as file:
        json.dump(value, file, indent=indent)


def unwritable(path: str | os.PathLike) -> str | None:
    """Why nothing can be written at a path, which need not be there yet, in the system's words; None: it can be."""
    if is_remote(path):
        return stores.unwritable(os.fspath(path))
    existing = pathlib.Path(path).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        return os.strerror(errno.ENOTDIR)
    if os.access(existing, os.W_OK | os.X_OK):
        return None
    read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
    return os.strerror(errno.EROFS if read_only else errno.EACCES)


def full_disk(error: BaseException) -> str | None:
    """The system's words for a full disk if the error, of whatever library, has them."""
    return next((text for text in _FULL if text in str(error)), None)


def refused_by_store(error: BaseException) -> str | None:
    """What a bucket says, if the error is of reading or writing there."""
    of_store = isinstance(error, OSError) and error.filename is not None and is_remote(error.filename)
    return error.strerror if of_store else None


def checksums(folder: pathlib.Path, left_out: Collection[str] = ()) -> dict[str, str]:
    """SHA-256 of every file by its path in the folder, but for files of the names `left_out`."""
    if is_remote(folder):
        names = stores.listed(folder)
    else:
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {name: _sha256(folder / name) for name in names if os.path.basename(name) not in left_out}


def damaged(folder: pathlib.Path, expected: dict[str, str]) -> str | None:
    """The first of the files in `expected`, as `checksums` lists them, that is missing or not what it was, or None."""
    for name, checksum in expected.items():
        try:
            if _sha256(folder / name) != checksum:
                return name
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return name
    return None


def move(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a folder another name on the same file system, or in the same bucket, where all of it is copied."""
    if is_remote(folder):
        stores.move(folder, target)
    else:
        os.rename(folder, target)


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
