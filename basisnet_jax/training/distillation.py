"""Knowledge distillation (Hinton et al. 2015): a teacher's distribution over the classes as a second target.

The teacher is the run in a workdir, trained or imported, with its own input size and normalisation. Two ways:
- It runs in every step, without gradient, on the very images that the student sees, augmented and mixed.
- Its predictions on the plain training images are computed once, kept in a folder, and read by example id: all runs
  of a sweep share them and pay nothing for the teacher. Mixed images get mixed predictions.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from basisnet_jax import basisnet
from basisnet_jax.data.pipeline import Batches, Dataset
from basisnet_jax.distributed import partition
from basisnet_jax.errors import UserError
from basisnet_jax.preprocess import Preprocess
from basisnet_jax.workdir import files, runs

_ID_BYTES = 128  # of TFDS's example ids, such as b"imagenet2012-train.tfrecord-00012-of-01024__345"


class Teacher(NamedTuple):
    seen: Preprocess  # what it sees of an image
    name: str  # workdir and step
    weights: tuple  # an argument of the train step: as a constant it would be compiled in, once for every teacher
    logits: Callable  # (weights, pixels [B, H, W, C] in 0..255) -> [B, classes], float32


def load(fields, num_classes: int, channels: int) -> Teacher | None:
    """The teacher that `config.distillation`, given as `fields`, names; None if it names none.

    Raises:
      UserError: the run cannot be read, or its classes or channels are not the student's.
    """
    if not fields.teacher:
        return None
    run = runs.load(fields.teacher)
    if run.config.num_classes != num_classes:
        theirs = run.config.num_classes
        raise UserError(f"the teacher in {fields.teacher} has {theirs} classes, expected {num_classes}")
    if run.config.channels < channels:
        raise UserError(
            f"the teacher in {fields.teacher} sees {run.config.channels} channel, the images have {channels}"
        )

    def logits(weights, pixels):
        pixels = jnp.broadcast_to(pixels, (*pixels.shape[:-1], run.config.channels))  # grey to RGB
        images = run.preprocess.normalize(basisnet.resize(pixels, run.config.image_size))
        return run.functions.evaluate(*weights, images).logits.astype(jnp.float32)

    place = fields.teacher if files.is_remote(fields.teacher) else os.path.realpath(fields.teacher)
    name = f"{place} step {run.step}"
    return Teacher(run.preprocess, name, (run.params, run.batch_stats), logits)


def with_stored(batches: Batches, data: Dataset, teacher: Teacher, cache: str) -> Batches:
    """The batches with "teacher", float16 logits [b, classes], in the place of "id"; `cache` as for `stored`."""
    folder = stored(data, teacher, cache)
    ids, logits = (np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r") for name in ("ids", "logits"))
    order = np.argsort(ids)
    ids = ids[order]
    for batch in batches:
        wanted = batch.pop("id").astype(ids.dtype)
        places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        if np.any(ids[places] != wanted):
            raise UserError(f"{folder} has no prediction for example {wanted[ids[places] != wanted][0]!r}: remove it")
        yield {**batch, "teacher": logits[order[places]]}


def stored(data: Dataset, teacher: Teacher, cache: str) -> str:
    """The folder in `cache` (`config.distillation.cache`) with the teacher's predictions on the training split.

    They are computed, at the teacher's own image size and crop, unless they are there. The folder's name follows from
    teacher and data, so runs that differ in anything else share it. All processes must see the same file system.
    """
    about = {
        "teacher": teacher.name,
        "data": data.fingerprint,
        "train_split": data.train_split,
        **{field: getattr(teacher.seen, field) for field in ("image_size", "channels", "resize", "eval_crop")},
    }
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    folder = os.path.join(cache, digest)
    if os.path.isdir(folder):
        return folder
    rows = compute(data, teacher)
    if jax.process_index() == 0:
        write(folder, about, rows)
    multihost_utils.sync_global_devices("teacher's predictions are stored")
    return folder


def compute(data: Dataset, teacher: Teacher) -> dict[str, np.ndarray]:
    """{"ids": bytes [n], "logits": float16 [n, classes]} of the plain images of the training split."""
    count = data.num_examples(data.train_split)
    print(f"computing the predictions of the teacher in {teacher.name} on {count} images, once", flush=True)
    mesh = partition.create_mesh(data.eval_batch_size)
    weights = jax.device_put(teacher.weights, partition.replicated(mesh))
    step = lambda weights, images: teacher.logits(weights, images.astype(jnp.float32)).astype(jnp.float16)  # noqa: E731
    step = jax.jit(partition.inside(mesh, step))
    gathered = []
    for batch in data.seen_as(teacher.seen).eval_batches(data.train_split, ids=True):
        # As bytes, because between processes only arrays of numbers travel.
        ids = batch["id"].astype(f"S{_ID_BYTES}").view(np.uint8).reshape(-1, _ID_BYTES)
        batch = partition.global_batch({"image": batch["image"], "mask": batch["mask"], "ids": ids}, mesh)
        rows = {"ids": batch["ids"], "mask": batch["mask"], "logits": step(weights, batch["image"])}
        if jax.process_count() > 1:
            rows = multihost_utils.process_allgather(rows, tiled=True)
        rows = jax.tree.map(np.asarray, rows)
        gathered.append({name: rows[name][rows["mask"].astype(bool)] for name in ("ids", "logits")})
    columns = {name: np.concatenate([rows[name] for rows in gathered]) for name in ("ids", "logits")}
    return {**columns, "ids": np.ascontiguousarray(columns["ids"]).view(f"S{_ID_BYTES}")[:, 0]}


def write(folder: str, about: dict, rows: dict[str, np.ndarray]) -> None:
    """Writes `folder` whole or not at all. If another run has been faster, its folder, which is the same, stays."""
    parent = os.path.dirname(folder)
    try:
        with files.replacing_folder(folder) as new:
            for name, array in rows.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
            files.write_json(new / "about.json", about)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # another run has been faster
            return
        raise UserError(f"config.distillation.cache={parent!r} cannot be written: {error.strerror}") from error
