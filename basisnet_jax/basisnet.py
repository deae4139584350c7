"""BasisNet: a preview network's first answer and coefficients, and the specialist they synthesize.

The form of the coefficients (one softmax over the bases for each layer) is our reconstruction of the paper, an
assumption; sigmoid, temperature and one vector for all layers are here to be compared with it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from basisnet_jax import basis, coefficients, initializers, networks
from basisnet_jax.errors import UserError

COEFFICIENT_FIELDS = ("activation", "temperature", "dropout", "dropout_per")  # of the config, for the models


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
        kept = self.basis_dropout(len(raw), self.num_bases)
        return logits, coefficients.activate(raw, self.activation, kept)

    def specialist_stage(self, images: jax.Array, coefficients_BKN: jax.Array) -> jax.Array:
        """The final prediction [B, classes], each image's by kernels mixed with its own coefficients."""
        with basis.mixed(self.specialist, coefficients_BKN):
            return self.specialist(images)

    def __call__(self, images: jax.Array) -> Outputs:
        preview_logits, coefficients_BKN = self.preview_stage(images)
        return Outputs(self.specialist_stage(images, coefficients_BKN), preview_logits, coefficients_BKN)


def create(config: ml_collections.ConfigDict) -> nnx.Module:
    """The model that a config describes: a `BasisNet`, a `baselines.Routed`, or "static" the plain `config.network`."""
    for field, known in (("model", ("basisnet", "routed", "static")), ("dtype", ("float32", "bfloat16"))):
        if config[field] not in known:
            raise UserError(f"config.{field}={config[field]!r}, expected one of {', '.join(known)}")
    common = dict(num_classes=config.num_classes, channels=config.channels, dtype=jnp.dtype(config.dtype))
    rngs = nnx.Rngs(config.seed)
    network = networks.create(**config.network, **common, rngs=rngs)
    if config.model == "static":
        return network
    of_coefficients = {name: config.coefficients[name] for name in COEFFICIENT_FIELDS}
    try:
        chosen = basis.matching(config.basis.layers)
        network = basis.with_bases(network, config.basis.num_bases, where=chosen, rngs=rngs)
        if config.model == "routed":
            from basisnet_jax import baselines

            units = basis.matching(config.routing.units)
            return baselines.routed(network, units, hidden=config.routing.hidden, **of_coefficients, rngs=rngs)
        preview = dict(config.preview)
        preview_size = preview.pop("image_size")
        preview = networks.create(**preview, **common, rngs=rngs)
        shared = config.coefficients.shared
        return BasisNet(network, preview, preview_size=preview_size, shared=shared, **of_coefficients, rngs=rngs)
    except ValueError as error:  # of these, all are about what the config gave
        raise UserError(f"config.basis, config.coefficients or config.routing: {error}") from error


def resize(images: jax.Array, size: int) -> jax.Array:
    """Images [B, H, W, C] at [B, size, size, C], bilinear with antialiasing; costs no multiply-adds we count."""
    if images.shape[1:3] == (size, size):
        return images
    return jax.image.resize(images, (images.shape[0], size, size, images.shape[-1]), "bilinear")


class Functional(NamedTuple):
    """A model as plain data and pure functions of it, which is what training, evaluation and checkpoints see."""

    params: dict
    batch_stats: dict
    train: Callable  # (params, batch_stats, images, key, temperature=None) -> (Outputs, new batch_stats)
    evaluate: Callable  # (params, batch_stats, images) -> Outputs


def functional(model: nnx.Module) -> Functional:
    """Splits a model; all its randomness in training (dropout) follows from the key given to `train`.

    A `temperature` given to `train` stands in for that of the coefficients.
    """
    model.train()
    train_graph, params, batch_stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    model.eval()
    eval_graph = nnx.graphdef(model)

    def outputs(model, images):
        result = model(images)
        return result if isinstance(result, Outputs) else Outputs(result)

    def train(params, batch_stats, images, key, temperature=None):
        fresh = nnx.State(params), nnx.State(batch_stats), _reseeded(rest, key)
        model = nnx.merge(train_graph, *fresh, copy=True)
        if temperature is not None:
            model.set_attributes(temperature=temperature, raise_if_not_found=False)
        return outputs(model, images), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def evaluate(params, batch_stats, images):
        model = nnx.merge(eval_graph, nnx.State(params), nnx.State(batch_stats), rest, copy=True)
        return outputs(model, images)

    return Functional(nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats), train, evaluate)


def _reseeded(rest: nnx.State, key: jax.Array) -> nnx.State:
    """The state with every random key in it replaced by one that follows from `key`."""
    leaves, tree = jax.tree.flatten(rest)
    keys = [
        jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, keys)


def create_abstract(config: ml_collections.ConfigDict) -> nnx.Module:
    """The model of a config with shapes in place of arrays: costs no memory, for counting."""
    return nnx.eval_shape(lambda: create(config))
