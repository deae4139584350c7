"""One layer with N kernels, mixed for every example, whatever the layer is.

    BasisConv, BasisLinear   plain `nnx.Conv` and `nnx.Linear`: one kernel per example by the paths of ops/conv.py
    BasisOther               any other module with a parameter `kernel`, subclasses included: its own code runs for each
                             example with that example's kernel

`of(name, layer, kernels_N)` chooses. Each is called as the layer it holds, with what ops/examples.py takes as a batch.
"""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
from flax import nnx

from basisnet_jax.ops import conv as conv_lib
from basisnet_jax.ops import examples, reduction
from basisnet_jax.ops.platforms import platform

ONE_PRODUCT = "one product"  # the path of a layer that never mixes its kernels: `product_of_mixture`
LEAVE_OUT = "leave it out by where="
OWN_CODE = "own code"  # the path of `BasisOther`
PAD_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "CAUSAL": "constant"}  # paddings of nnx.Conv that lax has not


def mix(coefficients_BN: jax.Array, kernels_N: jax.Array) -> jax.Array:
    """Every example's kernel, sum_n coefficients[b, n] * kernels[n]: [B, N], [N, ...] -> [B, ...]."""
    coefficients_BN = coefficients_BN.astype(kernels_N.dtype)
    if platform() == "cpu":  # the gradient of the einsum copies and transposes there: half as long again
        mixed_BP = coefficients_BN @ kernels_N.reshape(kernels_N.shape[0], -1)
        return mixed_BP.reshape(-1, *kernels_N.shape[1:])
    return jnp.einsum("bn,n...->b...", coefficients_BN, kernels_N)


def product_of_mixture(x: jax.Array, coefficients_BN: jax.Array, kernels_N: jax.Array) -> jax.Array:
    """Every example's product with its own mixture, x [B, 1..., I] to [B, 1..., O], without making that mixture.

    As many multiply-adds as mixing alone, in one ordinary matrix product: the N kernels lie below each other, and row b
    has x[b] N times, each weighed by its coefficient. For layers that use a kernel at one position only.
    """
    weighed = coefficients_BN.astype(x.dtype)[:, :, None] * x.reshape(x.shape[0], 1, -1)
    y = jnp.matmul(weighed.reshape(x.shape[0], -1), kernels_N.reshape(-1, kernels_N.shape[-1]))
    return y.reshape(*x.shape[:-1], -1)


