"""Where examples come from: a data set of TFDS, or a folder of images that becomes one."""

import contextlib
import difflib
import functools
import pathlib
import sys

import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import basisnet_jax.data.digits
import basisnet_jax.data.glyphs  # noqa: F401  (both register their names with TFDS)
from basisnet_jax import paths
from basisnet_jax.data import digests, folder, listing
from basisnet_jax.errors import UserError


class Source:
    """A data set found by its name. It is prepared on disk when its `builder` is first asked for.

    A folder of images is listed here, and not again: what is prepared and read later is what was there then.

    Args:
      name: of TFDS, or "folder:PATH".
      data_dir: where TFDS keeps what is prepared; "" is TFDS's own place.
      bad_images: of a folder, "stop" or "skip".

    Raises:
      UserError: there is no such data set, or it is none of images with labels.
    """

    def __init__(self, name: str, data_dir: str, bad_images: str):
        keep_tensorflow_off_accelerators()
        check_store(data_dir)
        self.name = name
        self.folder: folder.Folder | None = None
        if name.startswith("folder:"):
            path = name.removeprefix("folder:")
            if not path:
                raise UserError("config.dataset='folder:' names no folder, expected folder:/path/to/images")
            self._found = self.folder = folder.Folder(path, bad_images, data_dir=data_dir or None)
        else:
            self._found = named(name, data_dir)
        features = dict(self._found.info.features.items())
        image, label = features.get("image"), features.get("label")
        if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
            raise UserError(f"{name} has no features 'image' and 'label': it is not an image classification dataset")
        self.channels = image.shape[-1]
        if image.np_dtype != np.uint8 or self.channels not in (1, 3):
            given = f"{image.np_dtype} images with {self.channels} channels"
            raise UserError(f"{name} has {given}; expected uint8 with 1 or 3")
        self.classes: list[str] = label.names  # as TFDS or the folder calls them, by label

    @classmethod
    def find(cls, config: ml_collections.ConfigDict) -> "Source":
        """That of a config."""
        return cls(config.dataset, config.data_dir, config.bad_images)

    def completed(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """The config with a `num_classes` of 0 replaced by the number of classes that there are, else unchanged."""
        if config.num_classes:
            return config
        config = config.copy_and_resolve_references()
        config.num_classes = len(self.classes)
        return config

    @functools.cached_property
    def builder(self) -> tfds.core.DatasetBuilder:
        """The builder of TFDS, prepared on disk.

        Raises:
          UserError: the data are not there and cannot be fetched.
        """
        return self._found if self._found.data_path.exists() else prepared(self.name, self._found)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What identifies the examples: of TFDS the full name, version included, and how many there are; of a folder a
        SHA-256 over the names, sizes and contents of its files."""
        if self.folder:
            return digests.list_digest(self.folder.stats, self.digests)
        return f"{self.builder.info.full_name} {self.splits}"

    @property
    def splits(self) -> dict[str, int]:
        """How many examples each split has."""
        return {name: split.num_examples for name, split in sorted(self.builder.info.splits.items())}

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Of a folder's files, by name; kept beside what is prepared, since making them reads every file."""
        return digests.kept(self.folder.root, self.folder.stats, self.builder.data_path)

    @property
    def skipped(self) -> dict[str, str]:
        """Of a folder, what cannot be read and was skipped: why, by name."""
        return {**self.folder.listing.bad, **(self.builder.info.metadata or {}).get("skipped", {})}

    @property
    def damaged(self) -> dict[str, str]:
        """Of a folder, the JPEGs that are damaged and were used as far as they decode: libjpeg's warning, by name."""
        return (self.builder.info.metadata or {}).get("damaged", {})

    def told(self) -> list[str]:
        """Of a folder, a line on skipped and one on damaged files: preparing, which finds them, may be long ago."""
        if not self.folder:
            return []
        kinds = {"skipped in {}, unreadable": self.skipped, "damaged in {}, but used": self.damaged}
        told = {kind.format(self.name): [*names] for kind, names in kinds.items() if names}
        return [f"{kind}: {len(names)} ({listing.few(names)})" for kind, names in told.items()]

    def summary(self) -> str:
        """Of a folder, what is in it and what is not used, on a few lines."""
        return listing.summary(self.folder.listing, self.name)

    def record(self) -> dict:
        """What the examples are, as plain data: `data.json` of a run. A file has its size, time and digest."""
        record = {
            "dataset": self.name if self.folder else self.builder.info.full_name,
            "fingerprint": self.fingerprint,
            "splits": self.splits,
            "classes": self.classes,
        }
        if self.folder:
            record["images"] = self.folder.listing.counts(self.skipped)
            record["ignored"] = self.folder.listing.ignored
            record["skipped"], record["damaged"] = self.skipped, self.damaged
            record["files"] = {name: [*stat, self.digests[name]] for name, stat in self.folder.stats.items()}
        return record


def check_store(data_dir: str) -> None:
    """Tells where TFDS could not reach a remote store, through TensorFlow's file systems, such as gs://bucket."""
    if paths.REMOTE.match(data_dir):
        try:
            tf.io.gfile.exists(data_dir)
        except tf.errors.OpError as error:
            reason = " ".join(error.message.split())[:200]
            raise UserError(f"config.data_dir={data_dir!r} cannot be read: {reason}") from error


def named(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of a name of TFDS."""
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except ValueError as error:  # DatasetNotFoundError, an unknown configuration, or a name that cannot be one
        known = set(tfds.list_builders(with_community_datasets=False))
        close = difflib.get_close_matches(name.split("/")[0], sorted(known))
        hint = f"the closest names are {', '.join(close)}" if close else "expected `digits` or a name of TFDS"
        if pathlib.Path(name).expanduser().is_dir():
            hint = f"for a folder of images write folder:{name}"
        raise UserError(f"unknown dataset {name!r}; {hint}") from error


def prepared(name: str, builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """The builder of the same data, prepared on disk."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS announces its work on stdout, which is for results.
            builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # Whatever TFDS, the network or the disk may raise.
        # TFDS moves a finished folder into place in one step. Should another process have been faster, then ours
        # could not be moved there, and theirs is as good.
        if not builder.data_path.exists():
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"dataset {name!r} is not in {builder.data_dir} and could not be prepared ({reason}); run "
                f"`tfds build {name} --data_dir={builder.data_dir_root}` where there is internet, or point "
                "config.data_dir to a folder that has it"
            ) from error
    return tfds.builder_from_directory(builder.data_dir)


@functools.cache
def keep_tensorflow_off_accelerators() -> None:
    """TensorFlow only reads data here, but would take all memory of the GPUs that JAX is to use."""
    tf.config.set_visible_devices([], "GPU")
