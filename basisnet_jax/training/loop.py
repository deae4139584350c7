"""Training: the loop around the step that logs, evaluates, checkpoints and resumes.

`train` is the command: all follows from a config. `run` is the loop itself, which `basisnet_jax.fit` calls too.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from clu import parameter_overview, periodic_actions
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from basisnet_jax import coefficients, madds, models, preprocess
from basisnet_jax.data import pipeline
from basisnet_jax.data.pipeline import Dataset
from basisnet_jax.data.source import Source
from basisnet_jax.distributed import partition, preemption
from basisnet_jax.errors import UserError
from basisnet_jax.inference import evaluate
from basisnet_jax.models import Functional
from basisnet_jax.training import distillation, initial_weights
from basisnet_jax.training.step import Step, TrainState, build_step
from basisnet_jax.workdir import checkpoint, data_record, files, runs


def train(config: ml_collections.ConfigDict, workdir: str, changed_data: bool = False) -> dict:
    """Trains what `config` describes, or goes on with what `workdir` holds, and returns the final evaluation.

    With `changed_data` a run goes on although its images are not those that it began with, if the classes are.

    Raises:
      UserError: `workdir` cannot be written or belongs to another config or other data; the data are not there; the
        loss diverged.
    """
    runs.check_writable(workdir)
    source = Source.find(config)
    if source.folder and jax.process_index() == 0:
        print(source.summary(), flush=True)
    new_data = data_record.check(source, workdir, changed_data)
    config = source.completed(config)
    runs.check(config, workdir)
    data = pipeline.open(config, source)
    for line in source.told():
        data_record.say(line)
    mesh = partition.create_mesh(config.batch_size, config.fsdp)
    evaluation_mesh = partition.create_mesh(config.eval_batch_size, config.fsdp)
    total_steps, steps_per_epoch = pipeline.lengths(config, data)
    model = models.create(config)
    functions = models.functional(model)
    if checkpoint.newest(workdir) is None:
        models.check_preview(config)
        functions = initial_weights.initialized(config, functions)
    teacher = distillation.load(config.distillation, config.num_classes, config.channels)
    if teacher:
        data_record.check_classes(source, config.distillation.teacher)
    teacher_runs = teacher is not None and not config.distillation.cache
    built = build_step(config, functions, steps_per_epoch, mesh, teacher.logits if teacher_runs else None)

    # How a run starts and goes on:
    # 1. The state is made from the seed, or from another run's weights (`config.init_from`), on the mesh.
    # 2. The newest checkpoint, if there is one, replaces all of it.
    # 3. The batches and the random keys from there on follow from (seed, step): nothing else has to be restored.
    # However it ends, what was saved and logged until then is on disk.
    with contextlib.ExitStack() as stack:
        stack.enter_context(runs.told_when_full(workdir))
        # Only now: a config with a mistake in it leaves no workdir behind.
        stack.enter_context(runs.locked(workdir))
        runs.check(config, workdir)  # since it was checked, another run may have begun there and ended
        if new_data:
            data_record.write(source, workdir)
        runs.claim(config, workdir)
        runs.write_classes(workdir, data.class_names)
        checkpoint.set_damaged_aside(workdir)
        checkpoints = stack.enter_context(contextlib.closing(checkpoint.manager(workdir, config.keep_checkpoints)))
        state = built.create_state(functions.params, functions.batch_stats)
        first_step = checkpoints.latest_step() or 0
        if first_step:
            state = checkpoint.restore(checkpoints, first_step, state)
        if first_step >= total_steps:
            return finished_report(config, data, workdir, functions, state, first_step)
        print_overview(config, workdir, model, total_steps, first_step)
        if functions.num_bases and coefficients.selects(config.coefficients.activation, config.coefficients.top_k):
            logging.warning(
                "config.coefficients.top_k=1 with softmax: the one coefficient is always 1, so what chooses the basis "
                "is not trained; top_k=2 or activation=sigmoid trains it"
            )

        batches, constants = inputs(config, data, teacher, first_step, mesh)
        per_example = evaluate.make_per_example(
            functions,
            preprocess.of(config).normalize,
            evaluation_mesh,
        )

        def validate(step, state):
            held_out = data.eval_batches(config.validation_split)
            averaged = per_example(state.ema_params, state.ema_batch_stats, held_out)
            summary = evaluate.summarize(averaged)
            if step > config.optimizer.warmup_epochs * steps_per_epoch:
                warn_of_collapse(summary, functions, config.coefficients.top_k)
            warn_of_dead_bases(averaged, model)
            return summary

        log = stack.enter_context(contextlib.closing(runs.Log(workdir, first_step)))
        state, last = run(
            built,
            state,
            batches,
            constants,
            first_step=first_step,
            total_steps=total_steps,
            every=Every(
                config.log_every_steps,
                max(round(config.eval_every_epochs * steps_per_epoch), 1),
                config.checkpoint_every_steps,
            ),
            log=log.write,
            checkpoints=checkpoints,
            validate=validate,
        )
        if last < total_steps:
            print(f"stopped after step {last} of {total_steps}, saved; the same command goes on from there")
            return {}
        report = evaluate.write_report(config, data, workdir, functions, vars(state), total_steps, mesh)
        log.write(total_steps, "test", {k: v for k, v in report.items() if isinstance(v, float)})
    print(evaluate.table(report))
    return report


class Every(NamedTuple):
    """How often the loop does what, in steps; each also after the last one."""

    log: int
    validate: int
    checkpoint: int


def run(
    built: Step,
    state: TrainState,
    batches: Iterator[dict],
    constants: tuple,
    *,
    first_step: int,
    total_steps: int,
    every: Every,
    log: Callable[[int, str, dict[str, float]], None],
    checkpoints: ocp.CheckpointManager | None,
    validate: Callable[[int, TrainState], dict[str, float]] | None,
) -> tuple[TrainState, int]:
    """Takes the steps `first_step` + 1 to `total_steps`, or fewer where a signal asks it to stop, and saves the state.

    Args:
      built: of `build_step`.
      state: after `first_step` steps; it is donated.
      batches: one for each step, on the devices of the mesh.
      constants: what each step takes besides: the key, and a running teacher's weights.
      log: takes step, split and scalars.
      checkpoints: where the state is saved; None: nowhere.
      validate: `(step, state)` to the metrics by which the best checkpoint is found; None: there is no such split.

    Returns:
      The last state, and how many steps it has seen.
    """
    watch = Watch(checkpoints)
    with preemption.watched() as preempted, progress(first_step, total_steps) as advance:
        for step in range(first_step + 1, total_steps + 1):
            state, metrics = built.run(state, next(batches), *constants)
            # While the device works on this step, the host reads what the one before has left.
            watch.read()
            watch.pending = (step, metrics)
            advance(step)
            last = step == total_steps
            if step % every.log == 0 or last:
                means = watch.means()
                log(step, "train", {**means, "learning_rate": float(built.learning_rate(step - 1))})
            stops = preempted(step) and not last
            summary = None
            if validate and ((step % every.validate == 0 and not stops) or last):
                log(step, "validation", summary := validate(step, state))
            if stops or last or summary or step % every.checkpoint == 0:
                watch.read()  # a state that follows from a bad loss is never saved
                if checkpoints:
                    checkpoint.save(checkpoints, step, state, summary)
            if stops:
                break
        if checkpoints:
            checkpoints.wait_until_finished()
    return state, step


def inputs(
    config, data: Dataset, teacher: distillation.Teacher | None, first_step: int, mesh: Mesh
) -> tuple[Iterator[dict], tuple]:
    """The batches on their devices, and what every step takes besides: the key and a running teacher's weights."""
    reads = teacher is not None and bool(config.distillation.cache)
    batches = data.train_batches(first_step, ids=reads)
    key = jax.random.key(config.seed)
    if reads:
        batches = distillation.with_stored(batches, data, teacher, config.distillation.cache)
    batches = partition.on_device(batches, mesh)
    if teacher is None or reads:
        return batches, (key,)
    weights = jax.device_put(teacher.weights, partition.of_state(teacher.weights, mesh))
    return batches, (key, weights)