class BasisLayer(nnx.Module):
    """A layer that holds N kernels, [N, *kernel shape], in the place of its one, and mixes them for each example.

    What the layer says of itself (`out_features`, `strides`, `bias`) this says too. `kernel` is the N kernels; while
    the network runs there is none to read, because each example has its own.

    With `remat` the backward pass mixes the kernels of all examples again instead of keeping them from the forward
    pass. It costs the mixing, N multiply-adds a weight and example. None does so on TPU only: compiled for v5e, a step
    of imagenet_basisnet_mv3 moves no more bytes and needs 8 to 35 % fewer temporaries. XLA for CPU finds that the
    kernels are mixed twice, and keeps them.
    """

    remat: bool | None = None
    name: str = "a basis layer"  # its path in the network, for errors

    def __init__(self, name: str, layer: nnx.Module, kernels_N: nnx.Param):
        self.name, self.layer = name, layer
        self.layer.kernel = kernels_N
        self.num_bases = kernels_N.shape[0]
        self.coefficients: jax.Array | None = nnx.data(None)  # [B, N], set by `mixed`

    def __getattr__(self, name):
        layer = vars(self).get("layer")
        if layer is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if inspect.ismethod(value := getattr(layer, name)):
            raise AttributeError(f"{self.name}: `{name}` of the layer knows one kernel, not several; {LEAVE_OUT}")
        return value

    @property
    def kernel(self) -> "nnx.Param | _PerExample":
        if self.coefficients is None:
            return self.layer.kernel
        return _PerExample(self.name, self.layer.kernel)

    @property
    def bias(self) -> nnx.Param | None:
        return self.layer.bias

    @property
    def mixes_again(self) -> bool:
        """Whether the backward pass mixes the kernels again, on `platforms.platform()`."""
        return platform() == "tpu" if self.remat is None else self.remat

    def __call__(self, inputs, out_sharding=None):
        if out_sharding is not None:
            raise ValueError(f"{self.name}: out_sharding={out_sharding}, expected None; {LEAVE_OUT}")
        return self.by_example(inputs, lambda x, several: self.run(x))

    def by_example(self, x, run):
        if self.coefficients is None:
            raise ValueError(f"{self.name} was called without coefficients: call the network inside `mixed`")
        return examples.by_example(x, run, self.coefficients, self.rank, self.name)

    def run(self, x):  # [B, ...]
        layer, path = self.layer, self.path_for(x)
        bias = None if layer.bias is None else layer.bias[...]
        params = self.masked_kernels(), bias
        x, kernels_N, bias = layer.promote_dtype((x, *params), dtype=layer.dtype)
        if reduction.applies(x.shape[0], layer.kernel.dtype, kernels_N.dtype):
            kernels_N, bias = params  # which each device casts for its examples
        y = self.mixed_and_applied(x, kernels_N, path, functools.partial(self.apply, path=path))
        if bias is None or bias.dtype == y.dtype:
            return y if bias is None else y + bias
        ones = (1,) * (y.ndim - 2)
        cast = lambda bias, y: jnp.broadcast_to(bias.astype(y.dtype), (y.shape[0], *ones, bias.size))  # noqa: E731
        return y + reduction.by_device(cast, bias, y)

    def masked_kernels(self) -> jax.Array:
        mask = getattr(self.layer, "mask", None)
        return self.layer.kernel[...] if mask is None else self.layer.kernel[...] * mask

    def mixed_and_applied(self, x, kernels_N, path, apply):
        # Only what sums over examples: what is done with an example's own kernel XLA fuses with the layers around it.
        apart = path != OWN_CODE and kernels_N.dtype != x.dtype

        def mix_and_apply(x, coefficients, kernels_N):
            if path == ONE_PRODUCT and apart:
                product = lambda kernels, x, c: product_of_mixture(x, c, kernels.astype(x.dtype))  # noqa: E731
                return reduction.by_device(product, kernels_N, x, coefficients)
            if path == ONE_PRODUCT:
                return product_of_mixture(x, coefficients, kernels_N)
            if platform() == "cpu":
                # Only when x is there: XLA would mix the kernels of all layers first and hold them all, 183 MB more in
                # the forward pass of imagenet_basisnet_mv3 for 32 images.
                coefficients += 0 * jax.lax.stop_gradient(x.reshape(x.shape[0], -1)[:, :1]).astype(coefficients.dtype)
            if apart:
                mixed = lambda kernels, c: mix(c, kernels.astype(x.dtype))  # noqa: E731
                return apply(x, reduction.by_device(mixed, kernels_N, coefficients))
            return apply(x, mix(coefficients, kernels_N))

        if self.mixes_again:
            mix_and_apply = jax.checkpoint(mix_and_apply)
        return mix_and_apply(x, self.coefficients, kernels_N)


