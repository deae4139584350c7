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

from basisnet_jax import basis, layers, models
from basisnet_jax.basisnet import BasisNet
from basisnet_jax.early_exit import Rule
from basisnet_jax.networks import blocks
from basisnet_jax.ops.windows import explicit_padding
from basisnet_jax.preprocess import Preprocess

PLATFORMS = ("cpu", "cuda", "tpu")  # for which formats that are not of one device are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One function of an exported model: `stage(*inputs)`, arrays with a leading batch axis, to named arrays."""

    name: str  # "preview", "specialist" or, of a model without a preview, "network"
    function: Callable[..., dict[str, jax.Array]]  # (weights, *inputs)
    weights: list[jax.Array]  # of the whole model, the same for all its stages
    inputs: dict[str, jax.ShapeDtypeStruct]  # by name, in their order, without the batch axis

    def __call__(self, *inputs):
        return self.function(self.weights, *inputs)


def of(
    model: nnx.Module, seen: Preprocess, rule: Rule, kernels: str = "any", *, one_scale: bool = False
) -> list[Stage]:
    """The stages of a model in evaluation mode, computing in float32.

    preview: images -> logits (`rule.scaled`), confidence, coefficients; specialist: images, coefficients -> logits;
    network: images -> logits.

    Args:
      seen: what the model sees of an image.
      rule: what the preview's confidence means.
      kernels: "any" for any number of images; "hwio" or "oihw" for one at a time, by the layout that the runtime wants.
      one_scale: whether bases are stored so that one scale for all of them loses little when they are rounded.
    """
    model = folded(model)
    model.set_attributes(dtype=jnp.float32, raise_if_not_found=False)
    if kernels != "any":
        inside = {(*path, "layer") for path, module in nnx.iter_modules(model) if isinstance(module, basis.BasisLayer)}

        def exchange(path, layer):
            if isinstance(layer, basis.BasisConv) and is_known(layer.layer):
                return MixedConv(layer, kernels, one_scale)
            return PlainConv(layer, kernels) if is_known(layer) and path not in inside else layer

        model = nnx.recursive_map(exchange, model)
    graph, state, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    weights, tree = jax.tree.flatten(state)

    def network(model, images):
        outputs = model(seen.normalize(images))
        return {"logits": getattr(outputs, "logits", outputs)}

    def preview(model, images):
        logits, coefficients = model.preview_stage(seen.normalize(images))
        return {"logits": rule.scaled(logits), "confidence": rule.confidence(logits), "coefficients": coefficients}

    def specialist(model, images, coefficients):
        return {"logits": model.specialist_stage(seen.normalize(images), coefficients)}

    def stage(call, inputs):
        def function(weights, *inputs):
            return call(nnx.merge(graph, tree.unflatten(weights), rest, copy=True), *inputs)

        return Stage(call.__name__, function, weights, inputs)

    calls = {call.__name__: call for call in (network, preview, specialist)}
    return [stage(calls[name], of_stage) for name, of_stage in inputs(model, seen).items()]


