"""What every field of `default.py` may be, checked before anything is computed or written.

`check(config)` is called for what is about to be trained, counted or planned. A workdir that is read back is not
checked: it keeps what its run began with.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from basisnet_jax import paths
from basisnet_jax.errors import UserError


class Range(NamedTuple):
    """What a field may be: in words, and whether a value is that."""

    expected: str
    holds: Callable[[object], bool]


def number(expected: str, inside: Callable[[float], bool], kind: type = float) -> Range:
    """Finite numbers that are `inside`. Whole numbers are numbers; True and False are not."""
    kinds = int if kind is int else (int, float)
    return Range(
        expected,
        lambda value: (
            isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < math.inf and inside(value)
        ),
    )


def one_of(*choices: str) -> Range:
    named = ", ".join(choice or "''" for choice in choices)
    return Range(f"one of {named}", lambda value: isinstance(value, str) and value in choices)


def optional(of: Range) -> Range:
    return Range(f"{of.expected}, or None", lambda value: value is None or of.holds(value))


def several(of: Range, expected: str) -> Range:
    """A tuple of one or more."""
    return Range(expected, lambda value: isinstance(value, tuple | list) and value and all(map(of.holds, value)))


def text(expected: str, inside: Callable[[str], bool]) -> Range:
    return Range(expected, lambda value: isinstance(value, str) and inside(value))


def is_pattern(value: str) -> bool:
    try:
        return bool(re.compile(value))
    except re.error:
        return False


COUNT = number("a whole number above 0", lambda n: n > 0, int)
WHOLE = number("a whole number not below 0", lambda n: n >= 0, int)
POSITIVE = number("a number above 0", lambda x: x > 0)
NOT_NEGATIVE = number("a number not below 0", lambda x: x >= 0)
SHARE = number("a number from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE = number("a number from 0 to below 1", lambda x: 0 <= x < 1)
PART = number("a number above 0, at most 1", lambda x: 0 < x <= 1)
FLAG = Range("True or False", lambda value: isinstance(value, bool))
TEXT = text("text", lambda value: True)
SPLIT = text("a split, such as 'train[:90%]'", lambda value: bool(value.strip()))
PATTERN = text("a regular expression", is_pattern)
LOCAL = text("a path on this machine, or ''", paths.is_local)
RUN = text("a folder on this machine, gs://BUCKET/FOLDER, or ''", paths.is_of_run)
PLACE = text("a folder, or ''", paths.is_place)
DATASET = text("a name of TFDS, or folder:PATH with a path on this machine", paths.is_dataset)

# A field of a network that is None keeps the network's own value.
NETWORK = {
    "name": text("the name of a network", bool),
    "width": optional(POSITIVE),
    "head_features": optional(COUNT),
    "drop_connect": optional(BELOW_ONE),
    "stem_stride": optional(COUNT),
    "num_stages": optional(COUNT),
    "stage_strides": optional(several(COUNT, "whole numbers above 0, such as (2, 2)")),
    "dropout": optional(BELOW_ONE),
    "padding": optional(one_of("same", "symmetric")),
    "epsilon": optional(POSITIVE),
    "momentum": optional(BELOW_ONE),
}

SECTIONS = ("network", "preview")  # that name a network
RANGES: dict[str, Range] = {
    # Larger seeds lose bits: two of them would give the same run.
    "seed": number("a whole number from -2**31 to 2**31 - 1", lambda n: -(2**31) <= n < 2**31, int),
    "dataset": DATASET,
    "bad_images": one_of("stop", "skip"),
    "data_dir": PLACE,
    "train_split": SPLIT,
    "validation_split": SPLIT,
    "test_split": SPLIT,
    "train_eval_split": TEXT,
    "num_classes": WHOLE,
    "channels": number("1 or 3", lambda n: n in (1, 3), int),
    "image_size": COUNT,
    "mean": several(SHARE, "numbers from 0 to 1, such as (0.5,)"),
    "stddev": several(POSITIVE, "numbers above 0, such as (0.25,)"),
    "shuffle_buffer_size": COUNT,
    "augment.shift": SHARE,
    "augment.rotation": number("degrees from 0 to 180", lambda x: 0 <= x <= 180),
    "augment.zoom": BELOW_ONE,
    "augment.flip": FLAG,
    "augment.crop": SHARE,
    "augment.policy": one_of("", "imagenet", "cifar10", "randaugment"),
    "augment.layers": COUNT,
    "augment.magnitude": NOT_NEGATIVE,
    "augment.erasing": SHARE,
    "augment.mixup": NOT_NEGATIVE,
    "augment.cutmix": NOT_NEGATIVE,
    "resize": one_of("bilinear", "bicubic"),
    "eval_crop": PART,
    "model": one_of("basisnet", "static", "routed"),
    "dtype": one_of("float32", "bfloat16"),
    **{f"{section}.{name}": of for section in SECTIONS for name, of in NETWORK.items()},
    "preview.image_size": COUNT,
    "basis.num_bases": COUNT,
    "basis.layers": PATTERN,
    "basis.init": one_of("copies", "independent"),
    "basis.paths.pointwise": TEXT,  # the choices depend on the layer: models.create checks them
    "basis.paths.depthwise": TEXT,
    "basis.paths.general": TEXT,
    "coefficients.activation": one_of("softmax", "sigmoid"),
    "coefficients.temperature": POSITIVE,
    "coefficients.shared": FLAG,
    "coefficients.top_k": WHOLE,
    "coefficients.initial_temperature": POSITIVE,
    "coefficients.annealing_epochs": NOT_NEGATIVE,
    "coefficients.dropout": BELOW_ONE,
    "coefficients.dropout_per": one_of("example", "batch"),
    "routing.units": PATTERN,
    "routing.hidden": NOT_NEGATIVE,
    "init_from": RUN,
    "preview_init_from": RUN,
    "init_noise": NOT_NEGATIVE,
    "distillation.teacher": RUN,
    "distillation.weight": SHARE,
    "distillation.temperature": POSITIVE,
    "distillation.heads": one_of("both", "final", "preview"),
    "distillation.cache": LOCAL,
    "num_epochs": POSITIVE,
    "batch_size": COUNT,
    "eval_batch_size": COUNT,
    "preview_loss_weight": NOT_NEGATIVE,
    "balance_loss_weight": NOT_NEGATIVE,
    "label_smoothing": BELOW_ONE,
    "optimizer.name": one_of("rmsprop", "adamw"),
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.schedule": one_of("cosine", "exponential"),
    "optimizer.warmup_epochs": NOT_NEGATIVE,
    "optimizer.decay_rate": PART,
    "optimizer.decay_epochs": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip_norm": NOT_NEGATIVE,
    "optimizer.momentum": BELOW_ONE,
    "optimizer.second_moment_decay": BELOW_ONE,
    "optimizer.epsilon": POSITIVE,
    "optimizer.match_static": FLAG,
    "optimizer.coefficient_rate": NOT_NEGATIVE,
    "ema_decay": SHARE,
    "fsdp": WHOLE,
    "reduce_dtype": one_of("float32", "bfloat16"),
    "batch_norm_groups": COUNT,
    "accumulate": COUNT,
    "remat_kernels": optional(FLAG),
    "max_drop": SHARE,
    "log_every_steps": COUNT,
    "eval_every_epochs": POSITIVE,
    "checkpoint_every_steps": COUNT,
    "keep_checkpoints": COUNT,
}


def is_own(name) -> bool:
    """Whether a network's name is PACKAGE.MODULE:FACTORY, which names the user's own network."""
    return isinstance(name, str) and ":" in name


def is_plain(value) -> bool:
    try:
        return bool(json.dumps(value))
    except (TypeError, ValueError):
        return False


def check(config, batch: bool = True) -> None:
    """Raises UserError at the first field that is unknown, missing or out of its range, or contradicts another one.

    Without `batch`, for a model alone, the fields that divide the batch are not checked.
    """
    values = flat(config.to_dict())
    own = [section for section in SECTIONS if is_own(values.get(f"{section}.name"))]  # they have arguments of their own
    for name in values:
        if inside := next((of for of in RANGES if of.startswith(f"{name}.")), None):
            raise wrong(name, values[name], f"its fields, such as config.{inside}")
        if name.partition(".")[0] in own:
            if not is_plain(values[name]):
                raise wrong(name, values[name], "plain data, which config.json can hold")
        elif name not in RANGES:
            raise UserError(unknown(name, RANGES))
    for name, of in RANGES.items():
        if name.partition(".")[0] in own and name != "preview.image_size":
            continue
        if name not in values:
            raise UserError(f"config.{name} is missing; start the config from configs/default.py, which has all fields")
        if not of.holds(values[name]):
            raise wrong(name, values[name], of.expected)
    for name, expected in [*(of_batch(config) if batch else ()), *contradictions(config)]:
        raise wrong(name, values[name], expected)


def wrong(name: str, value, expected: str) -> UserError:
    """The error of a field's value, in one line."""
    return UserError(f"config.{name}={' '.join(repr(value).split())}, expected {expected}")


