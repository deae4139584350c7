"""The idea of the paper on one page: N kernels where a network had one, mixed anew for every example.

`with_bases(network, N)` gives any NNX network's convolutions (and, if asked, linear layers) N kernels each;
`mixed(network, coefficients)` runs it with every example's own mixture; `synthesize(network, coefficients)` turns it
back into the plain network for one set of coefficients:

    specialist = with_bases(network, 16, rngs=nnx.Rngs(0))
    with mixed(specialist, coefficients):        # [B, K, N]: example, layer, basis
        logits = specialist(images)              # the network's own code, unchanged
    plain = synthesize(specialist, coefficients[0])

Coefficients never pass through the network's signature, and are gone when the block ends: nothing that depends on the
batch is ever part of the saved state. Biases, batch norm and all layers not chosen are shared by all bases.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from basisnet_jax.classifier import Classifier
from basisnet_jax.ops import conv as conv_lib
from basisnet_jax.ops import initializers
from basisnet_jax.ops.platforms import platform

ONE_PRODUCT = "one product"  # the path of a layer that never mixes its kernels: `product_of_mixture`


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

    With `remat` the backward pass mixes the kernels of all examples again instead of keeping them from the forward
    pass. It costs the mixing, N multiply-adds a weight and example. None does so on TPU only: compiled for v5e, a step
    of imagenet_basisnet_mv3 moves no more bytes and needs 8 to 35 % fewer temporaries. XLA for CPU finds that the
    kernels are mixed twice, and keeps them.
    """

    remat: bool | None = None

    def __init__(self, layer: nnx.Conv | nnx.Linear, kernels_N: jax.Array):
        self.layer = layer
        self.layer.kernel = nnx.Param(jnp.asarray(kernels_N, layer.kernel.dtype))
        self.num_bases = kernels_N.shape[0]
        self.coefficients: jax.Array | None = nnx.data(None)  # [B, N], set by `mixed`

    @property
    def in_features(self) -> int:
        return self.layer.in_features

    @property
    def mixes_again(self) -> bool:
        """Whether the backward pass mixes the kernels again, on `platforms.platform()`."""
        return platform() == "tpu" if self.remat is None else self.remat

    def __call__(self, x):
        if self.coefficients is None:
            raise ValueError("a basis layer was called without coefficients: call the network inside `mixed`")
        if self.coefficients.shape[0] != x.shape[0]:
            raise ValueError(f"got coefficients of {self.coefficients.shape[0]} examples for a batch of {x.shape[0]}")
        layer, path = self.layer, self.path_for(x)
        bias = None if layer.bias is None else layer.bias[...]
        x, kernels_N, bias = layer.promote_dtype((x, layer.kernel[...], bias), dtype=layer.dtype)

        def mix_and_apply(x, coefficients, kernels_N):
            if path == ONE_PRODUCT:
                return product_of_mixture(x, coefficients, kernels_N)
            if platform() == "cpu":
                # Only when x is there: XLA would mix the kernels of all layers first and hold them all, 183 MB more in
                # the forward pass of imagenet_basisnet_mv3 for 32 images.
                coefficients += 0 * jax.lax.stop_gradient(x.reshape(x.shape[0], -1)[:, :1]).astype(coefficients.dtype)
            return self.apply(x, mix(coefficients, kernels_N), path)

        if self.mixes_again:
            mix_and_apply = jax.checkpoint(mix_and_apply)
        y = mix_and_apply(x, self.coefficients, kernels_N)
        return y if bias is None else y + bias


class BasisConv(BasisLayer):
    """`nnx.Conv` with N kernels, [N, *window, I / groups, O].

    With `path` every example is convolved that way, one of `conv.PATHS`; None chooses the best for the input's shape.
    """

    path: str | None = None

    def path_for(self, x) -> str:
        """How an input of x's shape is convolved on `platforms.platform()`."""
        possible = conv_lib.paths(x.shape, self.layer.kernel.shape[1:], **self.geometry)
        if self.path is None and possible[0] == "pointwise" and math.prod(x.shape[1:-1]) == 1:
            return ONE_PRODUCT
        return self.path or possible[0]

    def apply(self, x, kernels_B, path):
        return conv_lib.conv_per_example(x, kernels_B, **self.geometry, path=path)

    @property
    def geometry(self) -> dict:
        """The arguments of `conv.conv_per_example` that are not arrays."""
        return {
            "strides": _per_dimension(self.layer.strides, self.layer),
            "padding": _padding(self.layer),
            "dilation": _per_dimension(self.layer.kernel_dilation, self.layer),
            "groups": self.layer.feature_group_count,
        }


