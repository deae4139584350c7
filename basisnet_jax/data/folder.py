"""A folder of class folders as a TFDS dataset: `--config.dataset=folder:/path/to/images`.

    images/cat/1.jpg, images/dog/a.png ...                 one split: the others are carved out of it
    images/train/cat/1.jpg, images/test/cat/2.jpg ...      splits named train, validation (or val), test

Preparing reads every image once, so that what is broken is known before training starts, and writes TFDS's own files;
a folder in which a file was added, removed or changed is prepared anew, beside what was prepared before. Ordinary
JPEGs keep their bytes; whatever else Pillow reads is stored as an 8-bit RGB PNG: grey, palette and CMYK converted, 16
bits scaled to 8, transparency laid over white, of an animation the first frame, and EXIF rotation carried out.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow_datasets as tfds

from basisnet_jax.errors import UserError
from basisnet_jax.workdir import files

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CARVED = {"validation": 0.1, "test": 0.1}  # of the images of train, for a split that the folder does not have

Files = dict[str, list[tuple[str, pathlib.Path]]]  # by split: (class, file)


class Stat(NamedTuple):
    size: int
    mtime: int  # in nanoseconds


class Changes(NamedTuple):
    """Names of files, in order."""

    added: list[str]
    removed: list[str]
    changed: list[str]


class Folder(tfds.core.GeneratorBasedBuilder):
    """Features `image` and `label` (class names in alphabetical order).

    Args:
      path: the folder.
      bad_images: "stop" at the first file that cannot be read as an image, or "skip" such files and print them.
    """

    name = "folder"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded

    def __init__(self, path: str, bad_images: str, **kwargs):
        self.root = pathlib.Path(path).resolve()
        self.bad_images = bad_images
        self.files = find_files(self.root)
        self.stats = stat_files(self.root, self.files)
        self.classes = sorted({name for files in self.files.values() for name, _ in files})
        listed = fingerprint(self.root, self.files, self.stats)
        config = tfds.core.BuilderConfig(name=f"{self.root.name}-{listed}-{bad_images}")
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=self.classes),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The images of {self.root}.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(files) for split, files in self.files.items()}

    def _generate_examples(self, files):
        for label, path in files:
            name = name_in(self.root, path)
            check_as_listed(path, self.stats[name])
            try:
                encoded = encode(path)
            except Exception as error:  # whatever Pillow makes of a broken file
                message = unreadable(path, error)
                if self.bad_images == "stop":
                    raise UserError(f"{message}; remove it, or set config.bad_images=skip") from error
                print(f"skipped: {message}")
                continue
            yield name, {"image": io.BytesIO(encoded), "label": label}


def find_files(root: pathlib.Path) -> Files:
    """The image files of every split, by their names; hidden files and other suffixes are left out."""
    if not root.is_dir():
        raise UserError(f"dataset folder {str(root)!r} does not exist")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = {SPLITS[path.name]: path for path in folders if path.name in SPLITS}
    if "train" not in named:
        named = {"train": root}
    found = {
        split: [
            (folder.name, file)
            for folder in sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
            for file in image_files(folder)
        ]
        for split, top in named.items()
    }
    if not found["train"]:
        raise UserError(f"{root} holds no class folders with images ({', '.join(SUFFIXES)})")
    return carve(root, found)


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files anywhere in a folder, by their names; hidden files and other suffixes are left out."""
    return [
        file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]


