"""Training a model of one's own on batches of one's own, by the step and the loop of `basisnet train`."""

import contextlib
import itertools
import json
import numbers
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import ml_collections
import numpy as np
from flax import nnx

from basisnet_jax import early_exit, models, paths
from basisnet_jax.configs import default, ranges
from basisnet_jax.distributed import partition
from basisnet_jax.early_exit import Rule
from basisnet_jax.errors import UserError
from basisnet_jax.inference import by_class, evaluate, predictions
from basisnet_jax.training import loop
from basisnet_jax.training.step import build_step
from basisnet_jax.workdir import checkpoint, runs

OWN_BATCHES = "batches given to fit"  # the data set in config.json: no command finds it
Batch = dict[str, np.ndarray]  # "image" [B, ...] and "label" [B]


def fit(
    model: nnx.Module,
    batches: Iterable[Batch] | Callable[[int], Iterable[Batch]],
    num_steps: int,
    *,
    validation: Iterable[Batch] | Callable[[], Iterable[Batch]] | None = None,
    workdir: str | os.PathLike | None = None,
    optimizer: str = "adamw",
    learning_rate: float = 3e-3,
    warmup_steps: int | None = None,
    weight_decay: float = 0.02,
    clip_norm: float = 1.0,
    label_smoothing: float = 0.0,
    preview_weight: float = 1.0,
    balance_weight: float = 0.0,
    ema_decay: float = 0.0,
    max_drop: float = 0.003,
    log_every: int = 100,
    validate_every: int | None = None,
    seed: int = 0,
) -> dict:
    """Trains the model in place, and says how good it is on the validation batches.

    Bases, coefficient head and clipping are treated as `training/optimizer.py` says. Uint8 images are normalized by
    `model.preprocess`; images of floats, and other inputs, are given to the model as they are.

    Args:
      model: images to logits [B, classes], or a `BasisNet`; it may be a network of one's own.
      batches: {"image": [B, ...], "label": [B]}, all of one size, as NumPy or JAX arrays: an iterator, a generator or a
        data loader, which begins anew when it ends; or a function of the number of steps done, by which a run that is
        resumed goes on with the batch that it would have seen.
      num_steps: how many are taken in all.
      validation: batches, the last of which may be smaller; gone over several times, so a list or a function.
      workdir: where checkpoints (every `validate_every` steps, the newest three and the best), `metrics.jsonl`,
        TensorBoard events and `evaluation.json` go. If it has checkpoints, training goes on from the newest. `load`
        reads it, if the model is by `create_model` or `load`.
      optimizer: "adamw" or "rmsprop"; `learning_rate` is the peak, after `warmup_steps` (None: a twentieth of
        `num_steps`) it decays to 0 by a cosine.
      weight_decay: of kernels only.
      clip_norm: of the gradient of each stage; 0: none.
      label_smoothing, preview_weight, balance_weight: as of `basisnet_jax.loss`.
      ema_decay: of the average of the weights that is validated and left in the model; 0: the weights themselves.
      max_drop: top-1, as a fraction, that early termination may cost: by it the threshold is chosen on `validation`
        and left in `model.rule`.
      log_every, validate_every: in steps; None: validation after the last one only.
      seed: of dropout.

    Returns:
      As `evaluation.json` of the command, as far as it applies: "top1", "preview_top1", "loss", "early_termination",
      "madds", ...; without `validation` the last means of training, "loss" and "top1".

    Raises:
      UserError: a number is out of its range (the message names the field of a config that holds it); the loss
        diverged; or the workdir is in use or cannot be written.
      ValueError: a batch is not of that form, a label is not a class of the model, or an argument is out of its range.

    Example:
      >>> network = nnx.Sequential(lambda x: x.mean(axis=(1, 2)), nnx.Linear(1, 2, rngs=nnx.Rngs(0)))
      >>> labels = np.arange(8) % 2
      >>> images = np.float32(labels[:, None, None, None] * np.ones((1, 4, 4, 1)))
      >>> batch = {"image": images, "label": labels}
      >>> fit(network, [batch], 100, learning_rate=0.1, validation=[batch])["top1"]
      1.0
    """
    if isinstance(validation, Iterator):
        raise ValueError("validation is an iterator, which ends after one pass: expected a list or a function")
    every = num_steps if validate_every is None else validate_every
    for name, value in (("num_steps", num_steps), ("log_every", log_every), ("validate_every", every)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name}={value!r}, expected a whole number above 0")
    examples, given = peek(batches)
    normalize = normalization(model, examples["image"])
    functions = models.functional(model)
    config = default.get_config()
    config.seed, config.batch_size, config.num_epochs = seed, len(examples["label"]), float(num_steps)
    config.num_classes = num_classes(functions, normalize, examples["image"])
    config.label_smoothing, config.ema_decay = label_smoothing, ema_decay
    config.preview_loss_weight, config.balance_loss_weight = preview_weight, balance_weight
    config.optimizer.update(
        name=optimizer,
        learning_rate=learning_rate,
        warmup_epochs=float(num_steps // 20 if warmup_steps is None else warmup_steps),
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )
    if optimizer == "adamw":
        config.optimizer.update(second_moment_decay=0.999, epsilon=1e-8)
    config.max_drop, config.log_every_steps = max_drop, log_every
    config.checkpoint_every_steps = every
    try:
        ranges.check(config)
    except UserError as error:
        raise ValueError(f"fit: {error}") from error
    mesh = partition.create_mesh(config.batch_size)
    built = build_step(config, functions, steps_per_epoch=1, mesh=mesh, normalize=normalize)  # lengths are in steps
    state = built.create_state(functions.params, functions.batch_stats)
    per_example = evaluate.make_per_example(functions, normalize, partition.create_mesh(1, devices=jax.devices()[:1]))

    def held_out(state):
        weights = jax.device_get((state.ema_params, state.ema_batch_stats))
        given = validation() if callable(validation) else validation
        return per_example(*weights, labelled(given, config.num_classes))

    first_step = 0
    with contextlib.ExitStack() as stack:
        checkpoints, write = None, lambda *_: None
        if workdir is not None:
            workdir = paths.of_run(os.fspath(workdir))
            stack.enter_context(runs.told_when_full(workdir))
            stack.enter_context(runs.locked(workdir))
            claim(model, workdir)
            checkpoints = stack.enter_context(contextlib.closing(checkpoint.manager(workdir, keep=3)))
            if first_step := checkpoints.latest_step() or 0:
                state = checkpoint.restore(checkpoints, first_step, state)
            write = stack.enter_context(contextlib.closing(runs.Log(workdir, first_step))).write
        report = {}
        if first_step < num_steps:
            state, last = loop.run(
                built,
                state,
                partition.on_device(labelled(given(first_step), config.num_classes), mesh),
                (jax.random.key(seed),),
                first_step=first_step,
                total_steps=num_steps,
                every=loop.Every(log_every, every, every),
                log=lambda step, split, scalars: (report.update(scalars), write(step, split, scalars)),
                checkpoints=checkpoints,
                validate=(lambda step, state: evaluate.summarize(held_out(state))) if validation is not None else None,
            )
            if last < num_steps:
                raise UserError(f"stopped after step {last} of {num_steps}; the same call goes on from there")
        weights = jax.device_get((state.ema_params, state.ema_batch_stats))
        nnx.update(model, *map(nnx.State, weights))
        model.eval()
        if validation is not None:
            rows = held_out(state)
            names = [*(getattr(model, "names", None) or map(str, range(config.num_classes)))]
            report = validated(model, rows, examples["image"].shape[1:], max_drop, num_steps, names)
            if workdir is not None:
                evaluate.write(report, rows, getattr(model, "rule", None), names, workdir)
    return report


def claim(model: nnx.Module, workdir: str) -> None:
    """Writes what `load` makes the model of, if it is one of a config; refuses the workdir of another model."""
    if text := getattr(model, "config_json", None):
        config = ml_collections.ConfigDict(json.loads(text))
        config.dataset = OWN_BATCHES
        runs.check(config, workdir)
        runs.claim(config, workdir)
        if model.names:
            runs.write_classes(workdir, list(model.names))


def peek(batches) -> tuple[Batch, Callable[[int], Iterator[Batch]]]:
    """The first batch, and a function of the steps done to all batches from there on, without end."""
    if callable(batches):
        return checked(next(iter(batches(0)), None)), lambda first_step: map(checked, batches(first_step))
    iterator = iter(batches)
    first = checked(next(iterator, None))

    def given(first_step):
        yield from map(checked, itertools.chain([first], iterator))
        while not isinstance(batches, Iterator):
            yield from map(checked, batches)
        raise ValueError(
            "the batches ended before the last step: give an iterable that can begin anew, or more of them"
        )

    return first, given


def checked(batch: Batch | None) -> Batch:
    if batch is None:
        raise ValueError("no batches given")
    if not isinstance(batch, dict) or not {"image", "label"} <= batch.keys():
        kind = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(f'a batch of {kind}, expected {{"image": [B, ...], "label": [B]}}')
    image, label = (np.asarray(batch[name]) for name in ("image", "label"))
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer) or len(image) != len(label):
        raise ValueError(f"images {image.shape} with labels {label.shape} of {label.dtype}, expected integers [B]")
    return {"image": image, "label": label.astype(np.int32)}