def of_batch(config) -> Iterator[tuple[str, str]]:
    """The fields that do not divide the batch, and what is expected of them."""
    if config.batch_size % config.accumulate:
        yield "accumulate", f"a divisor of config.batch_size={config.batch_size}"
    share = config.batch_size // config.accumulate
    if share % config.batch_norm_groups:
        yield "batch_norm_groups", f"a divisor of config.batch_size / config.accumulate, which is {share}"


def contradictions(config) -> Iterator[tuple[str, str]]:
    """The other fields that contradict another one, though each is in its range, and what is expected of them."""
    for name in ("mean", "stddev"):
        if len(config[name]) not in (1, config.channels):
            yield name, f"one number, or one for each of config.channels={config.channels}"
    for name in SECTIONS:
        strides, stages = config[name].get("stage_strides"), config[name].get("num_stages")
        if strides and stages and len(strides) != stages:
            yield f"{name}.stage_strides", f"as many numbers as config.{name}.num_stages={stages}"
    if config.coefficients.top_k > config.basis.num_bases:
        yield "coefficients.top_k", f"at most config.basis.num_bases={config.basis.num_bases}, or 0 for all"
    if config.distillation.teacher and config.distillation.heads == "preview" and config.model != "basisnet":
        yield "distillation.heads", f"both or final: config.model={config.model!r} has no preview"


def flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def unknown(field: str, known: Iterable[str]) -> str:
    """One line: no dotted field in `known` has this name, and which fields may be meant."""
    names, last = field.split("."), {name: name.split(".")[-1] for name in known}
    prefixes = [".".join(names[: i + 1]) + "." for i in range(len(names))]
    depth = next(i for i, prefix in enumerate(prefixes) if not any(f"{name}.".startswith(prefix) for name in last))
    close = [name for name in last if last[name] == names[-1]]
    if not close and len(names[-1]) > 1:  # lr
        close = [name for name in last if "".join(word[0] for word in last[name].split("_")) == names[-1]]
    if not close and 0 < depth == len(names) - 1:  # the holder is right: what it does not hold is not meant
        holder = prefixes[depth - 1]
        near = difflib.get_close_matches(names[-1], [last[name] for name in last if name.startswith(holder)], n=1)
        close = [holder + name for name in near]
    elif not close or depth < len(names) - 1:
        close = difflib.get_close_matches(field, close or last, n=1)
    hint = f"did you mean {' or '.join(f'config.{name}' for name in close)}? " if close else ""
    holder = ".".join(["config", *names[:depth]])
    return f"{holder} has no field {names[depth]!r}; {hint}configs/default.py lists all fields"
