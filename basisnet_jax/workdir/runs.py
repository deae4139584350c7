"""What a run leaves in its workdir besides checkpoints: `config.json`, `classes.json` (names of the classes, a list in
the order of the labels), `metrics.jsonl`, TensorBoard events, `early_exit.json` (of `basisnet calibrate`), and
`data.json`, which `data_record` describes.

`load` reads a finished or imported run back: its config, its model and its averaged weights.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

import jax
import ml_collections
from absl import logging
from clu import metric_writers
from flax import nnx

from basisnet_jax import early_exit, madds, models, paths, preprocess
from basisnet_jax.configs import default, ranges
from basisnet_jax.errors import UserError
from basisnet_jax.models import Functional
from basisnet_jax.workdir import checkpoint, files, stores

# What was done before these fields existed, where it differs from today's default.
BEFORE = {"basis": {"init": "independent"}, "optimizer": {"match_static": False, "coefficient_rate": 0.0}}
# Fields that may change when a run continues: they change memory, or the rounding of sums over devices.
FREE = {"remat_kernels", "reduce_dtype"}


class Run(NamedTuple):
    """A run read back: `functions.evaluate(params, batch_stats, images)` computes its outputs."""

    config: ml_collections.ConfigDict
    model: nnx.Module  # with the weights in it, in evaluation mode
    functions: Functional
    params: dict  # averaged (EMA)
    batch_stats: dict
    step: int

    @property
    def preprocess(self) -> preprocess.Preprocess:
        return preprocess.of(self.config)

    @property
    def items(self) -> list[madds.Item]:
        """The multiply-adds of one image."""
        return madds.count(self.model, self.preprocess.shape)


def load(workdir: str, which: str | None = None) -> Run:
    """The run in `workdir` with the averaged weights of a step, of the "best" on validation, or (None) the newest.

    Raises:
      UserError: no run or no such checkpoint is there, or it cannot be read.
    """
    config = load_config(workdir)
    model = models.create(config)
    functions = models.functional(model)
    like = {"ema_params": functions.params, "ema_batch_stats": functions.batch_stats}
    with checkpoint.manager(workdir) as checkpoints:
        step = checkpoint.pick(checkpoints, which)
        state = checkpoint.restore(checkpoints, step, like)
    params, batch_stats = state["ema_params"], state["ema_batch_stats"]
    nnx.update(model, nnx.State(params), nnx.State(batch_stats))
    return Run(config, model, functions, params, batch_stats, step)


def begun(workdir: str) -> bool:
    """Whether a run is there that can go on. Without a checkpoint nothing is lost: the workdir belongs to nobody."""
    return files.exists(os.path.join(workdir, "config.json")) and checkpoint.newest(workdir) is not None


def check_writable(workdir: str) -> None:
    """Tells before any work that its results could not be written."""
    if jax.process_index() == 0 and (reason := files.unwritable(workdir)):
        raise UserError(f"workdir {workdir} cannot be written: {reason}")


def check(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Refuses a workdir in which a run of another config has begun; those of `FREE` may differ."""
    if not begun(workdir):
        return
    ours, theirs = flat(config.to_dict()), flat(load_config(workdir).to_dict())
    if differing := _differing(ours, theirs):
        fields = "; ".join(f"{name}: given {ours.get(name)}, there {theirs.get(name)}" for name in differing)
        flags = " ".join(f"--config.{name}={theirs[name]}" for name in differing if name in theirs)
        raise UserError(
            f"workdir {workdir} belongs to another config ({fields}); use another --workdir, or go on with {flags}"
        )


def _differing(ours: dict, theirs: dict) -> list[str]:
    names = (ours | theirs).keys() - FREE
    return sorted(name for name in names if ours.get(name) != theirs.get(name))


