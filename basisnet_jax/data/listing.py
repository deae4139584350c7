"""What a folder of images holds: its splits, classes and images, and what is left out and why.

    images/cat/1.jpg, images/dog/a.png ...                 one split; the others are taken from it
    images/train/cat/1.jpg, images/test/cat/2.jpg ...      splits, with a name of `SPLITS`, in upper or lower case

In the folder of a class images may lie in folders of any depth, and behind links. A folder is refused where its
classes or splits would have to be guessed. Whatever else is not used is counted, and `summary` tells it.
"""

import collections
import hashlib
import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple

from basisnet_jax.data.digests import Stat, name_in
from basisnet_jax.data.walk import SUFFIXES, Contents, contents, flat_images, names_in, scan
from basisnet_jax.errors import UserError, one_line

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
CARVED = {"validation": 0.1, "test": 0.1}  # of the images of train, for a split that the folder does not have
SKIP = "or set config.bad_images=skip"
FEW = 5  # names that a line tells

Files = dict[str, list[tuple[str, pathlib.Path]]]  # by split: (class, file)


class Listing(NamedTuple):
    """A folder of images, listed. Names are those of files below `root`."""

    root: pathlib.Path
    files: Files
    stats: dict[str, Stat]  # of every file, sorted by name
    classes: list[str]
    carved: list[str]  # the splits that the folder does not have
    bad: dict[str, str]  # name: why it cannot be listed
    ignored: dict[str, list[str]]  # why: names

    def counts(self, skipped: Collection[str] = ()) -> dict[str, dict[str, int]]:
        """{split: {class: images}}, but for the images of these names."""
        return {
            split: dict(collections.Counter(label for label, file in pairs if name_in(self.root, file) not in skipped))
            for split, pairs in self.files.items()
        }


def find(root: pathlib.Path, bad_images: str) -> Listing:
    """Lists a folder.

    Args:
      root: the folder, without links in its path.
      bad_images: "stop" at a file or folder that cannot be listed, such as a link to nothing; or "skip" it.

    Raises:
      UserError: it is no folder; something in it cannot be read; or what its classes are, cannot be known or trained.
    """
    try:
        os.stat(root)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"dataset folder {str(root)!r} {reason}") from error
    if not root.is_dir():
        raise UserError(f"dataset folder {str(root)!r} is not a folder")
    found = Contents()
    tops = split_folders(root, found)
    by_split = {split: class_folders(top, found) for split, top in tops.items()}
    check_readable(by_split, found, bad_images)
    files = {
        split: [(name, file) for name, inside in classes.items() for file in inside.images]
        for split, classes in by_split.items()
    }
    check_classes(root, tops, by_split, files, found)
    stats = {
        name_in(root, file): listed
        for classes in by_split.values()
        for inside in classes.values()
        for file, listed in inside.images.items()
    }
    carved = [split for split in CARVED if split not in files]
    files = carve(root, files)
    files = {name: files[name] for name in dict.fromkeys(SPLITS.values())}
    check_trained(root, files, carved)
    ignored = collections.defaultdict(list)
    for part in (found, *(inside for classes in by_split.values() for inside in classes.values())):
        for path, reason in part.ignored.items():
            ignored[reason].append(name_in(root, path))
    ignored = {reason: sorted(names) for reason, names in sorted(ignored.items())}
    bad = {name_in(root, path): reason for path, reason in sorted(found.bad.items())}
    classes = classes_of(files["train"])
    return Listing(root, files, dict(sorted(stats.items())), classes, carved, bad, ignored)


