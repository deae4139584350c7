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
import re
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import spmd

from basisnet_jax import layers
from basisnet_jax.classifier import Classifier
from basisnet_jax.layers import BasisConv as BasisConv
from basisnet_jax.layers import BasisLayer, mix
from basisnet_jax.ops import initializers

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
    """The choice of every convolution, transposed ones too."""
    return isinstance(layer, nnx.Conv | nnx.ConvTranspose)


def everything(path: str, layer: nnx.Module) -> bool:
    """The choice of every layer that has a kernel."""
    return layers.has_kernel(layer)


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
      network: any NNX network; its code is not touched. Every module with a parameter `kernel` can have bases:
        `nnx.Conv`, `Linear`, `ConvTranspose`, `LinearGeneral`, `Einsum`, what inherits from them, layers of one's own.
      num_bases: N >= 1.
      where: which layers get bases, by (path joined with "/", layer): `matching(pattern)`, `convolutions`, `everything`
        or another. None: of the networks of this package `matching(LAYERS)`, as the configs have it; of others every
        convolution or, without any, every layer with a kernel. A warning names chosen modules whose weights have
        another name, such as `nnx.Embed`: all bases share them.
      init: the N kernels from (key, the layer's kernel, N): `copies(noise)` of the network's own, or `independent`.
      rngs: its stream "params" is drawn from; None: `nnx.Rngs(0)`.

    Raises:
      ValueError: no layer was chosen, one was that cannot have one kernel for each example, or that has bases.

    Example:
      >>> network = nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)
      >>> specialist = with_bases(network, 4)
      >>> {path: layer.num_bases for path, layer in basis_layers(specialist).items()}
      {'layers/0': 4}
    """
    if num_bases < 1:
        raise ValueError(f"num_bases={num_bases}, expected at least 1")
    before = basis_layers(network)
    chosen = where or _default(network)
    rngs = rngs or nnx.Rngs(0)
    exchanged: dict[int, nnx.Param] = {}  # by the identity of the kernel: layers that share one go on sharing
    left_out: list[str] = []

    def exchange(path, module):
        path = "/".join(map(str, path))
        if not isinstance(module, nnx.Module) or path in before:
            return module
        if owner := next((name for name in before if f"{path}/".startswith(f"{name}/")), None):
            if path == f"{owner}/layer" and chosen(owner, module):
                raise ValueError(f"{owner}: has bases already; choose other layers by where=")
            return module
        inside = basis_layers(module)
        if isinstance(module, nnx.WeightNorm | nnx.SpectralNorm) and inside:
            layer, reader = f"{path}/{next(iter(inside))}", type(module).__name__
            raise ValueError(f"{layer}: {reader} around it takes its kernel, as one; {layers.LEAVE_OUT}")
        if not layers.has_kernel(module):
            if where and _has_weights(module) and where(path, module):
                left_out.append(path)
            return module
        if not chosen(path, module):
            return module
        if inside:
            raise ValueError(f"{path}: {next(iter(inside))} inside it has bases too; choose one of both by where=")
        if id(module.kernel) not in exchanged:
            kernels_N = init(rngs.params(), module.kernel[...], num_bases)
            exchanged[id(module.kernel)] = _with_axis(module.kernel, kernels_N)
        return layers.of(path, module, exchanged[id(module.kernel)])

    network = nnx.recursive_map(exchange, nnx.clone(network))
    if not exchanged:
        raise ValueError("no layer of the network was chosen to get bases")
    if left_out:
        names = ", ".join(left_out)
        warnings.warn(f"chosen, but without a `kernel` that can have bases, so shared as before: {names}", stacklevel=2)
    return network


def _default(network: nnx.Module) -> Callable[[str, nnx.Module], bool]:
    if isinstance(network, Classifier):
        return matching(LAYERS)
    has_convolutions = any(convolutions("", module) for _, module in nnx.iter_modules(network))
    return convolutions if has_convolutions else everything


def _has_weights(module: nnx.Module) -> bool:
    """Whether a module itself holds more than vectors, which all bases share in any layer."""
    return any(isinstance(value, nnx.Param) and value.ndim > 1 for value in vars(module).values())


def _with_axis(kernel: nnx.Param, kernels_N: jax.Array) -> nnx.Param:
    """The kernel's variable, with its metadata, that holds N of them."""
    kernels_N = kernel.copy(jnp.asarray(kernels_N, kernel.dtype))
    spmd.add_axis(kernels_N, 0, {nnx.PARTITION_NAME: None})
    return kernels_N


def _without_axis(kernels_N: nnx.Param, kernel: jax.Array) -> nnx.Param:
    kernels_N = kernels_N.copy()
    spmd.remove_axis(kernels_N, 0, {nnx.PARTITION_NAME: None})
    return kernels_N.copy(kernel)


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
    found = basis_layers(network)
    _check_shape(coefficients_BKN, "B, ", found)
    for k, layer in enumerate(found.values()):
        layer.coefficients = coefficients_BKN[:, k % coefficients_BKN.shape[1]]
    try:
        yield
    finally:
        for layer in found.values():
            layer.coefficients = None


def synthesize(network: nnx.Module, coefficients_KN: jax.Array) -> nnx.Module:
    """The plain network (ordinary layers, one kernel each) for one example's coefficients [K or 1, N].

    Example:
      >>> network = with_bases(nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))), 4)
      >>> synthesize(network, jnp.full((1, 4), 0.25)).layers[0].kernel.shape
      (3, 3, 3, 8)
    """
    found = basis_layers(network)
    _check_shape(coefficients_KN, "", found)
    paths = list(found)

    def exchange(path, layer):
        if not isinstance(layer, BasisLayer):
            return layer
        k = paths.index("/".join(map(str, path))) % coefficients_KN.shape[0]
        plain = layer.layer
        plain.kernel = _without_axis(plain.kernel, mix(coefficients_KN[k][None], plain.kernel[...])[0])
        return plain

    return nnx.recursive_map(exchange, nnx.clone(network))


def _check_shape(coefficients: jax.Array, leading: str, found: dict[str, BasisLayer]) -> None:
    shape, counts = coefficients.shape, {layer.num_bases for layer in found.values()}
    if len(shape) != (3 if leading else 2) or shape[-2] not in (1, len(found)):
        raise ValueError(f"coefficients have shape {shape}, expected [{leading}{len(found)} or 1, N]")
    if counts - {shape[-1]}:
        raise ValueError(f"coefficients of {shape[-1]} bases, shape {shape}, for layers of {max(counts)} bases")
