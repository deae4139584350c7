"""Coefficients: from the head's numbers to mixtures of bases, dropout of whole bases, and how bases are used."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ACTIVATIONS = ("softmax", "sigmoid")
DEAD = 0.01  # a basis whose usage is below this is dead
COLLAPSED = 1e-3  # below this, a mixture tells nothing of its image


def check(activation: str, dropout: float, dropout_per: str) -> None:
    """Raises ValueError at a choice that does not exist."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    if dropout_per not in ("example", "batch") or not 0 <= dropout < 1:
        raise ValueError(f"{dropout=} per {dropout_per!r}, expected at least 0, below 1, per example or batch")


def activate(raw: jax.Array, activation: str, kept: jax.Array | None = None) -> jax.Array:
    """Coefficients from the head's numbers [B, K, N]; those of bases not `kept` ([B or 1, 1, N]) are exactly 0.

    What remains is renormalised: a softmax over the kept bases alone, or sigmoids times N / bases kept.
    """
    if kept is not None:
        raw = jnp.where(kept, raw, -jnp.inf)
    if activation == "softmax":
        return jax.nn.softmax(raw)
    scale = 1.0 if kept is None else kept.shape[-1] / jnp.sum(kept, axis=-1, keepdims=True)
    return scale * jax.nn.sigmoid(raw)


class BasisDropout(nnx.Module):
    """Which bases an example (or the batch) keeps: each is dropped with probability `rate`, in training only.

    A basis is dropped from all layers at once: it is a basis *model* that is shut down. Where all would be dropped,
    one drawn at random is kept.
    """

    def __init__(self, rate: float, per: str, rngs: nnx.Rngs):
        self.rate = rate
        self.per = per
        self.deterministic = False  # set by nnx's train() and eval()
        self.rngs = rngs.dropout.fork()

    def __call__(self, batch: int, num_bases: int) -> jax.Array | None:
        """True where kept, [batch or 1, 1, num_bases]; None where nothing is dropped."""
        if self.deterministic or self.rate == 0:
            return None
        rows = batch if self.per == "example" else 1
        kept = jax.random.bernoulli(self.rngs(), 1 - self.rate, (rows, 1, num_bases))
        spared = jax.nn.one_hot(jax.random.randint(self.rngs(), (rows, 1), 0, num_bases), num_bases, dtype=bool)
        return jnp.where(jnp.any(kept, axis=-1, keepdims=True), kept, spared)


def entropy(coefficients_BKN: jax.Array) -> jax.Array:
    """Mean entropy of the mixtures over examples and layers, as a share of log N: 1 is even, 0 one basis alone."""
    num_bases = coefficients_BKN.shape[-1]
    if num_bases == 1:
        return jnp.zeros(())
    shares = coefficients_BKN / jnp.sum(coefficients_BKN, axis=-1, keepdims=True)
    return jnp.mean(jnp.sum(jax.scipy.special.entr(shares), axis=-1)) / jnp.log(num_bases)


def spread_of(coefficients_BKN: np.ndarray) -> dict[str, float]:
    """Of many images, the mean `entropy` and what a mixture tells of its image, both as shares of log N.

    The latter is the mutual information of image and basis, the entropy of the mean mixture less the mean entropy: 0
    where all images have the same mixture.
    """
    shares = coefficients_BKN / coefficients_BKN.sum(axis=-1, keepdims=True)

    def mean_entropy(shares):  # in NumPy: a whole split's coefficients are not for an accelerator's memory
        logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return float(-np.mean(np.sum(shares * logarithms, axis=-1), dtype=np.float64) / np.log(shares.shape[-1]))

    if coefficients_BKN.shape[-1] == 1:
        return {"coefficient_entropy": 0.0, "coefficient_information": 0.0}
    within, overall = mean_entropy(shares), mean_entropy(shares.mean(axis=0, dtype=np.float64))
    return {"coefficient_entropy": within, "coefficient_information": max(overall - within, 0.0)}


def collapse(entropy: float, information: float) -> str | None:
    """What is wrong where all images have the same mixture, by `spread_of`, and what to change; None elsewhere."""
    if information > COLLAPSED:
        return None
    change = "raise" if entropy > 0.5 else "lower"
    return (
        f"all images have the same mixture of bases (entropy {entropy:.2f} of 1), as in a static network; "
        f"{change} config.optimizer.coefficient_rate"
    )


def usage(coefficients_BKN: jax.Array | np.ndarray):
    """Each basis's mean share of its layer's mixtures, times N: [K, N] with a mean of 1; 0 is a dead basis."""
    totals = coefficients_BKN.sum(axis=0)
    return totals / totals.mean(axis=-1, keepdims=True)


def dead(usage_KN: np.ndarray, names: list[str]) -> list[str]:
    """The bases whose usage is below `DEAD`, such as "basis 3 of stages/0/0/project/conv"."""
    return [f"basis {n} of {names[k]}" for k, n in np.argwhere(usage_KN < DEAD)]