class BasisLinear(BasisLayer):
    """`nnx.Linear` with N kernels, [N, I, O]: [B, ..., I] -> [B, ..., O]."""

    def path_for(self, x) -> str:
        return ONE_PRODUCT if math.prod(x.shape[1:-1]) == 1 else "pointwise"

    def apply(self, x, kernels_B, path):
        return jnp.einsum("b...i,bio->b...o", x, kernels_B)


Initializer = Callable[[jax.Array, jax.Array, int], jax.Array]


def independent(key: jax.Array, kernel: jax.Array, num_bases: int) -> jax.Array:
    """N independent kernels: the network's own first, then normal draws with its standard deviation.

    The layer's own initialiser is not needed, so this works for any network whose weights were just initialised.
    """
    kernel = initializers.on_host(kernel)
    drawn = kernel.std() * initializers.standard_normal(key, (num_bases - 1, *kernel.shape))
    return kernel.__array_namespace__().concatenate([kernel[None], drawn])


def copies(noise: float) -> Initializer:
    """N copies of the given kernel, each plus normal noise of `noise` times the kernel's standard deviation.

    The noise of all N sums to zero: with even coefficients the network computes what it computed before. With noise 0
    it does so with any coefficients that sum to one.
    """

    def initialize(key, kernel, num_bases):
        kernel = initializers.on_host(kernel)
        drawn = initializers.standard_normal(key, (num_bases, *kernel.shape))
        drawn = (drawn - drawn.mean(axis=0)) * (num_bases / max(num_bases - 1, 1)) ** 0.5  # of variance 1 again
        return kernel + noise * kernel.std() * drawn

    return initialize


noisy_copies = copies(0.1)  # what configs have too


# The layers that get bases in the networks of this package: all convolutions but the stem and squeeze-and-excite.
LAYERS = r"stages/.*/(expand|depthwise|project)/conv|last/conv|head(/conv)?"


def convolutions(path: str, layer: nnx.Module) -> bool:
    """The choice of every convolution."""
    return isinstance(layer, nnx.Conv)


def matching(pattern: str) -> Callable[[str, nnx.Module], bool]:
    """The choice of the layers whose whole path, such as "stages/0/1/expand/conv", the regular expression matches."""
    return lambda path, layer: re.fullmatch(pattern, path) is not None


def with_bases(
    network: nnx.Module,
    num_bases: int,
    *,
    where: Callable[[str, nnx.Module], bool] | None = None,
    init: Initializer = noisy_copies,
    rngs: nnx.Rngs | None = None,
) -> nnx.Module:
    """A copy of `network` in which the chosen layers hold `num_bases` kernels each.

    Args:
      network: any NNX network; its code is not touched, `nnx.Conv` and `nnx.Linear` inside it are exchanged.
      num_bases: N >= 1.
      where: which layers get bases, by (path joined with "/", layer): `matching(pattern)`, `convolutions` or another.
        None: of the networks of this package `matching(LAYERS)`, as the configs have it; of others every convolution.
      init: the N kernels from (key, the layer's kernel, N): `copies(noise)` of the network's own, or `independent`.
      rngs: its stream "params" is drawn from; None: `nnx.Rngs(0)`.

    Raises:
      ValueError: no layer was chosen, or one was whose kind of convolution cannot have one kernel per example.

    Example:
      >>> network = nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)
      >>> specialist = with_bases(network, 4)
      >>> {path: layer.num_bases for path, layer in basis_layers(specialist).items()}
      {'layers/0': 4}
    """
    if num_bases < 1:
        raise ValueError(f"num_bases={num_bases}, expected at least 1")
    if where is None:
        where = matching(LAYERS) if isinstance(network, Classifier) else convolutions
    rngs = rngs or nnx.Rngs(0)

    def exchange(path, layer):
        path = "/".join(map(str, path))
        if not isinstance(layer, (nnx.Conv, nnx.Linear)) or not where(path, layer):
            return layer
        if isinstance(layer, nnx.Conv):
            _check_supported(path, layer)
        kernels_N = init(rngs.params(), layer.kernel[...], num_bases)
        return (BasisConv if isinstance(layer, nnx.Conv) else BasisLinear)(layer, kernels_N)

    network = nnx.recursive_map(exchange, nnx.clone(network))
    if not basis_layers(network):
        raise ValueError("no layer of the network was chosen to get bases")
    return network


