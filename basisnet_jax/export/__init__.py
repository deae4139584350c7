"""Exports: a run's model in a format that other programs run, its two stages kept apart.

An image whose preview is confident never pays for the specialist: each stage is a function of its own in every format.
Beside the format's files stands `model.json`: class names, preprocessing, when an image stops, multiply-adds, SHA-256
of every file, and what verification measured. Nothing is in place before the exported files, run on real images, gave
what JAX gives.
"""

import importlib.metadata
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from basisnet_jax import early_exit, madds
from basisnet_jax.classifier import Classifier
from basisnet_jax.early_exit import Answers
from basisnet_jax.errors import UserError
from basisnet_jax.export import onnx, safetensors, saved_model, stablehlo, stages, tflite, verify
from basisnet_jax.export.output import output_folder
from basisnet_jax.inference import predictions
from basisnet_jax.preprocess import Preprocess
from basisnet_jax.workdir import checkpoint, files, runs

FORMATS = {
    "tflite": tflite,
    "onnx": onnx,
    "saved_model": saved_model,
    "stablehlo": stablehlo,
    "safetensors": safetensors,
}
ONE_THREAD = ("tflite", "onnx")  # whose runtimes can be told to take no more
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 0.2}  # by precision, relative to the largest logit
PREPROCESSING = (
    "image_size",
    "channels",
    "resize",
    "eval_crop",
)  # of an image, before the functions see it


