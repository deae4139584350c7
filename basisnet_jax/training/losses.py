"""Losses of the two heads and of the balance of bases."""

import jax
import jax.numpy as jnp
import optax

from basisnet_jax import coefficients
from basisnet_jax.basisnet import Outputs


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Per-example cross-entropy in nats, float32: logits and target distributions [B, classes] -> [B]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def targets(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Labels [B] as distributions [B, classes], a share `smoothing` spread evenly over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def distilled(logits: jax.Array, targets: jax.Array, taught: jax.Array, fields) -> jax.Array:
    """(1 - weight) * CE(targets) + weight * T^2 * CE(taught), both [B]: Hinton et al. 2015, section 2.

    `taught` is the teacher's distribution at temperature T; `fields` are `config.distillation`. At temperature 1 it is
    the cross-entropy with the mixture of the two distributions.
    """
    from_teacher = fields.temperature**2 * cross_entropy(logits / fields.temperature, taught)
    return (1 - fields.weight) * cross_entropy(logits, targets) + fields.weight * from_teacher


def loss(
    outputs: Outputs | jax.Array,
    labels: jax.Array,
    *,
    preview_weight: float = 1.0,
    balance_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """The loss of a model's outputs, for a training loop of one's own: the mean over the batch, a scalar.

    Args:
      outputs: of a `BasisNet` or any other model: an `Outputs`, or logits [B, classes].
      labels: integers [B].
      preview_weight: of the preview's cross-entropy; the final answer's has the weight 1.
      balance_weight: of `coefficients.imbalance`, a loss against uneven use of bases; meant for a model with `top_k`.
      label_smoothing: share of each label that is spread over all classes.

    Example:
      >>> round(float(loss(jnp.zeros((4, 10)), jnp.arange(4))), 3)  # log 10
      2.303
    """
    outputs = outputs if isinstance(outputs, Outputs) else Outputs(outputs)
    wanted = targets(labels, outputs.logits.shape[-1], label_smoothing)
    total, _ = joint(outputs, wanted, None, preview_weight, None, balance_weight)
    return total


def joint(
    outputs: Outputs,
    targets: jax.Array,
    taught: jax.Array | None,
    preview_weight: float,
    distillation,
    balance_weight: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of the final head + preview_weight * that of the preview, mean over the batch, and both by name.

    With a `balance_weight`, that times `coefficients.imbalance` of the batch is added, for a model that has bases.
    `taught`, [B, classes], is the teacher's distribution, if there is one; `distillation` is the config's section.
    Joint training of both stages is the paper's; the weight (lambda) is our assumption.
    """

    def loss(logits, head):
        if taught is None or distillation.heads not in ("both", head):
            return jnp.mean(cross_entropy(logits, targets))
        return jnp.mean(distilled(logits, targets, taught, distillation))

    total = final = loss(outputs.logits, "final")
    parts = {"final_loss": final}
    if outputs.preview_logits is not None:
        parts["preview_loss"] = loss(outputs.preview_logits, "preview")
        total += preview_weight * parts["preview_loss"]
    if balance_weight and outputs.coefficients is not None:
        parts["balance_loss"] = coefficients.imbalance(outputs.coefficients)
        total += balance_weight * parts["balance_loss"]
    return total, parts