def inputs(model: nnx.Module, seen: Preprocess) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The inputs of every stage, by the names of both, without the batch axis."""
    image = jax.ShapeDtypeStruct(seen.shape, jnp.uint8)
    if not isinstance(model, BasisNet):
        return {"network": {"images": image}}
    coefficients = jax.ShapeDtypeStruct((model.num_vectors, model.num_bases), jnp.float32)
    return {"preview": {"images": image}, "specialist": {"images": image, "coefficients": coefficients}}


def folded(model: nnx.Module) -> nnx.Module:
    """A copy whose batch norms are part of the convolutions before them; in evaluation mode it computes the same."""
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, blocks.ConvNorm):
            norm, layer = module.norm, models.unwrapped(module.conv)
            scale = np.asarray(norm.scale[...]) / np.sqrt(np.asarray(norm.var[...]) + norm.epsilon)
            bias = 0 if layer.bias is None else layer.bias[...]
            layer.kernel = nnx.Param(layer.kernel[...] * scale)
            layer.bias = nnx.Param(norm.bias[...] + (bias - norm.mean[...]) * scale)
            layer.use_bias = True
            module.norm = norm.activation
    return model


class PlainConv(nnx.Module):
    """A convolution whose kernel lies in the layout that the runtime wants."""

    def __init__(self, layer: nnx.Conv, layout: str):
        self.layer, self.layout = layer, layout
        self.layer.kernel = nnx.Param(laid_out(layer.kernel[...], layout))

    def __call__(self, x):
        return convolve(x, self.layer.kernel[...], self.layer, self.layout)


class MixedConv(basis.BasisConv):
    """A convolution with bases for a batch of one; they lie in the order in which the mixed kernel is wanted.

    With `one_scale` the bases are divided by the largest magnitude in their output channel, and the mixed kernel is
    multiplied by it: less than another basis would cost.
    """

    def __init__(self, wrapped: basis.BasisConv, layout: str, one_scale: bool):
        self.name, self.layer, self.num_bases, self.layout = wrapped.name, wrapped.layer, wrapped.num_bases, layout
        self.coefficients: jax.Array | None = nnx.data(None)
        kernels_N, self.scale = np.asarray(self.layer.kernel[...]), nnx.data(None)
        if one_scale:
            scale = np.abs(kernels_N).max(axis=tuple(range(kernels_N.ndim - 1)), keepdims=True)
            scale[scale == 0] = 1
            kernels_N, self.scale = kernels_N / scale, nnx.Param(laid_out(scale[0], layout))
        kernels_N = laid_out(kernels_N, layout)
        self.shape = kernels_N.shape[1:]
        self.layer.kernel = nnx.Param(kernels_N.reshape(self.num_bases, -1))

    def __call__(self, x):
        kernel = jnp.matmul(self.coefficients, self.layer.kernel[...]).reshape(self.shape)
        if self.scale is not None:
            kernel = kernel * self.scale[...]
        return convolve(x, kernel, self.layer, self.layout, is_known=False)


def is_known(layer: nnx.Module) -> bool:
    """Whether `convolve` does what the layer does: a 2-D convolution, with no code, mask or padding of its own kind."""
    is_plain = layers.is_plain(layer, nnx.Conv) and len(layer.kernel_size) == 2
    return is_plain and layer.mask is None and not layers.pads_first(layer)


def laid_out(kernels: jax.Array, layout: str) -> np.ndarray:
    """[..., *window, I / groups, O], as it is ("hwio") or as [..., O, I / groups, *window] ("oihw"), 2-D windows."""
    kernels = np.asarray(kernels)
    return np.moveaxis(kernels, (-1, -2), (-4, -3)) if layout == "oihw" else kernels


def convolve(x: jax.Array, kernel: jax.Array, layer: nnx.Conv, layout: str, is_known: bool = True) -> jax.Array:
    """What `layer` does to x [1, H, W, I], with another kernel, which the runtime knows beforehand or does not."""
    strides, dilation = (layers.per_dimension(of, layer) for of in (layer.strides, layer.kernel_dilation))
    window = kernel.shape[2:] if layout == "oihw" else kernel.shape[:2]
    padding = explicit_padding(x.shape[1:-1], window, strides, layers.explicit(layer), dilation)
    bias = 0 if layer.bias is None else layer.bias[...]
    is_product = layer.feature_group_count == 1 and set(window) == set(strides) == {1} and not any(map(any, padding))
    if layout == "hwio" and is_product and not is_known:
        # TensorFlow Lite is quick at products with a matrix it does not know beforehand, but not at convolutions.
        y = jnp.matmul(x.reshape(1, -1, x.shape[-1]), kernel.reshape(1, *kernel.shape[-2:])) + bias
        return y.reshape(*x.shape[:-1], -1)
    axes = ("NHWC", layout.upper(), "NHWC")
    groups = layer.feature_group_count
    y = jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=axes, feature_group_count=groups
    )
    return y + bias
