"""BasisNet: a preview network's first answer and coefficients, and the specialist they synthesize.

The form of the coefficients (one softmax over the bases for each layer) is our reconstruction of the paper, an
assumption; sigmoid, temperature and one vector for all layers are here to be compared with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import basis, coefficients
from basisnet_jax.ops import initializers
from basisnet_jax.ops.platforms import platform


class Outputs(NamedTuple):
    """What a model computes for images [B, H, W, C]. A network with no preview leaves the last two None."""

    logits: jax.Array  # [B, classes], final
    preview_logits: jax.Array | None = None  # [B, classes]
    coefficients: jax.Array | None = None  # [B, K, N]; K is 1 where all layers share them


class BasisNet(nnx.Module):
    """Two stages: `preview_stage` on every image, `specialist_stage` where the preview is not confident.

    Args:
      specialist: a network that went through `basis.with_bases`.
      preview: a network with `features(images) -> [B, F]`, and `dropout` and `classifier` (an `nnx.Linear`) on them.
      preview_size: side to which images are resized for the preview, in pixels.
      activation: "softmax" (coefficients of a layer sum to one) or "sigmoid" (each on its own).
      temperature: the activation's argument is divided by it; higher is more even. Training may start higher.
      shared: one vector of coefficients for all layers, instead of one for each.
      dropout: basis model dropout, the probability that a basis is shut down in training; never all of them are.
      dropout_per: "example" or "batch": what shares one draw of the bases to drop.
    """

    def __init__(
        self,
        specialist: nnx.Module,
        preview: nnx.Module,
        *,
        preview_size: int,
        activation: str = "softmax",
        temperature: float = 1.0,
        shared: bool = False,
        dropout: float = 0.0,
        dropout_per: str = "example",
        rngs: nnx.Rngs,
    ):
        layers = basis.basis_layers(specialist)
        counts = {layer.num_bases for layer in layers.values()}
        if len(counts) != 1:
            raise ValueError(f"the specialist's basis layers have {sorted(counts)} bases, expected one number for all")
        coefficients.check(activation, dropout, dropout_per)
        self.specialist = specialist
        self.preview = preview
        self.preview_size = preview_size
        self.activation = activation
        self.temperature = temperature
        self.num_vectors = 1 if shared else len(layers)
        self.num_bases = counts.pop()
        self.basis_dropout = coefficients.BasisDropout(dropout, dropout_per, rngs)
        # Nearly even coefficients at first: every basis gets gradient from every example.
        self.coefficient_head = nnx.Linear(
            preview.classifier.in_features,
            self.num_vectors * self.num_bases,
            kernel_init=initializers.normal(0.01),
            rngs=rngs,
        )

    def coefficient_names(self) -> list[str]:
        """What each of the K vectors of coefficients mixes."""
        return list(basis.basis_layers(self.specialist)) if self.num_vectors > 1 else ["all layers"]

    def preview_stage(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, C] to the first prediction [B, classes] and the coefficients [B, K, N], float32."""
        features = self.preview.features(resize(images, self.preview_size))
        logits = self.preview.classifier(self.preview.dropout(features))
        raw = self.coefficient_head(features).reshape(-1, self.num_vectors, self.num_bases)
        raw = raw.astype(jnp.float32) / self.temperature
        kept = self.basis_dropout(raw.shape[0], self.num_bases)
        return logits, coefficients.activate(raw, self.activation, kept)

    def specialist_stage(self, images: jax.Array, coefficients_BKN: jax.Array) -> jax.Array:
        """The final prediction [B, classes], each image's by kernels mixed with its own coefficients."""
        with basis.mixed(self.specialist, coefficients_BKN):
            return self.specialist(images)

    def __call__(self, images: jax.Array) -> Outputs:
        preview_logits, coefficients_BKN = self.preview_stage(images)
        return Outputs(self.specialist_stage(images, coefficients_BKN), preview_logits, coefficients_BKN)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Images [B, H, W, C] at [B, size, size, C], bilinear with antialiasing; costs no multiply-adds we count."""
    if images.shape[1:3] == (size, size):
        return images
    for _ in range(2):
        images = _resize_rows(images, size).swapaxes(1, 2)
    return images


def _resize_rows(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, size, W, C]."""
    batch, height, width, channels = images.shape
    reach = max(height / size, 1.0)  # of the triangle around each new pixel's centre, in old pixels
    centres = (np.arange(size)[:, None] + 0.5) * height / size - 0.5
    pixels = np.ceil(centres - reach).astype(int) + np.arange(int(2 * reach) + 1)
    weights = np.maximum(0, 1 - np.abs(pixels - centres) / reach) * ((pixels >= 0) & (pixels < height))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(images.dtype)
    pixels = pixels.clip(0, height - 1)
    if platform() != "cpu":
        dense = np.zeros((size, height), weights.dtype)
        np.add.at(dense, (np.arange(size)[:, None], pixels), weights)
        dense = jnp.broadcast_to(dense, (batch, size, height))
        rows = jnp.matmul(dense, images.reshape(batch, height, -1), precision=jax.lax.Precision.HIGHEST)
        return rows.reshape(batch, size, width, channels)
    # As that product, 224 to 160 pixels would cost half as much time as all that follows in the preview; as a sum of
    # the few pixels that count, a fifth of that.
    terms = zip(pixels.T, weights.T, strict=True)
    return sum(jnp.take(images, pixel, axis=1) * weight[:, None, None] for pixel, weight in terms)
