"""One optimisation step: a pure function of the state, the batch and a random key.

`build_step` assembles it. Training, `basisnet plan` and the benchmarks all call it, so what is planned and measured is
what runs.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from basisnet_jax import coefficients, preprocess
from basisnet_jax.distributed import partition
from basisnet_jax.errors import UserError
from basisnet_jax.models import Functional
from basisnet_jax.ops import reduction
from basisnet_jax.ops.platforms import platform
from basisnet_jax.training import losses, mixup, optimizer

COMPILER_OPTIONS = {  # by platform
    # By default XLA keeps bfloat16 outputs of layers in float32 where it fuses them with the next layer. Compiled for
    # an H100, the step of imagenet_basisnet_mv3 with 128 images then moves 31.6 GB instead of 29.6, with 3.6 GB of
    # temporaries instead of 3.2.
    "gpu": {"xla_allow_excess_precision": False},
}


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes, and all that a checkpoint holds."""

    step: jax.Array  # optimisation steps taken
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema_params: dict
    ema_batch_stats: dict


class Step(NamedTuple):
    """A training step on a mesh, ready to run or to compile."""

    create_state: Callable  # jitted: (params, batch_stats) -> TrainState, laid out on the mesh
    run: Callable  # jitted: (state, batch, key, *teacher_weights) -> (state, metrics); the state given is donated
    learning_rate: optax.Schedule
    shardings: TrainState  # of the state


def build_step(
    config: ml_collections.ConfigDict,
    functions: Functional,
    steps_per_epoch: int,
    mesh: Mesh | None = None,
    teacher: Callable | None = None,
    normalize: Callable | None = None,
) -> Step:
    """The step of a config's training, with its optimizer, schedules and shardings.

    Args:
      config: of the run.
      functions: of its model; shapes in place of arrays will do.
      steps_per_epoch: by which lengths in epochs become lengths in steps.
      mesh: None: all devices, as `config.batch_size` and `config.fsdp` say.
      teacher: `(weights, pixels [B, H, W, C] in 0..255) -> logits [B, classes]`, if one runs in every step.
      normalize: makes of the images, as they are in a batch, what the model takes; None: as the config says.
    """
    mesh = mesh or partition.create_mesh(config.batch_size, config.fsdp)
    images = config.batch_size // config.accumulate
    if config.dtype == "bfloat16" and config.reduce_dtype == "float32" and images % mesh.size:
        raise UserError(
            f"config.accumulate={config.accumulate} leaves {images} images for a pass, which the {mesh.size} devices "
            "cannot share equally: expected a multiple of them, or config.reduce_dtype=bfloat16"
        )
    learning_rate = optimizer.schedule(config.optimizer, steps_per_epoch, round(config.num_epochs * steps_per_epoch))
    tx = optimizer.create(config.optimizer, learning_rate, functions)
    create = partial(create_state, tx=tx)
    shardings = partition.of_state(jax.eval_shape(create, functions.params, functions.batch_stats), mesh)
    step = make_train_step(
        config, functions, tx, optimizer.temperature(config.coefficients, steps_per_epoch), teacher, normalize
    )
    run = jax.jit(
        partition.inside(mesh, step),
        donate_argnums=0,
        out_shardings=(shardings, partition.replicated(mesh)),
        compiler_options=COMPILER_OPTIONS.get(platform()),
    )
    return Step(jax.jit(create, out_shardings=shardings), run, learning_rate, shardings)