def split_folders(root: pathlib.Path, found: Contents) -> dict[str, pathlib.Path]:
    """The folder of each split; without splits the root, as that of train."""
    folders = scan(root, found)
    if root in found.bad:
        raise UserError(f"{root} cannot be read ({found.bad[root]})")
    named = [folder for folder in folders if folder.name.lower() in SPLITS]
    # A class may be called `train` or `valid` too: the folder of a split holds folders.
    inside = {folder: names_in(folder) for folder in named}
    of_split = {folder: SPLITS[folder.name.lower()] for folder in named if inside[folder]}
    others = {folder.name for folder in folders if folder not in named}
    if "train" not in of_split.values():
        if of_split and (not others or any(others.intersection(inside[folder]) for folder in of_split)):
            names = " and ".join(folder.name for folder in of_split)
            number = "split" if len(of_split) == 1 else "splits"
            raise UserError(
                f"{root} has the {number} {names}, but no training split; expected {root}/train/CLASS/IMAGE"
            )
        if named and not others and any(flat_images(folder) for folder in named):
            raise no_class_folders(named[0])
        return {"train": root}
    tops: dict[str, pathlib.Path] = {}
    for folder in folders:
        if folder not in of_split:
            if folder in named and flat_images(folder):
                raise no_class_folders(folder)
            found.ignored[folder] = "empty folders" if folder in named else "folders beside the splits"
        elif (other := tops.setdefault(of_split[folder], folder)) != folder:
            raise UserError(f"{other} and {folder} are both the {of_split[folder]} split, expected only one")
    outside(found)
    return tops


def class_folders(top: pathlib.Path, found: Contents) -> dict[str, Contents]:
    """What each class folder of a split holds, by the class's name."""
    classes = {folder.name: contents(folder) for folder in scan(top, found)}
    outside(found)
    for name, inside in classes.items():
        if not inside.images and not inside.bad:
            reason = "folders without images" if inside.ignored else "empty folders"
            found.ignored[top / name] = reason
    return classes


def outside(found: Contents) -> None:
    """Images that `scan` found right in the folder of a split belong to no class."""
    for path in found.images:
        found.ignored[path] = "images outside class folders"
    found.images.clear()


def no_class_folders(folder: pathlib.Path) -> UserError:
    return UserError(f"{folder} holds images, but no class folders; expected {folder}/CLASS/IMAGE")


def check_readable(by_split: dict[str, dict[str, Contents]], found: Contents, bad_images: str) -> None:
    """Gathers in `found` what cannot be listed, and refuses it; a class that is lost is not skipped either."""
    # Beside the class folders, what is not called as an image was one: a link to a class that is gone.
    lost = next((path for path in found.bad if path.suffix.lower() not in SUFFIXES), None)
    for classes in by_split.values():
        for inside in classes.values():
            found.bad.update(inside.bad)
            lost = lost or next((path for path in inside.bad if not inside.images), None)
    if found.bad and (lost or bad_images == "stop"):
        path = lost or min(found.bad)
        more = f" and {len(found.bad) - 1} more" if len(found.bad) > 1 else ""
        hint = "" if lost else f", {SKIP}"
        raise UserError(f"{path} cannot be read ({found.bad[path]}){more}; repair or remove it{hint}")


def check_classes(root, tops, by_split, files, found) -> None:
    """Refuses folders whose folders are no classes, or whose classes cannot be kept by their names."""
    top = tops["train"]
    for name in sorted({name for pairs in files.values() for name in classes_of(pairs)}):
        if name != name.strip() or "\n" in name or "\r" in name or not is_utf8(name):
            raise UserError(
                f"class folder {name!r} in {root}: expected a UTF-8 name without line breaks or spaces at its ends"
            )
    trained = classes_of(files["train"])
    if not trained:
        if any(path.parent == top for path, reason in found.ignored.items() if reason.startswith("images outside")):
            raise no_class_folders(top)
        raise UserError(f"{top} holds no class folders with images ({', '.join(SUFFIXES)})")
    if empty := next((split for split, pairs in files.items() if not pairs), None):
        raise UserError(f"{tops[empty]}, the folder of the {empty} split, holds no images; add images or remove it")
    if len(trained) == 1 and not any(set(trained) ^ set(classes_of(pairs)) for pairs in files.values()):
        [name] = trained
        if flat_images(top / name):
            raise UserError(f"{top} holds one class, {name!r}, expected at least two")
        likely = f"folder:{top / name}" if top == root else f"{top}/CLASS/IMAGE"
        names = few(names_in(top / name))
        raise UserError(f"{top} holds only the folder {name!r}, which holds {names}; did you mean {likely}?")
    for name, inside in by_split["train"].items():
        if inside.images:
            folders = {SPLITS.get(folder.lower()) for folder in names_in(top / name)} - {None}
            if "train" in folders and len(folders) > 1:
                raise UserError(f"{top / name} holds folders of splits; expected {root}/train/{name}/IMAGE")


