"""Files and folders that come into place whole or not at all, and what tells that they are still whole."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import IO

_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


@contextlib.contextmanager
def replacing(path: str | os.PathLike, **options) -> Iterator[IO[str]]:
    """A file to write, which becomes the one at `path` when the block ends well; `options` are those of `open`.

    That it can be written is found out at once.
    """
    unfinished = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(unfinished, "w", **{"encoding": "utf-8", **options}) as file:
            yield file
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A new folder beside `path` to write into. It gets that name, which is free or of an empty one, at the end."""
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


def checksums(folder: pathlib.Path, left_out: Collection[str] = ()) -> dict[str, str]:
    """SHA-256 of every file by its path in the folder, but for files of the names `left_out`."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def damaged(folder: pathlib.Path, expected: dict[str, str]) -> str | None:
    """The first of the files in `expected`, as `checksums` lists them, that is missing or not what it was, or None."""
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            return name
    return None
