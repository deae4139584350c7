"""Training: one pure jitted step, and the loop around it that logs, evaluates, checkpoints and resumes."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import logging
from clu import parameter_overview, periodic_actions
from flax import nnx
from tqdm import tqdm

from basisnet_jax import (
    basisnet,
    checkpoint,
    coefficients,
    distill,
    evaluate,
    losses,
    madds,
    mixup,
    optimizer,
    partition,
    runs,
    transfer,
)
from basisnet_jax.basisnet import Functional
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes, and all that a checkpoint holds."""

    step: jax.Array  # optimisation steps taken
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema_params: dict
    ema_batch_stats: dict


def create_state(params: dict, batch_stats: dict, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Under `jax.jit` every array gets a buffer of its own, as donation needs."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), params, batch_stats)


def make_train_step(
    config: ml_collections.ConfigDict,
    functions: Functional,
    tx: optax.GradientTransformation,
    temperature: optax.Schedule | None = None,
    teacher: Callable | None = None,
):
    """The pure function `(state, batch, key, teacher_weights=None) -> (state, metrics)`.

    batch: {"image": uint8 [B, H, W, C], "label": [B]} and, where the teacher's predictions are stored, "teacher": its
    logits [B, classes]. Otherwise `teacher(teacher_weights, pixels)` computes them. All randomness follows from `key`
    and the step. The key is an argument so that runs that differ in their seed alone share one compilation. Under
    mixup or CutMix top-1 counts the label that has the larger share of the example.
    """

    def train_step(state: TrainState, batch, key: jax.Array, teacher_weights=None) -> tuple[TrainState, dict]:
        targets = losses.targets(batch["label"], config.num_classes, config.label_smoothing)
        step_key, mixing_key = jax.random.split(jax.random.fold_in(key, state.step))
        pixels = batch["image"].astype(jnp.float32)
        distillation = config.distillation
        if "teacher" in batch:  # its predictions are mixed as the labels are
            taught = jax.nn.softmax(batch["teacher"].astype(jnp.float32) / distillation.temperature)
            targets = jnp.concatenate([targets, taught], axis=-1)
        pixels, targets = mixup.mix(mixing_key, pixels, targets, config.augment.mixup, config.augment.cutmix)
        if "teacher" in batch:
            targets, taught = jnp.split(targets, 2, axis=-1)
        elif teacher is not None:  # it sees what the student sees
            taught = jax.nn.softmax(teacher(teacher_weights, pixels) / distillation.temperature)
        else:
            taught = None
        images = evaluate.normalize(pixels, config)

        def loss_fn(params):
            annealed = None if temperature is None else temperature(state.step)
            outputs, batch_stats = functions.train(params, state.batch_stats, images, step_key, annealed)
            loss, parts = losses.joint(outputs, targets, taught, config)
            return loss, (outputs, batch_stats, parts)

        (loss, (outputs, batch_stats, parts)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = optimizer.moving_average(
            (state.ema_params, state.ema_batch_stats), (params, batch_stats), state.step, config.ema_decay
        )
        # The norm of the new parameters is there for `Watch`: an update can overflow after a loss that was finite.
        metrics = {"loss": loss, **parts, "grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        labels = jnp.argmax(targets, -1)
        if taught is not None:
            metrics["teacher_top1"] = jnp.mean(jnp.argmax(taught, -1) == labels)
        metrics["top1"] = jnp.mean(jnp.argmax(outputs.logits, -1) == labels)
        if outputs.preview_logits is not None:
            metrics["preview_top1"] = jnp.mean(jnp.argmax(outputs.preview_logits, -1) == labels)
        if outputs.coefficients is not None:
            metrics["coefficient_entropy"] = coefficients.entropy(outputs.coefficients)
            metrics["least_basis_usage"] = jnp.min(coefficients.usage(outputs.coefficients))
        return TrainState(state.step + 1, params, batch_stats, opt_state, *averaged), metrics

    return train_step


def train(config: ml_collections.ConfigDict, workdir: str) -> dict:
    """Trains what `config` describes, or goes on with what `workdir` holds, and returns the final evaluation.

    Raises:
      UserError: `workdir` cannot be written or belongs to another config; the data are not there; the loss diverged.
    """
    config = pipeline.completed(config)
    runs.check(config, workdir)
    mesh = partition.create_mesh(config.batch_size)
    steps_per_epoch = pipeline.steps_per_epoch(config)
    for split in (config.validation_split, config.test_split):
        pipeline.num_examples(config, split)  # a misspelt one is found now, not after the first epoch
    total_steps = round(config.num_epochs * steps_per_epoch)
    model = basisnet.create(config)
    functions = basisnet.functional(model)
    if checkpoint.newest(workdir) is None:
        functions = transfer.initialized(config, functions)
    teacher = distill.load(config)
    learning_rate = optimizer.schedule(config.optimizer, steps_per_epoch, total_steps)
    tx = optimizer.create(config.optimizer, learning_rate)
    runs.claim(config, workdir)  # only now: a config with a mistake in it must not keep the workdir
    runs.write_classes(workdir, pipeline.class_names(config))

    # How a run starts and goes on:
    # 1. The state is made from the seed, or from another run's weights (`config.init_from`), on the mesh.
    # 2. The newest checkpoint, if there is one, replaces all of it.
    # 3. The batches and the random keys from there on follow from (seed, step): nothing else has to be restored.
    create = jax.jit(create_state, static_argnums=2, out_shardings=partition.replicated(mesh))
    state = create(functions.params, functions.batch_stats, tx)
    checkpoints = checkpoint.manager(workdir, keep=config.keep_checkpoints)
    first_step = checkpoints.latest_step() or 0
    if first_step:
        state = checkpoint.restore(checkpoints, first_step, state)
    if first_step >= total_steps:
        checkpoints.close()
        return finished_report(config, workdir, functions, state, first_step)
    print_overview(config, workdir, model, total_steps, first_step)

    temperature = optimizer.temperature(config.coefficients, steps_per_epoch)
    key = jax.random.key(config.seed)
    batches = pipeline.train_batches(config, first_step, ids=teacher is not None and bool(config.distillation.cache))
    constants = (key,)
    if teacher is not None and config.distillation.cache:
        batches = distill.with_stored(config, teacher, batches)
        teacher = None
    elif teacher is not None:
        constants = key, jax.device_put(teacher.weights, partition.replicated(mesh))
    train_step = make_train_step(config, functions, tx, temperature, teacher and teacher.logits)
    train_step = jax.jit(train_step, donate_argnums=0)
    validate = evaluate.make_per_example(config, functions, partition.create_mesh(config.eval_batch_size))
    eval_every = max(round(config.eval_every_epochs * steps_per_epoch), 1)
    # However this ends, what was saved and logged until then is on disk.
    with contextlib.closing(checkpoints), contextlib.closing(runs.Log(workdir, first_step)) as log:
        watch = Watch(checkpoints)
        with progress(first_step, total_steps) as advance:
            for step in range(first_step + 1, total_steps + 1):
                state, metrics = train_step(state, partition.global_batch(next(batches), mesh), *constants)
                # While the device works on this step, the host reads what the one before has left.
                watch.read()
                watch.pending = (step, metrics)
                advance(step)
                if step % config.log_every_steps == 0 or step == total_steps:
                    means = watch.means()
                    log.write(step, "train", {**means, "learning_rate": float(learning_rate(step - 1))})
                evaluates = step % eval_every == 0 or step == total_steps
                if evaluates:
                    averaged = validate(state.ema_params, state.ema_batch_stats, config.validation_split)
                    log.write(step, "validation", summary := evaluate.summarize(averaged))
                    warn_of_dead_bases(averaged, model)
                if evaluates or step % config.checkpoint_every_steps == 0:
                    watch.read()  # a state that follows from a bad loss is never saved
                    checkpoint.save(checkpoints, step, state, summary if evaluates else None)
        checkpoints.wait_until_finished()
        report = evaluate.write_report(config, workdir, functions, vars(state), total_steps, mesh)
        log.write(total_steps, "test", {k: v for k, v in report.items() if isinstance(v, float)})
    print(evaluate.table(report))
    return report


def warn_of_dead_bases(per_example: dict, model: nnx.Module) -> None:
    """Names the bases that hardly any mixture of the split uses: they cost memory and mixing, and learn nothing."""
    if "coefficients" in per_example:
        usage = coefficients.usage(per_example["coefficients"])
        if dead := coefficients.dead(usage, model.coefficient_names()):
            logging.warning("%d dead bases: %s", len(dead), ", ".join(dead[:10]) + (" ..." if dead[10:] else ""))


def finished_report(config, workdir: str, functions: Functional, state: TrainState, step: int) -> dict:
    """The evaluation of a run that had finished, made only if the run was stopped before it could be."""
    print(f"{workdir} has finished its {step} steps: nothing to train")
    path = os.path.join(workdir, "evaluation.json")
    if os.path.exists(path):
        with open(path) as file:
            report = json.load(file)
    else:
        mesh = partition.create_mesh(config.eval_batch_size)
        report = evaluate.write_report(config, workdir, functions, vars(state), step, mesh)
    print(evaluate.table(report))
    return report


def print_overview(config, workdir: str, model: nnx.Module, total_steps: int, first_step: int) -> None:
    """What is about to be trained, on a few lines; every array's name and shape go to `parameters.txt`."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with open(os.path.join(workdir, "parameters.txt"), "w") as file:
        print(parameter_overview.get_parameter_overview(params, include_stats=False), file=file)
    items = madds.count(model, evaluate.image_shape(config))
    parts = ", ".join(f"{part} {cost / 1e6:.2f}M" for part, cost in madds.summary(items).items())
    print(f"{parameter_overview.count_parameters(params):,} parameters (listed in {workdir}/parameters.txt)")
    print(f"{madds.total(items) / 1e6:.2f}M multiply-adds an image: {parts}")
    print(f"{total_steps} steps on {jax.device_count()} x {jax.devices()[0].device_kind}", end="")
    print(f", going on after step {first_step}" if first_step else "", flush=True)


class Watch:
    """Reads each step's metrics one step late, sums them for the log, and stops the run when one is not finite."""

    def __init__(self, checkpoints):
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