def carve(root: pathlib.Path, found: Files) -> Files:
    """Fills missing splits from train. Where a file goes follows from its name alone, so it stays when others come."""
    missing = {split: share for split, share in CARVED.items() if split not in found}
    result: Files = {"train": [], **{split: [] for split in missing}}
    for label, file in found["train"]:
        digest = hashlib.sha256(name_in(root, file).encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        for split, share in missing.items():
            if place < share:
                result[split].append((label, file))
                break
            place -= share
        else:
            result["train"].append((label, file))
    for split in missing:
        if not result[split]:
            raise UserError(f"{root} has too few images to carve a {split} split out of train: add a folder {split!r}")
    return {**found, **result}


def stat_files(root: pathlib.Path, files: Files) -> dict[str, Stat]:
    """Size and time of every file, by its name below `root`, sorted."""
    stats = {name_in(root, path): stat_of(path) for pairs in files.values() for _, path in pairs}
    return dict(sorted(stats.items()))


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


def fingerprint(root: pathlib.Path, files: Files, stats: dict[str, Stat]) -> str:
    """Sixteen hexadecimal digits that change with the name, size or time of any file: what is prepared is kept by them.

    A file that another of the same size and time replaces (`cp -p`, or a clock turned back) is not noticed. To read
    every file each time would be: 100,000 photographs are 10 GB, and their sizes and times a few seconds.
    """
    digest = hashlib.sha256()
    for split, pairs in sorted(files.items()):
        for _, path in pairs:
            name = name_in(root, path)
            digest.update(f"{split} {name} {stats[name].size} {stats[name].mtime}\n".encode())
    return digest.hexdigest()[:16]


def kept_digests(folder: Folder, prepared: pathlib.Path) -> dict[str, str]:
    """`digest_of` every file by name: read from the folder of what is prepared, or made and kept there."""
    path = prepared / "digests.json"
    if path.exists():
        return json.loads(path.read_text())

    def as_listed(name):
        check_as_listed(folder.root / name, folder.stats[name])
        return digest_of(folder.root / name)

    with ThreadPoolExecutor() as pool:
        digests = dict(zip(folder.stats, pool.map(as_listed, folder.stats), strict=True))
    with contextlib.suppress(OSError):  # somebody else's folder, or a full disk: next time they are made again
        files.write_json(path, digests, indent=None)
    return digests


def digest_of(path: pathlib.Path) -> str:
    """The first sixteen hexadecimal digits of the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def list_digest(stats: dict[str, Stat], digests: dict[str, str]) -> str:
    """SHA-256 over the sorted names, sizes and digests. Times are not in it: a copy of the folder has the same."""
    lines = "".join(f"{name} {stats[name].size} {digests[name]}\n" for name in sorted(stats))
    return hashlib.sha256(lines.encode()).hexdigest()


def changes(folder: Folder, recorded: dict[str, list]) -> Changes:
    """From what a run has recorded, {name: [size, time, digest]}, to what is there.

    Only a file of another time and the same size is read; as for `fingerprint`, one whose time is the same is not.
    """
    stats = folder.stats

    def differs(name):
        size, mtime, digest = recorded[name]
        if stats[name] == (size, mtime):
            return False
        return stats[name].size != size or digest_of(folder.root / name) != digest

    return Changes(
        sorted(stats.keys() - recorded.keys()),
        sorted(recorded.keys() - stats.keys()),
        [name for name in sorted(stats.keys() & recorded.keys()) if differs(name)],
    )


def encode(path: pathlib.Path) -> bytes:
    """The file as a JPEG as it is, or as an RGB PNG: see the head of this file. Raises what Pillow raises."""
    encoded = path.read_bytes()
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        image.load()  # decodes it all: a truncated file fails here
        upright = image.getexif().get(0x0112, 1) == 1
        if image.format == "JPEG" and image.mode in ("RGB", "L") and upright:
            return encoded
        image = PIL.ImageOps.exif_transpose(image)
        output = io.BytesIO()
        to_rgb(image).save(output, "PNG")
        return output.getvalue()


def unreadable(path: pathlib.Path, error: Exception) -> str:
    """One line on what `encode` or TensorFlow makes of a file that they cannot decode."""
    if isinstance(error, PIL.UnidentifiedImageError):  # whose text names an object of Python's
        reason = "of no known format"
    else:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
    return f"{path} is no readable image ({reason})"


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any Pillow mode as 8-bit RGB."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow's own conversion clips at 255
        array = np.asarray(image, np.float64)
        array = array / 65535 if image.mode != "F" else (array - array.min()) / max(np.ptp(array), 1e-12)
        image = PIL.Image.fromarray((255 * array.clip(0, 1)).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")
