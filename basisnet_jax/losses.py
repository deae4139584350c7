"""Losses of the two heads."""

import jax
import jax.numpy as jnp
import optax

from basisnet_jax.basisnet import Outputs


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Per-example cross-entropy in nats, float32: logits and target distributions [B, classes] -> [B]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def targets(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Labels [B] as distributions [B, classes], a share `smoothing` spread evenly over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def joint(outputs: Outputs, targets: jax.Array, preview_weight: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """CE(final) + preview_weight * CE(preview), mean over the batch, and the two parts by name.

    Joint training of both stages is the paper's; the weight (lambda) is our assumption.
    """
    final = jnp.mean(cross_entropy(outputs.logits, targets))
    if outputs.preview_logits is None:
        return final, {"final_loss": final}
    preview = jnp.mean(cross_entropy(outputs.preview_logits, targets))
    return final + preview_weight * preview, {"final_loss": final, "preview_loss": preview}
