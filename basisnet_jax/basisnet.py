"""BasisNet: a preview network's first answer and coefficients, and the specialist they synthesize.

The form of the coefficients (one softmax over the bases for each layer) is our reconstruction of the paper, an
assumption; sigmoid, temperature and one vector for all layers are here to be compared with it.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import basis, calling, coefficients
from basisnet_jax.classifier import Classifier
from basisnet_jax.ops import initializers
from basisnet_jax.ops.platforms import platform


class Outputs(NamedTuple):
    """What a model computes for images [B, H, W, C]. A network with no preview leaves the last two None.

    Example:
      >>> Outputs(jnp.zeros((2, 10))).preview_logits is None
      True
    """

    logits: jax.Array  # [B, classes], final
    preview_logits: jax.Array | None = None  # [B, classes]
    coefficients: jax.Array | None = None  # [B, K, N]; K is 1 where all layers share them


class BasisNet(Classifier):
    """Two stages: `preview_stage` on every image, `specialist_stage` where the preview is not confident.

    What a call is given besides the images, such as `rngs` or `training`, goes on to those of the two networks that
    take it. After `train()` or `eval()` a network whose call takes `training`, or another of `calling.IN_TRAINING`, is
    told so without being given it.

    Args:
      specialist: a network that went through `basis.with_bases`.
      preview: any network of images to logits [B, classes] whose last linear layer reads [B, F]: the coefficients are
        made of what it reads. A network with a method `features(images) -> [B, F]` and a linear layer `classifier` (as
        the networks of this package) is used by these, with its `dropout` between them if it has one.
      preview_size: side in pixels to which images [B, H, W, C] are resized for the preview; None: it sees them as they
        are, of any shape.
      view: in place of `preview_size`, a function of the images to what the preview sees. For other layouts than
        [B, H, W, C] it takes the place of `preview_size`.
      classifier: path of the preview's linear layer that gives the logits, such as "head"; None: the last one defined.
      activation: "softmax" (coefficients of a layer sum to one) or "sigmoid" (each on its own).
      temperature: the activation's argument is divided by it; higher is more even. Training may start higher.
      shared: one vector of coefficients for all layers, instead of one for each.
      top_k: each layer mixes only so many bases, those with the largest coefficients; 0: all. With 1 and softmax the
        one coefficient is always 1, so the coefficient head gets no gradient.
      dropout: basis model dropout, the probability that a basis is shut down in training; never all of them are.
      dropout_per: "example" or "batch": what shares one draw of the bases to drop.
      rngs: of the coefficient head's weights and of the dropout; None: `nnx.Rngs(0)`.

    Raises:
      ValueError: the layers of the specialist have bases of different numbers, or fewer than `top_k`; or the preview
        has no such layer.

    Example:
      >>> from basisnet_jax import with_bases
      >>> def network(width):
      ...     rngs = nnx.Rngs(0)
      ...     conv, head = nnx.Conv(3, width, (3, 3), rngs=rngs), nnx.Linear(width, 10, rngs=rngs)
      ...     return nnx.Sequential(conv, lambda x: nnx.relu(x).mean(axis=(1, 2)), head)
      >>> model = BasisNet(with_bases(network(8), 4), network(2), preview_size=8)
      >>> outputs = model(jnp.zeros((5, 16, 16, 3)))
      >>> outputs.logits.shape, outputs.preview_logits.shape, outputs.coefficients.shape
      ((5, 10), (5, 10), (5, 1, 4))
    """

    def __init__(
        self,
        specialist: nnx.Module,
        preview: nnx.Module,
        *,
        preview_size: int | None = None,
        view: Callable[[jax.Array], jax.Array] | None = None,
        classifier: str | None = None,
        activation: str = "softmax",
        temperature: float = 1.0,
        shared: bool = False,
        top_k: int = 0,
        dropout: float = 0.0,
        dropout_per: str = "example",
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        layers = basis.basis_layers(specialist)
        counts = {layer.num_bases for layer in layers.values()}
        if len(counts) != 1:
            raise ValueError(f"the specialist's basis layers have {sorted(counts)} bases, expected one number for all")
        if preview_size is not None and view is not None:
            raise ValueError(f"preview_size={preview_size} and a view given, expected one of them")
        coefficients.check(activation, dropout, dropout_per, top_k, min(counts))
        if classifier is not None or not _has_features(preview):
            preview = Tapped(preview, classifier)
        self.specialist = specialist
        self.preview = preview
        self.preview_size = preview_size
        self.view = view
        self.activation = activation
        self.temperature = temperature
        self.top_k = top_k
        self.num_vectors = 1 if shared else len(layers)
        self.num_bases = counts.pop()
        self.basis_dropout = coefficients.BasisDropout(dropout, dropout_per, rngs)
        takes_rngs = any("rngs" in calling.names_of(call) for call in (self.preview_call, specialist))
        self.rngs = nnx.Rngs(rngs.params()) if takes_rngs else None
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

    @property
    def preview_call(self) -> Callable:
        return self.preview.network if isinstance(self.preview, Tapped) else self.preview.features

    def preview_stage(self, images: jax.Array, **keywords) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, C] to the first prediction [B, classes] and the coefficients [B, K, N], float32."""
        if self.view is not None:
            images = self.view(images)
        elif self.preview_size is not None:
            images = resize(images, self.preview_size)
        keywords = calling.in_mode(self.preview_call, self.deterministic, self.rngs) | keywords
        if isinstance(self.preview, Tapped):
            features, logits = self.preview(images, **keywords)
        else:
            features = self.preview.features(images, **keywords)
            dropout = getattr(self.preview, "dropout", None)
            logits = self.preview.classifier(features if dropout is None else dropout(features))
        raw = self.coefficient_head(features).reshape(-1, self.num_vectors, self.num_bases)
        raw = raw.astype(jnp.float32) / self.temperature
        kept = self.basis_dropout(raw.shape[0], self.num_bases)
        return logits, coefficients.activate(raw, self.activation, kept, self.top_k)

    def specialist_stage(self, images: jax.Array, coefficients_BKN: jax.Array, **keywords) -> jax.Array:
        """The final prediction [B, classes], each image's by kernels mixed with its own coefficients."""
        keywords = calling.in_mode(self.specialist, self.deterministic, self.rngs) | keywords
        with basis.mixed(self.specialist, coefficients_BKN):
            return self.specialist(images, **keywords)

    def __call__(self, images: jax.Array, *args, **keywords) -> Outputs:
        by_position = calling.named(self.specialist, args)
        if twice := by_position.keys() & keywords.keys():
            raise TypeError(f"{min(twice)!r} is given by position and by keyword")
        keywords |= by_position
        of_preview, of_specialist = (calling.taken(call, keywords) for call in (self.preview_call, self.specialist))
        if unknown := keywords.keys() - of_preview.keys() - of_specialist.keys():
            raise TypeError(f"neither preview nor specialist takes the keyword {min(unknown)!r}")
        preview_logits, coefficients_BKN = self.preview_stage(images, **of_preview)
        return Outputs(
            self.specialist_stage(images, coefficients_BKN, **of_specialist), preview_logits, coefficients_BKN
        )