def basis_layers(network: nnx.Module) -> dict[str, BasisLayer]:
    """The basis layers by path. Their order is that of the K axis of the coefficients."""
    return {
        "/".join(map(str, path)): module for path, module in nnx.iter_modules(network) if isinstance(module, BasisLayer)
    }


@contextlib.contextmanager
def mixed(network: nnx.Module, coefficients_BKN: jax.Array) -> Iterator[None]:
    """Inside this block the network runs with kernels mixed by `coefficients` [B, K, N], one row an example.

    K is the number of `basis_layers`, in their order, or 1: one vector for all layers.

    Example:
      >>> network = with_bases(nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))), 4)
      >>> with mixed(network, jnp.full((2, 1, 4), 0.25)):
      ...     y = network(jnp.zeros((2, 16, 16, 3)))
      >>> y.shape
      (2, 16, 16, 8)
    """
    layers = basis_layers(network)
    if coefficients_BKN.ndim != 3 or coefficients_BKN.shape[1] not in (1, len(layers)):
        raise ValueError(f"coefficients have shape {coefficients_BKN.shape}, expected [B, {len(layers)} or 1, N]")
    for k, layer in enumerate(layers.values()):
        layer.coefficients = coefficients_BKN[:, k % coefficients_BKN.shape[1]]
    try:
        yield
    finally:
        for layer in layers.values():
            layer.coefficients = None


def synthesize(network: nnx.Module, coefficients_KN: jax.Array) -> nnx.Module:
    """The plain network (ordinary layers, one kernel each) for one example's coefficients [K or 1, N].

    Example:
      >>> network = with_bases(nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))), 4)
      >>> synthesize(network, jnp.full((1, 4), 0.25)).layers[0].kernel.shape
      (3, 3, 3, 8)
    """
    paths = list(basis_layers(network))
    if coefficients_KN.ndim != 2 or coefficients_KN.shape[0] not in (1, len(paths)):
        raise ValueError(f"coefficients have shape {coefficients_KN.shape}, expected [{len(paths)} or 1, N]")

    def exchange(path, layer):
        if not isinstance(layer, BasisLayer):
            return layer
        k = paths.index("/".join(map(str, path))) % coefficients_KN.shape[0]
        plain = layer.layer
        plain.kernel = nnx.Param(mix(coefficients_KN[k][None], plain.kernel[...])[0])
        return plain

    return nnx.recursive_map(exchange, nnx.clone(network))


def _check_supported(path: str, layer: nnx.Conv) -> None:
    if layer.mask is not None or _per_dimension(layer.input_dilation, layer) != (1,) * len(layer.kernel_size):
        raise ValueError(f"{path}: a convolution with a mask or input dilation cannot have bases")
    if isinstance(layer.padding, str) and layer.padding not in ("SAME", "VALID"):
        raise ValueError(f"{path}: padding {layer.padding!r} cannot have bases, expected SAME, VALID or numbers")


def _per_dimension(value, layer: nnx.Conv) -> tuple[int, ...]:
    if value is None or isinstance(value, int):
        return (value or 1,) * len(layer.kernel_size)
    return tuple(value)


def _padding(layer: nnx.Conv):
    """`layer.padding` as "SAME", "VALID" or (low, high) pairs."""
    if isinstance(layer.padding, str):
        return layer.padding
    sides = (layer.padding,) * len(layer.kernel_size) if isinstance(layer.padding, int) else layer.padding
    return tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)