def claim(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Makes `workdir` and writes `config.json` to it, unless a run has begun there.

    What another config left that never came to a checkpoint is replaced, the names of its classes included.
    """
    if begun(workdir) or jax.process_index() > 0:
        return
    with told_when_unwritable(workdir):
        files.make_folder(workdir)
        if files.exists(os.path.join(workdir, "config.json")) and _differing(
            flat(config.to_dict()), flat(load_config(workdir).to_dict())
        ):
            files.at(os.path.join(workdir, "classes.json")).unlink(missing_ok=True)
        files.write_json(os.path.join(workdir, "config.json"), config.to_dict())


def write_classes(workdir: str, names: list[str]) -> None:
    """Writes `classes.json`, unless it is there already: names that a user has put in it stay."""
    path = os.path.join(workdir, "classes.json")
    if not files.exists(path) and jax.process_index() == 0:
        with told_when_unwritable(workdir):
            files.write_json(path, names)


def load_classes(workdir: str, num_classes: int) -> list[str]:
    """The names of the classes by label; without a `classes.json`, the labels themselves."""
    path = os.path.join(workdir, "classes.json")
    if not files.exists(path):
        return [str(label) for label in range(num_classes)]
    try:
        with files.reading(path) as file:
            names = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is not a JSON list of {num_classes} names, which is the number of classes")
    return names


def load_rule(workdir: str, step: int) -> early_exit.Rule | None:
    """When images stop at the preview, as `basisnet calibrate` found it for the checkpoint of a step, or None.

    Raises:
      UserError: `early_exit.json` cannot be read, or it is of another checkpoint.
    """
    path = os.path.join(workdir, "early_exit.json")
    try:
        with files.reading(path) as file:
            found = json.load(file)
        rule = early_exit.Rule(
            float(found["threshold"]), found["criterion"], float(found["temperature"]), "early_exit.json"
        )
        if rule.criterion not in early_exit.CRITERIA:
            raise ValueError(f"criterion {rule.criterion!r}, expected one of {', '.join(early_exit.CRITERIA)}")
        of_step, of_checkpoint, target = found["step"], found["checkpoint"], dict(found["target"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if (of_step, of_checkpoint) != (step, checkpoint.fingerprint(workdir, step)):
        given = [f"--{name}={value}" for name, value in {"checkpoint": step, **target}.items()]
        given += [f"--criterion={rule.criterion}"] if rule.criterion != early_exit.CRITERIA[0] else []
        given += ["--temperature_scaling"] if rule.temperature != 1 else []
        training = " of another training" if of_step == step else ""
        command = " ".join([f"basisnet calibrate --workdir={workdir}", *given])
        raise UserError(
            f"{path} calibrates step {of_step}{training}, not this step {step}: run `{command}`, or remove it"
        )
    return rule


def rule(workdir: str, step: int, threshold: float | None) -> early_exit.Rule | None:
    """When an image stops: what is given, else what was calibrated, else what evaluation went by, else None."""
    if threshold is not None:
        return early_exit.Rule(threshold)
    return load_rule(workdir, step) or evaluated_rule(workdir, step)


def evaluated_rule(workdir: str, step: int) -> early_exit.Rule | None:
    """The rule in `evaluation.json`, which evaluation chose or was given, if that is of this step."""
    path = os.path.join(workdir, "evaluation.json")
    if not files.exists(path):
        return None
    try:
        with files.reading(path) as file:
            report = json.load(file)
        if report["step"] != step or "early_termination" not in report:
            return None
        early = report["early_termination"]
        fields = early_exit.Rule._fields
        rule = early_exit.Rule(**{field: early[field] for field in fields if field in early})
        return rule._replace(threshold=float(rule.threshold))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Makes the workdir, and refuses a second run in it while this one lasts.

    The system drops the lock when the process ends, however it ends: what a killed run leaves is an unlocked file.
    """
    if jax.process_index() > 0:
        yield
        return
    if files.is_remote(workdir):
        with stores.locked(workdir):
            yield
        return
    with told_when_unwritable(workdir):
        os.makedirs(workdir, exist_ok=True)
        file = open(os.path.join(workdir, "lock"), "a+")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"workdir {workdir} is in use by {file.read().strip() or 'another run'}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def told_when_full(workdir: str) -> Iterator[None]:
    """A full disk, or a bucket that refuses, ends the run in one line, whatever part of it was writing."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := files.full_disk(error) or files.refused_by_store(error)) is None:
            raise
        if files.is_remote(workdir):  # which may not answer now
            saved = "what was saved is there"
        elif (step := checkpoint.newest(workdir)) is None:
            saved = "no checkpoint was saved yet"
        else:
            saved = f"the checkpoint of step {step} is whole"
        message = f"workdir {workdir} cannot be written: {reason}; {saved}, and the same command goes on from there"
        raise UserError(message) from error


def load_config(workdir: str) -> ml_collections.ConfigDict:
    """The resolved config of the run in `workdir`; a field that did not exist when it began does what was done then."""
    path = os.path.join(workdir, "config.json")
    try:
        with files.reading(path) as file:
            return ml_collections.ConfigDict(paths.with_absolute(whole(json.load(file))))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {workdir} is not a workdir of `basisnet train`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def whole(given: dict) -> dict:
    """A config that was written to a file, with the fields that did not exist then; they do what was done then."""
    defaults = over(json.loads(default.get_config().to_json()), BEFORE)
    sections = [name for name, value in defaults.items() if isinstance(value, dict)]
    if not isinstance(given, dict) or not all(isinstance(given.get(name, {}), dict) for name in sections):
        raise ValueError("it holds no config")
    own = [name for name in ranges.SECTIONS if ranges.is_own(given.get(name, {}).get("name"))]  # they have no defaults
    return {**over(defaults, given), **{name: given[name] for name in own}}


@contextlib.contextmanager
def told_when_unwritable(workdir: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error


def over(defaults: dict, given: dict) -> dict:
    """`given`, and what it does not state from `defaults`, in every dict inside as well."""
    both = [name for name in defaults if isinstance(defaults[name], dict) and isinstance(given.get(name), dict)]
    return {**defaults, **given, **{name: over(defaults[name], given[name]) for name in both}}


def flat(tree: dict) -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}, tuples as the lists that JSON makes of them."""
    leaves = ranges.flat(tree)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in leaves.items()}


