"""The stages of a model as functions that an exporter can write down: uint8 images in, named arrays out.

Two things are made ready for inference. Batch norm is folded into the convolution before it, into every basis of it
where there are several: mixing is linear. And for formats that run one image at a time, the bases lie in memory as the
runtime wants the mixed kernel, so that mixing is one matrix product and nothing is transposed after it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import basis, evaluate
from basisnet_jax.early_exit import Rule
from basisnet_jax.networks import blocks


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One function of an exported model: `stage(*inputs)`, arrays with a leading batch axis, to named arrays."""

    name: str  # "preview", "specialist" or, of a model without a preview, "network"
    function: Callable[..., dict[str, jax.Array]]  # (weights, *inputs)
    weights: list[jax.Array]  # of the whole model, the same for all its stages
    inputs: dict[str, jax.ShapeDtypeStruct]  # by name, in their order, without the batch axis

    def __call__(self, *inputs):
        return self.function(self.weights, *inputs)


def of(model: nnx.Module, config, rule: Rule, kernels: str = "any") -> list[Stage]:
    """The stages of a model in evaluation mode, computing in float32.

    preview: images -> logits (`rule.scaled`), confidence, coefficients; specialist: images, coefficients -> logits;
    network: images -> logits.

    Args:
      config: the run's.
      rule: what the preview's confidence means.
      kernels: "any" for any number of images; "hwio" or "oihw" for one at a time, by the layout that the runtime wants.
    """
    model = folded(model)
    model.set_attributes(dtype=jnp.float32, raise_if_not_found=False)
    image = jax.ShapeDtypeStruct(evaluate.image_shape(config), jnp.uint8)

    if config.model == "basisnet" and kernels != "any":
        model.specialist = nnx.recursive_map(
            lambda _, layer: SingleConv(layer, kernels) if isinstance(layer, basis.BasisConv) else layer,
            model.specialist,
        )
    graph, state, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    weights, tree = jax.tree.flatten(state)

    def stage(call, **inputs):
        def function(weights, *inputs):
            return call(nnx.merge(graph, tree.unflatten(weights), rest, copy=True), *inputs)

        return Stage(call.__name__, function, weights, inputs)

    def network(model, images):
        outputs = model(evaluate.normalize(images, config))
        return {"logits": getattr(outputs, "logits", outputs)}

    def preview(model, images):
        logits, coefficients = model.preview_stage(evaluate.normalize(images, config))
        return {"logits": rule.scaled(logits), "confidence": rule.confidence(logits), "coefficients": coefficients}

    def specialist(model, images, coefficients):
        return {"logits": model.specialist_stage(evaluate.normalize(images, config), coefficients)}

    if config.model != "basisnet":
        return [stage(network, images=image)]
    coefficients = jax.ShapeDtypeStruct((model.num_vectors, model.num_bases), jnp.float32)
    return [stage(preview, images=image), stage(specialist, images=image, coefficients=coefficients)]


def folded(model: nnx.Module) -> nnx.Module:
    """A copy whose batch norms are part of the convolutions before them; in evaluation mode it computes the same."""
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, blocks.ConvNorm):
            norm, layer = module.norm, getattr(module.conv, "layer", module.conv)
            scale = np.asarray(norm.scale[...]) / np.sqrt(np.asarray(norm.var[...]) + norm.epsilon)
            bias = 0 if layer.bias is None else layer.bias[...]
            layer.kernel = nnx.Param(layer.kernel[...] * scale)
            layer.bias = nnx.Param(norm.bias[...] + (bias - norm.mean[...]) * scale)
            layer.use_bias = True
            module.norm = nnx.identity
    return model


class SingleConv(basis.BasisConv):
    """A convolution with bases for a batch of one. The kernels lie in the order in which the mixed one is wanted."""

    def __init__(self, wrapped: basis.BasisConv, layout: str):
        self.layer, self.num_bases, self.layout = wrapped.layer, wrapped.num_bases, layout
        self.coefficients: jax.Array | None = nnx.data(None)
        kernels_N = np.asarray(self.layer.kernel[...])  # [N, *window, I / groups, O]
        if layout == "oihw":
            kernels_N = np.moveaxis(kernels_N, (-1, -2), (1, 2))
        self.shape = kernels_N.shape[1:]
        self.layer.kernel = nnx.Param(kernels_N.reshape(self.num_bases, -1))

    def __call__(self, x):
        layer, rank = self.layer, x.ndim - 2
        kernel = jnp.matmul(self.coefficients, layer.kernel[...]).reshape(self.shape)
        bias = 0 if layer.bias is None else layer.bias[...]
        padding, strides = basis._padding(layer), basis._per_dimension(layer.strides, layer)
        if self.layout == "hwio" and set(self.shape[:-2]) == set(strides) == {1} and padding in ("SAME", "VALID"):
            # TensorFlow Lite is quick at products with a matrix it does not know beforehand, but not at convolutions.
            y = jnp.matmul(x.reshape(1, -1, x.shape[-1]), kernel.reshape(1, *self.shape[-2:])) + bias
            return y.reshape(*x.shape[:-1], -1)
        spatial = range(rank)
        kernel_axes = (0, 1, *(2 + i for i in spatial)) if self.layout == "oihw" else (rank + 1, rank, *spatial)
        features = (0, rank + 1, *(1 + i for i in spatial))
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=basis._per_dimension(layer.kernel_dilation, layer),
            dimension_numbers=jax.lax.ConvDimensionNumbers(features, kernel_axes, features),
            feature_group_count=layer.feature_group_count,
        )
        return y + bias