def warn_of_collapse(summary: dict[str, float], functions: Functional, top_k: int) -> None:
    """Says when all images of a split have one mixture of a BasisNet's bases, and what to change."""
    if functions.head_features and max(functions.num_bases.values()) > 1:
        entropy, information = summary["coefficient_entropy"], summary["coefficient_information"]
        if collapse := coefficients.collapse(entropy, information, top_k):
            logging.warning(collapse)


def warn_of_dead_bases(per_example: dict, model: nnx.Module) -> None:
    """Names the bases that hardly any mixture of the split uses: they cost memory and mixing, and learn nothing."""
    if "coefficients" in per_example:
        usage = coefficients.usage(per_example["coefficients"])
        if dead := coefficients.dead(usage, model.coefficient_names()):
            logging.warning("%d dead bases: %s", len(dead), ", ".join(dead[:10]) + (" ..." if dead[10:] else ""))


def finished_report(config, data: Dataset, workdir: str, functions: Functional, state: TrainState, step: int) -> dict:
    """The evaluation of a run that had finished, made only where there is none, or one of another step (`evaluate`)."""
    print(f"{workdir} has finished its {step} steps: nothing to train")
    path, report = os.path.join(workdir, "evaluation.json"), {}
    if files.exists(path):
        with files.reading(path) as file:
            report = json.load(file)
    if report.get("step") != step:
        mesh = partition.create_mesh(config.eval_batch_size, config.fsdp)
        report = evaluate.write_report(config, data, workdir, functions, vars(state), step, mesh)
    print(evaluate.table(report))
    return report