def _has_features(preview: nnx.Module) -> bool:
    """Whether it is used by its method `features` and its linear layer `classifier`; modules may have these names."""
    return inspect.ismethod(getattr(preview, "features", None)) and isinstance(
        getattr(preview, "classifier", None), nnx.Linear
    )


class Tapped(nnx.Module):
    """Any network with the input of one of its linear layers as a second output: the features of a preview.

    Args:
      network: of images to logits. A copy of it is used.
      path: of the layer, joined with "/". None: the last one defined, and a call makes sure that it gives the logits.
    """

    def __init__(self, network: nnx.Module, path: str | None = None):
        linear = [at for at, module in in_order(network) if isinstance(module, nnx.Linear)]
        if not linear or (path is not None and path not in linear):
            raise ValueError(f"the preview has the linear layers {linear}, expected {path or 'one that gives logits'}")
        self.is_found = path is None
        self.path = path or linear[-1]
        self.network = nnx.recursive_map(
            lambda at, module: Tap(module) if "/".join(map(str, at)) == self.path else module, nnx.clone(network)
        )

    @property
    def tap(self) -> "Tap":
        return next(module for _, module in nnx.iter_modules(self.network) if isinstance(module, Tap))

    @property
    def classifier(self) -> nnx.Linear:
        return self.tap.layer

    def __call__(self, images, **keywords) -> tuple[jax.Array, jax.Array]:
        """The features [B, F] and the logits [B, classes]."""
        logits = self.network(images, **keywords)
        tap = self.tap
        (features, output), tap.seen = tap.seen or (None, None), None
        if features is None or features.ndim != 2 or (self.is_found and output is not logits):
            shape = None if features is None else features.shape
            raise ValueError(
                f"the preview's last linear layer {self.path!r} reads {shape} and its output is "
                f"{'' if output is logits else 'not '}the preview's, expected [B, F] and the logits: name another by "
                "classifier=, or give the preview `features` and `classifier`"
            )
        return features, logits


class Tap(nnx.Module):
    """A linear layer that keeps what it read and gave in its last call."""

    def __init__(self, layer: nnx.Linear):
        self.layer = layer
        self.seen: tuple[jax.Array, jax.Array] | None = nnx.data(None)

    def __call__(self, inputs, *args, **keywords):
        y = self.layer(inputs, *args, **keywords)
        self.seen = inputs, y
        return y


def in_order(network: nnx.Module, path: str = "") -> Iterator[tuple[str, nnx.Module]]:
    """The modules in a network by path, in the order in which they were defined; `nnx.iter_modules` sorts by name."""
    if isinstance(network, nnx.Module):
        yield path, network
        children = vars(network)
    elif isinstance(network, dict):
        children = network
    elif isinstance(network, list | tuple | nnx.List):
        children = dict(enumerate(network))
    else:
        return
    for name, child in children.items():
        if not str(name).startswith("_pytree"):
            yield from in_order(child, f"{path}/{name}".removeprefix("/"))


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
