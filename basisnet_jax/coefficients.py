"""Coefficients: from the head's numbers to mixtures of all bases or the best k, dropout, and how bases are used."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ACTIVATIONS = ("softmax", "sigmoid")
DEAD = 0.01  # a basis whose usage is below this is dead
COLLAPSED = 1e-3  # below this, a mixture tells nothing of its image


def check(activation: str, dropout: float, dropout_per: str, top_k: int, num_bases: int) -> None:
    """Raises ValueError at a choice that does not exist, or more bases to mix than there are."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    if dropout_per not in ("example", "batch") or not 0 <= dropout < 1:
        raise ValueError(f"{dropout=} per {dropout_per!r}, expected at least 0, below 1, per example or batch")
    if not 0 <= top_k <= num_bases:
        raise ValueError(f"{top_k=}, expected 0 for all bases, or 1 to {num_bases} of them")


def activate(raw: jax.Array, activation: str, kept: jax.Array | None = None, top_k: int = 0) -> jax.Array:
    """Coefficients from the head's numbers [B, K, N]; those of bases not `kept` ([B or 1, 1, N]) are exactly 0.

    So are all but the `top_k` largest of each layer (0: all stay); gradient reaches the others alone. What remains is
    renormalised: a softmax over these bases, or sigmoids times the number of bases that would be mixed without dropout
    / the number that is.
    """
    mixed = top_k or raw.shape[-1]
    if kept is not None:
        raw = jnp.where(kept, raw, -jnp.inf)
    if mixed < raw.shape[-1]:
        raw = jnp.where(largest(raw, mixed), raw, -jnp.inf)
    if activation == "softmax":
        return jax.nn.softmax(raw)
    scale = 1.0 if kept is None else mixed / jnp.minimum(jnp.sum(kept, axis=-1, keepdims=True), mixed)
    return scale * jax.nn.sigmoid(raw)


def largest(raw: jax.Array, k: int) -> jax.Array:
    """True for the k largest along the last axis, [..., N]; of equal numbers the first ones count.

    All pairs are compared instead of sorted: N is small, and every format of an export has comparisons.
    """
    this, other = raw[..., :, None], raw[..., None, :]
    is_first = np.tri(raw.shape[-1], k=-1, dtype=bool)  # the other one
    return jnp.sum((other > this) | ((other == this) & is_first), axis=-1) < k


def selects(activation: str, top_k: int) -> bool:
    """Whether a mixture is one basis as it is: a softmax of one is always 1, so no gradient reaches what chose it."""
    return activation == "softmax" and top_k == 1


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


def collapse(entropy: float, information: float, top_k: int = 0) -> str | None:
    """What is wrong where all images have the same mixture, by `spread_of`, and what to change; None elsewhere."""
    if information > COLLAPSED:
        return None
    change = f"{'raise' if entropy > 0.5 else 'lower'} config.optimizer.coefficient_rate"
    if top_k:  # the entropy of k bases is low even where they are even, and then nothing leads away from them
        change = "train anew with a lower config.optimizer.coefficient_rate or another config.balance_loss_weight"
    return f"all images have the same mixture of bases (entropy {entropy:.2f} of 1), as in a static network; {change}"


def usage(coefficients_BKN: jax.Array | np.ndarray):
    """Each basis's mean share of its layer's mixtures, times N: [K, N] with a mean of 1; 0 is a dead basis."""
    totals = coefficients_BKN.sum(axis=0)
    return totals / totals.mean(axis=-1, keepdims=True)


def imbalance(coefficients_BKN: jax.Array) -> jax.Array:
    """How unevenly a batch uses the bases, a scalar: 0 where evenly, N - 1 where all images use one basis alone.

    It is the importance loss of sparsely gated mixtures of experts (Shazeer et al. 2017, arXiv 1701.06538, section 4):
    the squared coefficient of variation, over the bases, of the batch's sum of coefficients; here the mean over layers.
    Of mixtures of k bases it has no gradient where all images mix the same k evenly: unused bases then stay so.
    """
    return jnp.mean(jnp.square(usage(coefficients_BKN) - 1))


def dead(usage_KN: np.ndarray, names: list[str]) -> list[str]:
    """The bases whose usage is below `DEAD`, such as "basis 3 of stages/0/0/project/conv"."""
    return [f"basis {n} of {names[k]}" for k, n in np.argwhere(usage_KN < DEAD)]
