"""Optimizers, schedules and the moving average of weights, all from one config.

A learning rate that suits a static network should suit the BasisNet made of it, whatever the number of bases, the width
of the preview and the optimizer. Three effects of size would prevent that:

*Bases.* With even coefficients, a softmax's, a basis has 1/N of the gradient that the network's one kernel would have.
Adam divides by it; RMSProp with TensorFlow's large epsilon does not, and N bases learn N times more slowly. So each
basis's gradient is multiplied by N.

*Clipping.* If both stages are clipped by the norm of the whole gradient, the specialist takes smaller steps where the
preview's gradient is large. So each stage is clipped by its own norm. With both corrections, copies of one kernel with
even coefficients train, step by step, as the static network does.

*The coefficient head.* A step of Adam moves its logits by the learning rate times the sum of |features|: the wider the
preview, the faster. Bases are then told apart before they have learnt anything. So the head's learning rate is divided
by the number of its features, as muP does for the weights of output layers (Yang et al. 2022, arXiv 2203.03466, table
3), and multiplied by `config.optimizer.coefficient_rate`. For a gradient that stays, RMSProp's momentum of 0.9
makes steps ten times as large at the same learning rate: it adds updates up where Adam's averages them. So with RMSProp
the head's rate is multiplied by 1 - momentum as well. (An epsilon as large as `default.py`'s slows the head further.)
"""

import math

import jax
import jax.numpy as jnp
import ml_collections
import optax

from basisnet_jax.distributed import partition
from basisnet_jax.models import Functional
from basisnet_jax.ops.platforms import platform


def schedule(config: ml_collections.ConfigDict, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then cosine to 0 or exponential decay in steps."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(config.learning_rate, max(total_steps - warmup_steps, 1))
    else:
        interval = max(round(config.decay_epochs * steps_per_epoch), 1)
        decay = optax.exponential_decay(config.learning_rate, interval, config.decay_rate, staircase=True)
    if not warmup_steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup_steps), decay], [warmup_steps])


def temperature(config: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule | None:
    """Temperature of the coefficients by step as `config.coefficients` anneals it; None where it is constant."""
    steps = round(config.annealing_epochs * steps_per_epoch)
    return optax.linear_schedule(config.initial_temperature, config.temperature, steps) if steps else None


def kernels_only(params) -> object:
    """The weight-decay mask: True for kernels, False for biases and batch norm's scales."""
    return jax.tree.map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def stages(params: dict) -> dict[str, str]:
    """What is clipped together: "specialist", or "other" (preview and coefficient head; all of other models)."""
    return {name: "specialist" if name == "specialist" else "other" for name in params}


def create(
    config: ml_collections.ConfigDict, learning_rate: optax.Schedule, functions: Functional
) -> optax.GradientTransformation:
    """The transformation that `config.optimizer` describes, for the params of `functions`.

    RMSProp is TensorFlow's (epsilon inside the root, second moment starting at 1), to which the published learning
    rates of mobile networks belong; its weight decay is an L2 term of the gradient, AdamW's is decoupled.
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=kernels_only)
    if config.name == "rmsprop":
        steps = [
            decay,
            optax.rmsprop(
                learning_rate,
                decay=config.second_moment_decay,
                eps=config.epsilon,
                initial_scale=1.0,
                momentum=config.momentum,
            ),
        ]
    else:
        steps = [
            optax.scale_by_adam(b1=config.momentum, b2=config.second_moment_decay, eps=config.epsilon),
            decay,
            optax.scale_by_learning_rate(learning_rate),
        ]
    clip = []
    if config.clip_norm:
        own = clipped(config.clip_norm)
        clip = [optax.partition({"specialist": own, "other": own}, stages) if config.match_static else own]
    if config.match_static and functions.num_bases:
        # Half before clipping: N bases of 1/sqrt(N) of the gradient have the norm that the one kernel's would have.
        half = scaled({path: math.sqrt(n) for path, n in functions.num_bases.items()})
        clip = [half, *clip, half]
    if config.coefficient_rate and functions.head_features:
        rate = config.coefficient_rate * (1 - config.momentum if config.name == "rmsprop" else 1)
        steps.append(scaled({path: rate / n for path, n in functions.head_features.items()}))
    return optax.chain(*clip, *steps)


def clipped(largest: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with our `norm`."""

    def update(updates, params):
        del params
        size = norm(updates)
        return jax.tree.map(lambda u: jnp.where(size < largest, u, u / size.astype(u.dtype) * largest), updates)

    return optax.stateless(update)


def norm(tree) -> jax.Array:
    """The global norm of a pytree of arrays.

    On GPU, XLA sums each array in one or two kernels of its own, so all small arrays are joined and summed together.
    Compiled for an H100, the step of imagenet_basisnet_mv3 then has 2,921 launches instead of 3,092.
    """
    leaves = jax.tree.leaves(tree)
    if platform() == "gpu":
        small = [leaf.reshape(-1) for leaf in leaves if leaf.size < partition.SMALLEST]  # no device has a part of one
        leaves = [leaf for leaf in leaves if leaf.size >= partition.SMALLEST]
        leaves += [jnp.concatenate(small)] if small else []
    return optax.tree.norm(leaves)


def scaled(factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of the params at the given paths, all of which there must be."""

    def update(updates, params):
        del params
        paths = {"/".join(str(key.key) for key in path) for path, _ in jax.tree.leaves_with_path(updates)}
        if missing := factors.keys() - paths:
            raise ValueError(f"no params at {', '.join(sorted(missing))}")
        return jax.tree.map_with_path(lambda path, u: u * factors.get("/".join(str(k.key) for k in path), 1.0), updates)

    return optax.stateless(update)


def moving_average(average, new, step: jax.Array, decay: float):
    """One step of the exponential moving average of a pytree; early on the decay is (1 + step) / (10 + step)."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, n: decay * a + (1 - decay) * n, average, new)