def export(
    workdir: str,
    format: str,
    output: str,
    *,
    which: str | None = None,
    precision: str = "float32",
    threshold: float | None = None,
    tolerance: float | None = None,
    images: str | None = None,
) -> dict:
    """Writes the model of a run to the folder `output`, verified, and returns its `model.json`.

    Args:
      format: one of `FORMATS`.
      output: does not exist yet or is empty.
      which: a step, "best" (on the validation split), or None for the newest.
      precision: of the stored weights: "float32" or, for tflite, "float16" or "int8".
      threshold: as for `predict.predict_files`.
      tolerance: how much logits may differ from JAX's, relative to the largest of them, and coefficients and
        confidences absolutely; None: `TOLERANCES`.
      images: an image file or a folder of them to verify on; None takes the validation split, whose labels then also
        tell what the export costs in top-1.

    Raises:
      UserError: an argument is wrong; there is no such run, no rule when images stop, or no image to verify on; the
        exported files differ from JAX by more than the tolerance.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format!r}, expected one of {', '.join(FORMATS)} or specialist")
    precisions = tflite.PRECISIONS if format == "tflite" else ("float32",)
    if precision not in precisions:
        raise UserError(f"--precision={precision!r}, expected {' or '.join(precisions)} for {format}")
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    with output_folder(output) as folder:
        run = runs.load(workdir, which)
        rule = rule_of(run, workdir, threshold)
        examples, labels = verify.examples(run, workdir, images)
        options = {"precision": precision} if format == "tflite" else {}
        extra = FORMATS[format].write(run, rule, folder, **options)
        manifest = describe(run, workdir, rule) | {"format": format, **extra}
        threads = {"threads": 1} if format in ONE_THREAD else {}
        measured = verify.compare(run, rule, FORMATS[format].load(folder, manifest, **threads), examples, labels)
        largest = max(measured["largest_difference"].values())
        if not largest <= tolerance:
            stage = max(measured["largest_difference"], key=measured["largest_difference"].get)
            raise UserError(
                f"the exported {stage} differs from JAX by {largest:.2g}, more than the tolerance of {tolerance:g} "
                f"(--tolerance); nothing was written"
            )
        written = files.checksums(folder)
        sizes = {name: (folder / name).stat().st_size for name in written}
        measured |= {"one_core": measured["one_core"] or bool(threads), "tolerance": tolerance, "bytes": sizes}
        manifest |= {"verification": measured, "files": written}
        files.write_json(folder / "model.json", manifest)
    return manifest


def rule_of(run: runs.Run, workdir: str, threshold: float | None) -> early_exit.Rule:
    """When an image stops: what was given, calibrated or, by evaluation, chosen."""
    if run.config.model != "basisnet":
        return early_exit.Rule()
    rule = runs.rule(workdir, run.step, threshold)
    if rule is None:
        raise UserError(
            f"{workdir} does not say when an image of step {run.step} stops at the preview: run `basisnet calibrate "
            f"--workdir={workdir} --checkpoint={run.step} --max_drop=0.003`, or give --threshold"
        )
    return rule


def describe(run: runs.Run, workdir: str, rule: early_exit.Rule) -> dict:
    """What `model.json` says of a model, whatever the format."""
    config = run.config
    items = run.items
    costs = {"network": madds.total(items)}
    early = {}
    if config.model == "basisnet":
        costs = {"preview": madds.preview_only(items), "specialist": madds.total(items)}
        early = {"early_exit": rule._asdict()}
    return {
        "model": config.model,
        "step": run.step,
        "checkpoint": checkpoint.fingerprint(workdir, run.step),
        "classes": runs.load_classes(workdir, config.num_classes),
        # The central square, its side `eval_crop` of the shorter side, is resized with antialiasing, rounded to uint8.
        # Mean and standard deviation are part of the exported functions.
        "preprocessing": {field: config[field] for field in PREPROCESSING},
        "stages": {
            name: {
                "inputs": {key: {"shape": a.shape, "dtype": str(a.dtype)} for key, a in inputs.items()},
                "madds": costs[name],  # of an image whose answer this stage gives
            }
            for name, inputs in stages.inputs(run.model, run.preprocess).items()
        },
        **early,
        "versions": {name: importlib.metadata.version(name) for name in ("basisnet_jax", "jax", "flax")},
    }


class Exported(NamedTuple):
    """An export read back."""

    manifest: dict
    rule: early_exit.Rule
    functions: dict[str, Callable]  # by stage: arrays [1, ...] -> named arrays

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(**self.manifest["preprocessing"])

    @property
    def costs(self) -> dict[str, int]:
        """Multiply-adds of an image whose answer a stage gives; the stage of those that go on comes first."""
        costs = {name: stage["madds"] for name, stage in self.manifest["stages"].items()}
        return {name: costs[name] for name in ("network", "specialist", "preview") if name in costs}

    def answers(self, images: Iterable[np.ndarray], rule: early_exit.Rule | None = None) -> Iterator[Answers]:
        """The answers for uint8 images [H, W, C] that are prepared already, one at a time; `rule`: another one."""
        rule = rule or self.rule
        first, *others = self.manifest["stages"]
        for image in images:
            outputs = self.functions[first](image[None])
            stopped = np.zeros(1, bool)
            if others:
                stopped = rule.stops(outputs["confidence"])
                if not stopped[0]:
                    outputs = self.functions[others[0]](image[None], outputs["coefficients"])
            yield Answers(np.asarray(outputs["logits"]), stopped)

    def predict(self, images: Sequence[np.ndarray], *, threshold: float | None = None) -> predictions.Prediction:
        """As `basisnet_jax.predict`; an export runs one image at a time."""
        rule = self.rule if threshold is None else self.rule._replace(threshold=threshold)
        found = [*self.answers(map(self.preprocess, images), rule)]
        logits, stopped = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return predictions.prediction(logits, stopped, self.costs, self.manifest["classes"])


def load(directory: str) -> Exported:
    """The export in a directory, its files whole.

    Raises:
      UserError: there is none, or a file of it is missing, damaged or of another format.
    """
    manifest, rule = read_manifest(directory)
    return Exported(manifest, rule, opened(directory, manifest, FORMATS[manifest["format"]].load))


def load_model(directory: str) -> Classifier | Exported:
    """The model of an export to safetensors, in evaluation mode; of another format what calls its functions."""
    manifest, rule = read_manifest(directory)
    if manifest["format"] != "safetensors":
        return load(directory)
    model = opened(directory, manifest, safetensors.model)
    model.names, model.rule = tuple(manifest["classes"]), rule if "early_exit" in manifest else None
    return model


def opened(directory: str, manifest: dict, read: Callable):
    """What `read` makes of an export; the runtimes have exceptions of their own for what does not fit together."""
    try:
        return read(pathlib.Path(directory), manifest)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0][:200]
        raise UserError(f"{directory} cannot be read as {manifest['format']}: {reason}") from error


def read_manifest(directory: str) -> tuple[dict, early_exit.Rule]:
    """`model.json` and the rule in it, once all files are found to be what was exported."""
    folder = pathlib.Path(directory)
    path = folder / "model.json"
    try:
        manifest = json.loads(path.read_text())
        rule = check(manifest)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {directory} is not an export of `basisnet export`") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    if damaged := files.damaged(folder, manifest["files"]):
        raise UserError(f"{folder / damaged} is not what was exported; export again")
    return manifest, rule


def check(manifest: dict) -> early_exit.Rule:
    """Raises where a field is missing or is not what `export` writes there; else the rule when an image stops."""
    if (format := manifest["format"]) not in FORMATS:
        raise ValueError(f"format {format!r}")
    stages, seen = manifest["stages"], manifest["preprocessing"]
    if list(stages) not in (["network"], ["preview", "specialist"]):
        raise ValueError(f"stages {list(stages)}")
    shape = [seen["image_size"], seen["image_size"], seen["channels"]]
    if any(stage["inputs"]["images"]["shape"] != shape or stage["madds"] < 0 for stage in stages.values()):
        raise ValueError(f"images of another shape than {shape}, to which they are preprocessed")
    if seen.keys() != set(PREPROCESSING) or not isinstance(seen["resize"], str) or not 0 < seen["eval_crop"] <= 1:
        raise ValueError(f"preprocessing {seen}")
    if not isinstance(names := manifest["classes"], list) or not all(isinstance(name, str) for name in names):
        raise ValueError("classes that are no list of names")
    if not dict(manifest["files"]):
        raise ValueError("it names no files")
    if "preview" not in stages:
        return early_exit.Rule()
    rule = early_exit.Rule(**manifest["early_exit"])
    if math.isfinite(float(rule.threshold)) and rule.temperature > 0 and rule.criterion in early_exit.CRITERIA:
        return rule
    raise ValueError(f"early_exit {manifest['early_exit']}")


def table(manifest: dict) -> str:
    """The export as a few lines."""
    found = manifest["verification"]
    size = sum(found["bytes"].values()) / 2**20
    lines = [f"{manifest['format']}, {manifest.get('precision', 'float32')}, step {manifest['step']}: {size:.2f} MiB"]
    for stage, difference in found["largest_difference"].items():
        latency = f"{found['latency_ms'][stage]:8.2f} ms an image"
        lines.append(f"{stage:<12}{latency}, differs from JAX by {difference:.2g} at most")
    same = f"{found['same_labels']} of {found['num_images']} images get the label that JAX gives"
    if found["top1"] is not None:
        same += f"; top-1 {found['top1']:.4f}, JAX {found['top1_jax']:.4f}"
    cores = "one core" if found["one_core"] else "all cores"
    lines += [same, f"ms: the median of {verify.CALLS} calls on {cores}"]
    if "weight_bytes" in manifest:
        sizes = (f"{name} {size / 2**20:.2f} MiB" for name, size in manifest["weight_bytes"].items())
        lines.append(f"weights alone, computed, by --precision: {', '.join(sizes)}")
    return "\n".join(lines)
