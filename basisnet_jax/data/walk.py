"""The images in a folder, at any depth and behind links, and what else is there and why it is none."""

import dataclasses
import os
import pathlib
import stat

from basisnet_jax.data.digests import Stat

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclasses.dataclass
class Contents:
    """What was found in a folder, by path, in the order of the names."""

    images: dict[pathlib.Path, Stat] = dataclasses.field(default_factory=dict)
    bad: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)  # what cannot be listed, and why
    ignored: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)  # what is left out, and why


def contents(folder: pathlib.Path) -> Contents:
    """All images in a folder and the folders in it, also behind links."""
    found = Contents()

    def walk(folder, above):
        inside = Contents()
        folders, above = scan(folder, inside), above | {identity(folder)}
        found.bad.update(inside.bad)
        found.ignored.update(inside.ignored)
        for path in sorted([*folders, *inside.images], key=lambda path: path.name):
            if path in inside.images:
                found.images[path] = inside.images[path]
            elif identity(path) in above:
                found.ignored[path] = "links to a folder that contains them"
            else:
                walk(path, above)

    walk(folder, {identity(path) for path in folder.absolute().parents})
    return found


def identity(path: pathlib.Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def scan(folder: pathlib.Path, found: Contents) -> list[pathlib.Path]:
    """The folders right in a folder, by name. Files, and what is left out, go to `found`."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        found.bad[folder] = error.strerror
        return []
    folders = []
    for entry in entries:
        path = folder / entry.name
        suffix = path.suffix.lower()
        if entry.name.startswith("."):
            found.ignored[path] = "hidden"
            continue
        try:
            if entry.is_dir():
                entry.stat()  # fails where it may be listed, but not entered
                folders.append(path)
            elif suffix not in SUFFIXES and (suffix or not entry.is_symlink()):
                found.ignored[path] = f"{suffix} files" if suffix else "files without suffix"
            else:
                listed = entry.stat()
                if not stat.S_ISREG(listed.st_mode):
                    found.ignored[path] = "pipes and devices"
                elif suffix in SUFFIXES:
                    found.images[path] = Stat(listed.st_size, listed.st_mtime_ns)
                else:
                    found.ignored[path] = "files without suffix"
        except OSError as error:
            dangling = entry.is_symlink() and isinstance(error, FileNotFoundError)
            found.bad[path] = f"a link to {os.readlink(path)}, which does not exist" if dangling else error.strerror
    return folders


def names_in(folder: pathlib.Path) -> list[str]:
    """Of the folders right in a folder."""
    return [path.name for path in scan(folder, Contents())]


def flat_images(folder: pathlib.Path) -> bool:
    """Whether there are images right in a folder."""
    found = Contents()
    scan(folder, found)
    return bool(found.images)