def classes_of(pairs: list[tuple[str, pathlib.Path]]) -> list[str]:
    return sorted({label for label, _ in pairs})


def check_trained(root: pathlib.Path, files: Files, carved: list[str]) -> None:
    """Refuses classes that are held out but not trained."""
    trained = set(classes_of(files["train"]))
    for split, pairs in files.items():
        if missing := sorted(set(classes_of(pairs)) - trained):
            where = f"all of them went to the {split} split; add images" if split in carved else f"only in {split}"
            number = "class" if len(missing) == 1 else "classes"
            raise UserError(f"{root} has no training images of {number} {few(missing)}: {where}")


def carve(root: pathlib.Path, found: Files) -> Files:
    """Fills missing splits from train. The name of a file decides its split, so new files do not move it.

    With few images a split may stay empty. Then each class with at least three images gives one to it. Such an image
    goes back to train when a new file falls into that split by its name.
    """

    def place(pair):
        digest = hashlib.sha256(os.fsencode(name_in(root, pair[1]))).digest()
        return int.from_bytes(digest[:8]) / 2**64

    missing = {split: share for split, share in CARVED.items() if split not in found}
    result: Files = {"train": [], **{split: [] for split in missing}}
    for pair in found["train"]:
        rest = place(pair)
        for split, share in missing.items():
            if rest < share:
                result[split].append(pair)
                break
            rest -= share
        else:
            result["train"].append(pair)
    sizes = collections.Counter(label for label, _ in found["train"])
    for split in missing:
        if not result[split]:
            left = collections.defaultdict(list)
            for pair in result["train"]:
                left[pair[0]].append(pair)
            result[split] = [min(of, key=place) for label, of in left.items() if sizes[label] >= 3 and len(of) > 1]
            result["train"] = [pair for pair in result["train"] if pair not in result[split]]
        if not result[split]:
            count, train = len(found["train"]), f"{root}/train/CLASS"
            where = f"add images, or sort them into {train} and {root}/{split}/CLASS"
            raise UserError(f"{root} has too few images, {count}: none of them goes to the {split} split; {where}")
    return {**found, **result}


def summary(listing: Listing, name: str) -> str:
    """What is trained on, and what is left out and why, on a few lines."""
    classes = len(listing.classes)
    lines = [f"{name}: {classes} classes ({few(listing.classes)}), {len(listing.stats)} images"]
    for split, labels in listing.counts().items():
        most, least = max(labels, key=labels.get), min(labels, key=labels.get)
        sizes = f"{labels[most]}"
        if labels[least] < labels[most]:
            sizes = f"{labels[least]} ({least}) to {labels[most]} ({most})"
        carved = ", taken from train" if split in listing.carved else ""
        missing = [label for label in listing.classes if label not in labels]
        without = f"; none of {few(missing)}" if missing else ""
        lines.append(f"  {split:10}  {sum(labels.values())} images, {sizes} per class{carved}{without}")
    lines += [f"  left out, {reason}: {len(names)} ({few(names)})" for reason, names in listing.ignored.items()]
    lines += [f"  skipped: {path} cannot be read ({reason})" for path, reason in listing.bad.items()]
    return "\n".join(map(one_line, lines))


def few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