class BasisConv(BasisLayer):
    """`nnx.Conv` with N kernels, [N, *window, I / groups, O].

    With `path` every example is convolved that way, one of `conv.PATHS`; None chooses the best for the input's shape.
    """

    path: str | None = None

    @property
    def rank(self) -> int:
        """Axes of one example's input."""
        return len(self.layer.kernel_size) + 1

    def path_for(self, x) -> str:
        """How an input of x's shape is convolved on `platforms.platform()`."""
        shape = (x.shape[0], *x.shape[-self.rank :])
        possible = conv_lib.paths(shape, self.layer.kernel.shape[1:], **self.geometry)
        if self.path is None and possible[0] == "pointwise" and math.prod(x.shape[1:-1]) == 1:
            return ONE_PRODUCT
        return self.path or possible[0]

    def apply(self, x, kernels_B, path):
        x = self.padded(x)
        if x.ndim == self.rank + 1:
            return conv_lib.conv_per_example(x, kernels_B, **self.geometry, path=path)
        more = x.shape[1 : -self.rank]  # [B, more..., *spatial, I]: every example's kernel for more than one input
        x = x.reshape(x.shape[0], -1, *x.shape[-self.rank :])
        y = jax.vmap(lambda x: conv_lib.conv_per_example(x, kernels_B, **self.geometry, path=path), 1, 1)(x)
        return y.reshape(x.shape[0], *more, *y.shape[2:])

    def padded(self, x):
        """Of the paddings that only `nnx.Conv` knows, x as it pads it."""
        if not pads_first(self.layer):
            return x
        reach = [(size - 1) * d for size, d in zip(self.layer.kernel_size, self.geometry["dilation"], strict=True)]
        sides = [(n, 0) if self.layer.padding == "CAUSAL" else (n // 2, (n + 1) // 2) for n in reach]
        return jnp.pad(x, [(0, 0)] * (x.ndim - self.rank) + sides + [(0, 0)], mode=PAD_MODES[self.layer.padding])

    @property
    def geometry(self) -> dict:
        """The arguments of `conv.conv_per_example` that are not arrays."""
        return {
            "strides": per_dimension(self.layer.strides, self.layer),
            "padding": "VALID" if pads_first(self.layer) else explicit(self.layer),
            "dilation": per_dimension(self.layer.kernel_dilation, self.layer),
            "groups": self.layer.feature_group_count,
        }


class BasisLinear(BasisLayer):
    """`nnx.Linear` with N kernels, [N, I, O]: [B, ..., I] -> [B, ..., O]."""

    rank = 1

    def path_for(self, x) -> str:
        return ONE_PRODUCT if math.prod(x.shape[1:-1]) == 1 else "pointwise"

    def apply(self, x, kernels_B, path):
        return jnp.einsum("b...i,bio->b...o", x, kernels_B)


class BasisOther(BasisLayer):
    """Any module with a parameter `kernel`: its own code runs for each example alone, as on a batch of one.

    What it does across examples, such as statistics of the batch, is then that of one example.
    """

    @property
    def rank(self) -> int:
        if isinstance(self.layer, nnx.Conv | nnx.ConvTranspose):
            return len(self.layer.kernel_size) + 1
        if isinstance(self.layer, nnx.LinearGeneral):
            return len(self.layer.axis)
        if isinstance(self.layer, nnx.Einsum):
            return len(self.layer.einsum_str.split(",")[0].replace("...", "").strip()) - ("..." not in self.einsum_str)
        return int(isinstance(self.layer, nnx.Linear))

    def path_for(self, x) -> str:
        return OWN_CODE

    def __call__(self, *args, **kwargs):
        if not args:
            args = (kwargs.pop(next(iter(inspect.signature(self.layer).parameters))),)
        inputs, *more = args
        if not hasattr(inputs, "ndim") or any(getattr(leaf, "ndim", 0) for leaf in jax.tree.leaves((more, kwargs))):
            raise ValueError(f"{self.name}: called with more than one array, or with none; {LEAVE_OUT}")
        return self.by_example(inputs, lambda x, several: self.run(x, several, more, kwargs))

    def run(self, x, several, more, kwargs):  # [B, ...], or of several rows for each example [B, P, ...]
        graph, state = nnx.split(self.layer)

        def own_code(rows, kernel):
            layer = nnx.merge(graph, state, copy=True)
            layer.kernel.set_value(kernel)
            y = layer(rows, *more, **kwargs)
            if getattr(y, "shape", (None,))[:1] != rows.shape[:1]:
                raise ValueError(f"{self.name}: its result is no array whose first axis is the batch; {LEAVE_OUT}")
            if changed := _changed(layer, state):
                raise ValueError(f"{self.name}: its call changes {changed}, which its examples share; {LEAVE_OUT}")
            return y

        x = x if several else x[:, None]  # the layer sees a batch: the example's rows
        over_examples = jax.vmap(own_code)
        if jax.export.is_symbolic_dim(x.shape[0]):  # in an export, which cannot have a convolution for each of b
            over_examples = lambda x, kernels: jax.lax.map(lambda pair: own_code(*pair), (x, kernels))  # noqa: E731
        y = self.mixed_and_applied(x, self.layer.kernel[...], OWN_CODE, over_examples)
        return y if several else y[:, 0]


def of(name: str, layer: nnx.Module, kernels_N: nnx.Param) -> BasisLayer:
    """The layer with those N kernels.

    Raises:
      ValueError: it cannot have one kernel for each example.
    """
    if isinstance(layer, nnx.LinearGeneral) and (layer.batch_axis or 0 in layer.axis):
        raise ValueError(f"{name}: a kernel along the batch, axis={layer.axis}, cannot have bases; {LEAVE_OUT}")
    for kind, kernel_shape in (
        (nnx.Linear, lambda: (layer.in_features, layer.out_features)),
        (nnx.LinearGeneral, lambda: (*layer.in_features, *layer.out_features)),
        (nnx.Conv | nnx.ConvTranspose | nnx.Einsum, lambda: tuple(layer.kernel_shape)),
    ):
        if isinstance(layer, kind) and kernels_N.shape[1:] != kernel_shape():
            shapes = f"a kernel of {kernels_N.shape[1:]}, expected {kernel_shape()}"
            stacked = "layers stacked by nnx.vmap or nnx.scan cannot have bases, a list of layers can"
            raise ValueError(f"{name}: {shapes}: {stacked}; {LEAVE_OUT}")
    if isinstance(layer, nnx.Einsum):
        inputs, kernel, outputs = layer.einsum_str.replace("->", ",").split(",")
        if inputs[:1] != outputs[:1] or inputs[:1] in kernel.replace("...", ""):
            raise ValueError(f"{name}: {layer.einsum_str!r} does not keep the batch as first axis; {LEAVE_OUT}")
    if is_plain(layer, nnx.Conv):
        return BasisConv(name, layer, kernels_N)
    return (BasisLinear if is_plain(layer, nnx.Linear) else BasisOther)(name, layer, kernels_N)


def is_plain(layer: nnx.Module, kind: type[nnx.Conv] | type[nnx.Linear]) -> bool:
    """Whether a layer computes what `kind` does, with no code, hook or precision of its own."""
    if not isinstance(layer, kind) or type(layer).__call__ is not kind.__call__:
        return False
    if layer.precision is not None or layer.preferred_element_type is not None:
        return False
    if kind is nnx.Linear:
        return layer.dot_general is jax.lax.dot_general
    if layer.padding == "CAUSAL" and len(layer.kernel_size) > 1:  # which nnx.Conv refuses when called
        return False
    ours = layer.conv_general_dilated in (jax.lax.conv_general_dilated, conv_lib.conv_general_dilated)
    return ours and set(per_dimension(layer.input_dilation, layer)) == {1}


def pads_first(layer: nnx.Conv) -> bool:
    """Whether a convolution's padding is one that lax has not."""
    return isinstance(layer.padding, str) and layer.padding in PAD_MODES


def has_kernel(module: nnx.Module) -> bool:
    """Whether a module can hold N kernels: it has a parameter `kernel` and is called."""
    return isinstance(vars(module).get("kernel"), nnx.Param) and callable(module)


def per_dimension(value, layer: nnx.Conv) -> tuple[int, ...]:
    if value is None or isinstance(value, int):
        return (value or 1,) * len(layer.kernel_size)
    return tuple(value)


def explicit(layer: nnx.Conv):
    """`layer.padding` as "SAME", "VALID" or (low, high) pairs."""
    if isinstance(layer.padding, str):
        return layer.padding
    sides = (layer.padding,) * len(layer.kernel_size) if isinstance(layer.padding, int) else layer.padding
    return tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)


def _changed(layer: nnx.Module, state: nnx.State) -> str:
    """The path of a variable, no parameter, that is not what it was."""
    before = dict(nnx.to_flat_state(state))
    for path, leaf in nnx.to_flat_state(nnx.state(layer)):
        if not isinstance(leaf, nnx.Param) and jax.tree.leaves(leaf)[0] is not jax.tree.leaves(before[path])[0]:
            return "/".join(map(str, path))
    return ""


class _PerExample:
    """What can be said of a kernel that each example has its own of: its shape."""

    def __init__(self, name: str, kernels_N: nnx.Param):
        self.name, self.shape, self.dtype = name, kernels_N.shape[1:], kernels_N.dtype
        self.ndim, self.size = len(self.shape), math.prod(self.shape)

    def refuse(self, *_):
        raise ValueError(f"{self.name}: the network reads the kernel, of which each example has its own; {LEAVE_OUT}")

    __getitem__ = get_value = refuse