def create_state(params: dict, batch_stats: dict, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Under `jax.jit` every array gets a buffer of its own, as donation needs."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), params, batch_stats)


def make_train_step(
    config: ml_collections.ConfigDict,
    functions: Functional,
    tx: optax.GradientTransformation,
    temperature: optax.Schedule | None = None,
    teacher: Callable | None = None,
    normalize: Callable | None = None,
):
    """The pure function `(state, batch, key, teacher_weights=None) -> (state, metrics)`.

    batch: {"image": uint8 [B, H, W, C], "label": [B]} and, where the teacher's predictions are stored, "teacher": its
    logits [B, classes]. Otherwise `teacher(teacher_weights, pixels)` computes them. All randomness follows from `key`
    and the step. The key is an argument so that runs that differ in their seed alone share one compilation. Under
    mixup or CutMix top-1 counts the label that has the larger share of the example.
    """

    normalize = normalize or preprocess.of(config).normalize

    def train_step(state: TrainState, batch, key: jax.Array, teacher_weights=None) -> tuple[TrainState, dict]:
        step_key, mixing_key = jax.random.split(jax.random.fold_in(key, state.step))
        examples = prepare(config, batch, mixing_key)
        if teacher is not None:  # it sees what the student sees
            logits = teacher(teacher_weights, examples["pixels"])
            examples["taught"] = jax.nn.softmax(logits / config.distillation.temperature)
        annealed = None if temperature is None else temperature(state.step)

        def loss_fn(params, examples, key):
            images = normalize(examples["pixels"])
            with reduced_in(config.reduce_dtype):
                outputs, batch_stats = functions.train(params, state.batch_stats, images, key, annealed)
            loss, parts = losses.joint(
                outputs,
                examples["targets"],
                examples.get("taught"),
                config.preview_loss_weight,
                config.distillation,
                config.balance_loss_weight,
            )
            return loss, (batch_stats, {"loss": loss, **parts, **measured(outputs, examples)})

        gradient_of = jax.grad(loss_fn, has_aux=True)
        if config.accumulate == 1:
            grads, (batch_stats, metrics) = gradient_of(state.params, examples, step_key)
        else:
            grads, (batch_stats, metrics) = accumulated(gradient_of, config.accumulate)(
                state.params, examples, step_key
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = optimizer.moving_average(
            (state.ema_params, state.ema_batch_stats), (params, batch_stats), state.step, config.ema_decay
        )
        if "usage" in metrics:
            metrics["least_basis_usage"] = jnp.min(metrics.pop("usage"))
        # The norm of the new parameters is there for `Watch`: an update can overflow after a loss that was finite.
        metrics |= {"grad_norm": optimizer.norm(grads), "param_norm": optimizer.norm(params)}
        return TrainState(state.step + 1, params, batch_stats, opt_state, *averaged), metrics

    return train_step


def reduced_in(dtype: str) -> contextlib.AbstractContextManager:
    """A context for the forward pass: devices sum its gradients in float32, or in the dtype that layers compute in."""
    return reduction.in_dtype_of_params() if dtype == "float32" else contextlib.nullcontext()


def prepare(config, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
    """{"pixels": [B, H, W, C] in 0..255, "targets": [B, classes]}, mixed; with a stored teacher also "taught"."""
    targets = losses.targets(batch["label"], config.num_classes, config.label_smoothing)
    if "teacher" in batch:  # its predictions are mixed as the labels are
        logits = batch["teacher"].astype(jnp.float32)
        targets = jnp.concatenate([targets, jax.nn.softmax(logits / config.distillation.temperature)], axis=-1)
    pixels = batch["image"].astype(jnp.float32)
    pixels, targets = mixup.mix(key, pixels, targets, config.augment.mixup, config.augment.cutmix)
    names = ("targets", "taught")[: targets.shape[-1] // config.num_classes]
    return {"pixels": pixels, **dict(zip(names, jnp.split(targets, len(names), axis=-1), strict=True))}


def measured(outputs, examples: dict) -> dict[str, jax.Array]:
    """What is logged of a batch besides its losses: means over examples."""
    labels = jnp.argmax(examples["targets"], -1)
    answers = {"": outputs.logits, "preview_": outputs.preview_logits, "teacher_": examples.get("taught")}
    metrics = {
        f"{name}top1": jnp.mean(jnp.argmax(answer, -1) == labels)
        for name, answer in answers.items()
        if answer is not None
    }
    if outputs.coefficients is not None:
        metrics["coefficient_entropy"] = coefficients.entropy(outputs.coefficients)
        metrics["usage"] = coefficients.usage(outputs.coefficients)
    return metrics


def accumulated(gradient_of: Callable, parts: int) -> Callable:
    """`gradient_of(params, examples, key)` by `parts` passes, each over its share of the batch, and the mean of all.

    Batch statistics are of each share on its own (as with `config.batch_norm_groups`), the running ones their mean.
    Share i takes the examples i, i + parts, ...: on a mesh every device then works on examples that it holds.
    """

    def gradient(params, examples, key):
        shares = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), examples)

        def add(total, share):
            i, share = share
            one = gradient_of(params, share, jax.random.fold_in(key, i))
            return jax.tree.map(lambda t, o: t + o / parts, total, one), None

        shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], shares), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
        return jax.lax.scan(add, zeros, (jnp.arange(parts), shares))[0]

    return gradient
