"""What tells whether the images of a folder are still the same: names, sizes, times, and digests of the contents."""

import contextlib
import hashlib
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from basisnet_jax.errors import UserError
from basisnet_jax.workdir import files


class Stat(NamedTuple):
    size: int
    mtime: int  # in nanoseconds


class Changes(NamedTuple):
    """Names of files, in order."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def name_in(root: pathlib.Path, path: pathlib.Path) -> str:
    """The name of a file below `root`; `relative_to` takes ten times as long."""
    return str(path).removeprefix(str(root)).lstrip("/")


def stat_of(path: pathlib.Path) -> Stat:
    found = os.stat(path)
    return Stat(found.st_size, found.st_mtime_ns)


def check_as_listed(path: pathlib.Path, listed: Stat) -> None:
    try:
        same = stat_of(path) == listed
    except OSError:
        same = False
    if not same:
        raise UserError(f"{path} changed after its folder was listed; run the command again")


def fingerprint(root: pathlib.Path, listed: dict[str, list], stats: dict[str, Stat]) -> str:
    """Sixteen hexadecimal digits that change with the name, size or time of any file: what is prepared is kept by them.

    A file that another of the same size and time replaces (`cp -p`, or a clock turned back) is not noticed. To read
    every file each time would be: 100,000 photographs are 10 GB, and their sizes and times a few seconds.
    """
    digest = hashlib.sha256()
    for split, pairs in sorted(listed.items()):
        for _, path in pairs:
            name = name_in(root, path)
            digest.update(os.fsencode(f"{split} {name} {stats[name].size} {stats[name].mtime}\n"))
    return digest.hexdigest()[:16]


def kept(root: pathlib.Path, stats: dict[str, Stat], prepared: pathlib.Path) -> dict[str, str]:
    """`digest_of` every file by name: read from the folder of what is prepared, or made and kept there."""
    path = prepared / "digests.json"
    if path.exists():
        return json.loads(path.read_text())

    def as_listed(name):
        check_as_listed(root / name, stats[name])
        return digest_of(root / name)

    with ThreadPoolExecutor() as pool:
        digests = dict(zip(stats, pool.map(as_listed, stats), strict=True))
    with contextlib.suppress(OSError):  # somebody else's folder, or a full disk: next time they are made again
        files.write_json(path, digests, indent=None)
    return digests


def digest_of(path: pathlib.Path) -> str:
    """The first sixteen hexadecimal digits of the SHA-256 of a file's bytes; "" for a file that cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:  # the listing or the preparing of its folder has told it
        return ""


def list_digest(stats: dict[str, Stat], digests: dict[str, str]) -> str:
    """SHA-256 over the sorted names, sizes and digests. Times are not in it: a copy of the folder has the same."""
    lines = "".join(f"{name} {stats[name].size} {digests[name]}\n" for name in sorted(stats))
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def changes(root: pathlib.Path, stats: dict[str, Stat], recorded: dict[str, list]) -> Changes:
    """From what a run has recorded, {name: [size, time, digest]}, to what is there.

    Only a file of another time and the same size is read; as for `fingerprint`, one whose time is the same is not.
    """

    def differs(name):
        size, mtime, digest = recorded[name]
        if stats[name] == (size, mtime):
            return False
        return stats[name].size != size or digest_of(root / name) != digest

    return Changes(
        sorted(stats.keys() - recorded.keys()),
        sorted(recorded.keys() - stats.keys()),
        [name for name in sorted(stats.keys() & recorded.keys()) if differs(name)],
    )