def labelled(batches: Iterator[Batch], classes: int) -> Iterator[Batch]:
    """The batches; a label that is no class would have no loss at all, so it is refused."""
    for batch in batches:
        labels = np.asarray(batch["label"])
        if len(wrong := labels[(labels < 0) | (labels >= classes)]):
            raise ValueError(f"label {wrong[0]}, expected one of 0 to {classes - 1}")
        yield batch


def normalization(model: nnx.Module, images: np.ndarray) -> Callable:
    """What makes of a batch's images the model's input."""
    if images.dtype != np.uint8:
        return predictions.unchanged
    seen = getattr(model, "preprocess", None)
    if seen is None:
        raise ValueError("images of uint8, but the model has no `preprocess`: give floats, or set model.preprocess")
    if images.shape[1:] != seen.shape:
        raise ValueError(f"images {images.shape[1:]}, expected {seen.shape}: prepare them by model.preprocess(image)")
    return predictions.normalizer(seen)


def num_classes(functions: models.Functional, normalize: Callable, images: np.ndarray) -> int:
    def logits(params, batch_stats, images):
        return functions.evaluate(params, batch_stats, normalize(images)).logits

    return jax.eval_shape(logits, functions.params, functions.batch_stats, images).shape[-1]


def validated(
    model: nnx.Module, rows: dict, shape: tuple[int, ...], max_drop: float, step: int, names: list[str]
) -> dict:
    """The report on the validation examples; of a BasisNet the threshold is chosen and left in `model.rule`."""
    costs = predictions.costs_of(model, shape)
    report = {**evaluate.summarize(rows), "madds": max(costs.values()), "step": step, "split": "validation"}
    if "preview" in costs:
        pair = costs["preview"], costs["specialist"]
        threshold = early_exit.choose(evaluate.curve(rows, pair), max_drop)
        model.rule = Rule(threshold, chosen_on="validation")
        report |= {
            "preview_madds": costs["preview"],
            "early_termination": evaluate.early_termination(rows, pair, model.rule),
        }
    return report | by_class.describe(rows["label"], by_class.answers(rows, getattr(model, "rule", None)), names)
