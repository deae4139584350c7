"""A folder of class folders as a TFDS dataset: `--config.dataset=folder:/path/to/images`.

`data/listing.py` says how the folder is laid out. Preparing decodes every image once, so that what is broken is known
before training starts, and writes TFDS's own files; a folder in which a file was added, removed or changed is prepared
anew, beside what was prepared before. Ordinary JPEGs keep their bytes; whatever else Pillow reads is stored as an 8-bit
RGB PNG: grey, palette and CMYK converted, 16 bits scaled to 8, transparency laid over white, of an animation the first
frame, and EXIF rotation carried out. So is a damaged JPEG that decodes: libjpeg would warn of it in every epoch.
"""

import io
import os
import pathlib
import re

import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow as tf
import tensorflow_datasets as tfds

from basisnet_jax.data import digests, jpeg_warnings, listing
from basisnet_jax.errors import UserError, one_line

BAD_IMAGES = ("stop", "skip")


class Folder(tfds.core.GeneratorBasedBuilder):
    """Features `image` and `label` (class names in alphabetical order).

    Args:
      path: the folder.
      bad_images: "stop" at the first file that cannot be read as an image, or "skip" such files and print them.
    """

    name = "folder"
    VERSION = tfds.core.Version("1.2.0")  # 1.0.0 kept JPEGs that TensorFlow cannot decode, 1.1.0 damaged ones
    url_infos = None  # nothing is downloaded

    def __init__(self, path: str, bad_images: str, **kwargs):
        if bad_images not in BAD_IMAGES:
            raise UserError(f"config.bad_images={bad_images!r}, expected one of {', '.join(BAD_IMAGES)}")
        self.root = pathlib.Path(os.path.realpath(os.path.expanduser(path)))
        self.listing = listing.find(self.root, bad_images)
        self.bad_images = bad_images
        self.stats = self.listing.stats
        listed = digests.fingerprint(self.root, self.listing.files, self.stats)
        title = re.sub(r"[^A-Za-z0-9._-]", "_", self.root.name)[:80]  # it becomes a folder's name
        config = tfds.core.BuilderConfig(name=f"{title}-{listed}-{bad_images}")
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=self.listing.classes),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The images of {one_line(str(self.root))}.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(skipped={}, damaged={}),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split, files) for split, files in self.listing.files.items()}

    def _generate_examples(self, split, files):
        skipped, damaged = {}, {}
        for label, path in files:
            name = digests.name_in(self.root, path)
            digests.check_as_listed(path, self.stats[name])
            try:
                encoded = encode(path)
                with jpeg_warnings.caught() as warnings:
                    decoded = tf.io.decode_image(encoded, channels=3)  # as training will, which is stricter than Pillow
            except Exception as error:  # whatever Pillow or TensorFlow makes of a broken file
                message = unreadable(path, error)
                if self.bad_images == "stop":
                    raise UserError(f"{message}; remove it, {listing.SKIP}") from error
                print(f"skipped: {one_line(message)}")
                skipped[name] = label, message
                continue
            if warnings:
                damaged[name] = warnings[0]
                encoded = png(PIL.Image.fromarray(decoded.numpy()))
            yield os.fsencode(name), {"image": io.BytesIO(encoded), "label": label}
        read = {label for label, path in files if digests.name_in(self.root, path) not in skipped}
        for label, message in skipped.values():
            if not read or (split == "train" and label not in read):
                raise UserError(f"none of the {split} images of class {label!r} can be read: {message}")
        self.info.metadata["skipped"].update({name: message for name, (_, message) in skipped.items()})
        self.info.metadata["damaged"].update(damaged)


def encode(path: pathlib.Path) -> bytes:
    """The file as a JPEG as it is, or as an RGB PNG: see the head of this file. Raises what Pillow raises."""
    encoded = path.read_bytes()
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        upright = image.getexif().get(0x0112, 1) == 1
        if image.format == "JPEG" and image.mode in ("RGB", "L") and upright:
            return encoded  # not decoded: whoever decodes it finds out whether it is whole
        return png(to_rgb(PIL.ImageOps.exif_transpose(image)))


def png(image: PIL.Image.Image) -> bytes:
    output = io.BytesIO()
    image.save(output, "PNG")
    return output.getvalue()


def unreadable(path: pathlib.Path, error: Exception) -> str:
    """One line on what `encode` or TensorFlow makes of a file that they cannot decode."""
    if isinstance(error, PIL.UnidentifiedImageError):  # whose text names an object of Python's
        reason = "unknown format"
    else:
        text = re.sub(r"\{\{.*?\}\} |\[Op:\w+\]", "", str(error))  # where in TensorFlow it was found out
        reason = getattr(error, "strerror", None) or " ".join(text.split())[:120] or type(error).__name__
    return f"{path} is not a readable image ({reason})"


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