def print_overview(config, workdir: str, model: nnx.Module, total_steps: int, first_step: int) -> None:
    """What is about to be trained, on a few lines; every array's name and shape go to `parameters.txt`."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    if jax.process_index() == 0:
        with files.replacing(os.path.join(workdir, "parameters.txt")) as file:
            print(parameter_overview.get_parameter_overview(params, include_stats=False), file=file)
    items = madds.count(model, preprocess.of(config).shape)
    parts = ", ".join(f"{part} {cost / 1e6:.2f}M" for part, cost in madds.summary(items).items())
    print(f"{parameter_overview.count_parameters(params):,} parameters (listed in {workdir}/parameters.txt)")
    print(f"{madds.total(items) / 1e6:.2f}M multiply-adds an image: {parts}")
    print(f"{total_steps} steps on {jax.device_count()} x {jax.devices()[0].device_kind}", end="")
    print(f", going on after step {first_step}" if first_step else "", flush=True)


class Watch:
    """Reads each step's metrics one step late, sums them for the log, and stops the run when one is not finite."""

    def __init__(self, checkpoints: ocp.CheckpointManager | None):
        self.checkpoints = checkpoints
        self.pending: tuple[int, dict] | None = None
        self.read_metrics: list[dict[str, float]] = []

    def read(self) -> None:
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            good = None
            if self.checkpoints:
                self.checkpoints.wait_until_finished()
                good = self.checkpoints.latest_step()
            kept = "no checkpoint was saved yet" if good is None else f"the last good checkpoint is of step {good}"
            raise UserError(f"training diverged at step {step}: {', '.join(bad)}; {kept}")
        self.read_metrics.append(metrics)

    def means(self) -> dict[str, float]:
        """Means since the last call, this step included."""
        self.read()
        rows, self.read_metrics = self.read_metrics, []
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@contextlib.contextmanager
def progress(first_step: int, total_steps: int) -> Iterator[Callable[[int], None]]:
    """`advance(step)`: a bar with steps/s and ETA on a terminal; elsewhere clu's line every 20 seconds."""
    if sys.stderr.isatty():
        with tqdm(initial=first_step, total=total_steps, unit="step") as bar:
            yield lambda step: bar.update()
    else:
        yield periodic_actions.ReportProgress(num_train_steps=total_steps, every_secs=20.0)
