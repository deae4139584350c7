"""An export run on real images, compared with JAX: differences, labels, accuracy, time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import models
from basisnet_jax.data import files, folder
from basisnet_jax.early_exit import Rule
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import data_record, runs

MOST = 500  # images of a split that are verified on
BATCH_SIZE = 50  # of these, for JAX
CALLS = 20  # of each stage, for its latency


def examples(
    run: runs.Run, workdir: str, images: str | None, split: str | None = None, most: int | None = MOST
) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 [n, H, W, C] as evaluation sees them, and their labels [n] where they come from a split (of validation)."""
    if images is not None:
        read = list(files.read(run.preprocess, files.list_files([images])[:most]))
        for path, image in read:
            if isinstance(image, Exception):
                raise UserError(folder.unreadable(path, image))
        if not read:
            raise UserError(f"--images={images} names no image")
        return np.stack([image for _, image in read]), None
    found, count = [], 0
    try:
        for batch in data_record.opened(workdir).eval_batches(split or run.config.validation_split):
            real = batch["mask"].astype(bool)
            found.append((batch["image"][real], batch["label"][real]))
            count += np.sum(real)
            if most is not None and count >= most:
                break
    except UserError as error:
        raise UserError(f"{error}; --images=FOLDER verifies on images of your own") from error
    image, label = (np.concatenate(arrays)[:most] for arrays in zip(*found, strict=True))
    return image, label


def compare(
    run: runs.Run, rule: Rule, functions: dict[str, Callable], images: np.ndarray, labels: np.ndarray | None
) -> dict:
    """What `model.json` says under "verification": plain data.

    Args:
      functions: of the export, by stage; a further one, "model", does both with early termination.
      images, labels: of `examples`.
    """
    expected = by_jax(run, rule, images)
    rows = [one(functions, expected, image[None]) for image in images]
    found = jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)
    two_stages = "preview" in expected
    label, label_jax = (final_labels(outputs, rule) for outputs in (found, expected))
    if "model" in functions:
        found["model"] = {"logits": np.concatenate([functions["model"](image[None])["logits"] for image in images])}
        stops = rule.stops(found["preview"]["confidence"])[:, None]
        logits = np.where(stops, expected["preview"]["logits"], expected["specialist"]["logits"])
        expected = expected | {"model": {"logits": logits}}
    return {
        "num_images": len(images),
        "largest_difference": {name: largest_difference(found[name], expected[name]) for name in found},
        "same_labels": int(np.sum(label == label_jax)),
        "top1": None if labels is None else float(np.mean(label == labels)),
        "top1_jax": None if labels is None else float(np.mean(label_jax == labels)),
        "stopped": float(np.mean(rule.stops(found["preview"]["confidence"]))) if two_stages else None,
        "latency_ms": latencies(functions, found, images[:1]),
        "one_core": hasattr(os, "sched_setaffinity"),
    }


def by_jax(run: runs.Run, rule: Rule, images: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The outputs of every stage by the run's own model, in float32: arrays [images, ...] by stage and name."""
    model = nnx.clone(run.model)
    model.set_attributes(dtype=jnp.float32, raise_if_not_found=False)
    evaluated = jax.jit(models.functional(model).evaluate)
    outputs = [
        evaluated(run.params, run.batch_stats, run.preprocess.normalize(images[i : i + BATCH_SIZE]))
        for i in range(0, len(images), BATCH_SIZE)
    ]
    outputs = jax.tree.map(lambda *arrays: np.concatenate(arrays), *outputs)
    if run.config.model != "basisnet":
        return {"network": {"logits": outputs.logits}}
    preview = {
        "logits": np.asarray(rule.scaled(outputs.preview_logits)),
        "confidence": np.asarray(rule.confidence(outputs.preview_logits)),
        "coefficients": outputs.coefficients,
    }
    return {"preview": preview, "specialist": {"logits": outputs.logits}}


def one(functions: dict[str, Callable], stages: Iterable[str], image: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The outputs of every stage for one image, each stage on what the one before it gave."""
    outputs, inputs = {}, [image]
    for name in stages:
        outputs[name] = jax.tree.map(np.asarray, dict(functions[name](*inputs)))
        if name == "preview":
            inputs.append(outputs[name]["coefficients"])
    return outputs


def final_labels(outputs: dict[str, dict[str, np.ndarray]], rule: Rule) -> np.ndarray:
    """[images], with early termination where there is a preview."""
    labels = {name: of_stage["logits"].argmax(-1) for name, of_stage in outputs.items()}
    if "network" in labels:
        return labels["network"]
    return np.where(rule.stops(outputs["preview"]["confidence"]), labels["preview"], labels["specialist"])


def largest_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Of logits relative to the largest of them, of all else absolute; what is not finite differs infinitely."""
    scales = {name: np.abs(array).max() if name == "logits" else 1 for name, array in expected.items()}
    differences = [np.abs(found[name] - array).max() / scales[name] for name, array in expected.items()]
    return float(np.max(np.nan_to_num(differences, nan=np.inf)))


def latencies(functions: dict[str, Callable], found: dict, image: np.ndarray) -> dict[str, float]:
    """Median milliseconds of each function for one image, on one core where the system can keep them there.

    That of "model" is of the branch that this image takes.
    """
    coefficients = {"specialist": [found["preview"]["coefficients"][:1]]} if "preview" in found else {}
    medians = {}
    for name, function in functions.items():
        times = []
        with on_one_core():
            for _ in range(CALLS):
                begin = time.perf_counter()
                jax.block_until_ready(function(image, *coefficients.get(name, [])))
                times.append(time.perf_counter() - begin)
        medians[name] = 1000 * float(np.median(times))
    return medians


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Inside, on Linux, all threads of this process share one core: XLA and TensorFlow keep theirs once they run."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)

    def keep_to(some: set[int]) -> None:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), some)

    try:
        keep_to({min(cores)})
        yield
    finally:
        keep_to(cores)