class Log:
    """`metrics.jsonl` (one object a logged step: step, split, scalars) and TensorBoard events, through clu."""

    def __init__(self, workdir: str, first_step: int):
        self.path = os.path.join(workdir, "metrics.jsonl")
        self.writes = jax.process_index() == 0
        self.tensorboard = None
        if not self.writes:
            return
        if files.exists(self.path):  # what a killed run logged after its last checkpoint will be logged again
            with files.reading(self.path) as file:
                kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= first_step]
            with files.replacing(self.path) as file:
                file.writelines(kept)
        with self.events():
            # Not clu's AsyncWriter: a full disk is met here, where it is handled, and not in a thread that prints it.
            self.tensorboard = metric_writers.SummaryWriter(workdir)

    @contextlib.contextmanager
    def events(self) -> Iterator[None]:
        """TensorFlow writes the events. What it cannot reach of a bucket, with its own login, is told and left out."""
        try:
            yield
        except Exception as error:
            if not files.is_remote(self.path):
                raise
            self.tensorboard = None
            logging.warning("no TensorBoard events, metrics.jsonl has the same numbers: %s", stores.words(error))

    def write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        if self.writes:
            files.append(self.path, json.dumps({"step": step, "split": split, **scalars}))
        if self.tensorboard:
            with self.events():
                self.tensorboard.write_scalars(step, {f"{split}/{name}": value for name, value in scalars.items()})

    def close(self) -> None:
        if self.tensorboard:
            with self.events():
                self.tensorboard.close()
