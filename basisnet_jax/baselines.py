"""CondConv and dynamic convolution: the basis layers of `basis.py`, their coefficients from inside the network.

    CondConv (Yang et al. 2019)              a block's input, pooled -> linear -> sigmoid; shared by the block's layers
    dynamic convolution (Chen et al. 2020)   a layer's input, pooled -> linear, ReLU, linear -> softmax with temperature

There is no preview: no early termination, and no specialist that could be synthesized before the network runs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from basisnet_jax import basis, calling, coefficients
from basisnet_jax.basisnet import Outputs
from basisnet_jax.classifier import Classifier
from basisnet_jax.ops import initializers


class Unit(nnx.Module):
    """A block or a layer with bases that mixes them by coefficients from its own input.

    Args:
      body: the block or layer, with one or more basis layers in it.
      hidden: features of the router's hidden layer, as a share of the input's; 0: the router is one linear layer.
      activation, temperature, top_k: as for `BasisNet`.
      dropout, dropout_per: basis model dropout, as for `BasisNet`, drawn anew in each unit.
    """

    def __init__(
        self,
        body: nnx.Module,
        *,
        hidden: float,
        activation: str,
        temperature: float,
        top_k: int,
        dropout: float,
        dropout_per: str,
        rngs: nnx.Rngs,
    ):
        self.body = body
        self.activation = activation
        self.temperature = temperature
        self.top_k = top_k
        self.num_bases = next(iter(basis.basis_layers(body).values())).num_bases
        squeezed = max(round(hidden * body.in_features), 1) if hidden else body.in_features
        self.squeeze = nnx.Linear(body.in_features, squeezed, rngs=rngs) if hidden else None
        # Nearly even coefficients at first, as in BasisNet's head.
        self.router = nnx.Linear(squeezed, self.num_bases, kernel_init=initializers.normal(0.01), rngs=rngs)
        self.basis_dropout = coefficients.BasisDropout(dropout, dropout_per, rngs)
        self.coefficients: jax.Array | None = nnx.data(None)  # [B, 1, N] of the last call, taken by `Routed`

    def __call__(self, x):
        pooled = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        if self.squeeze is not None:
            pooled = jax.nn.relu(self.squeeze(pooled))
        raw = self.router(pooled)[:, None].astype(jnp.float32) / self.temperature
        kept = self.basis_dropout(raw.shape[0], self.num_bases)
        self.coefficients = coefficients.activate(raw, self.activation, kept, self.top_k)
        with basis.mixed(self.body, self.coefficients):
            return self.body(x)


class Routed(Classifier):
    """A network with units in it: images [B, H, W, C] to `Outputs`, their coefficients [B, units, N] included."""

    def __init__(self, network: nnx.Module, rngs: nnx.Rngs):
        self.network = network
        self.rngs = nnx.Rngs(rngs.params()) if "rngs" in calling.names_of(network) else None

    def units(self) -> dict[str, Unit]:
        return {_joined(path): module for path, module in nnx.iter_modules(self.network) if isinstance(module, Unit)}

    def coefficient_names(self) -> list[str]:
        """What each of the K vectors of coefficients mixes."""
        return list(self.units())

    def __call__(self, images: jax.Array) -> Outputs:
        logits = self.network(images, **calling.in_mode(self.network, self.deterministic, self.rngs))
        units = self.units().values()
        coefficients_BKN = jnp.concatenate([unit.coefficients for unit in units], axis=1)
        for unit in units:  # nothing that depends on the batch stays
            unit.coefficients = None
        return Outputs(logits, coefficients=coefficients_BKN)


def routed(
    network: nnx.Module,
    where: Callable[[str, nnx.Module], bool],
    *,
    hidden: float = 0.0,
    activation: str = "sigmoid",
    temperature: float = 1.0,
    top_k: int = 0,
    dropout: float = 0.0,
    dropout_per: str = "example",
    rngs: nnx.Rngs,
) -> Routed:
    """A copy of `network`, which went through `basis.with_bases`, in which each chosen module is a `Unit`.

    Args:
      network: every basis layer of it must be in exactly one chosen module.
      where: which modules route, by (path joined with "/", module): blocks with an attribute `in_features`, or layers.
      hidden, activation, temperature, top_k, dropout, dropout_per: of every `Unit`.
      rngs: its stream "params" is drawn from; its stream "dropout" is the basis dropout's.

    Raises:
      ValueError: a basis layer is in no chosen module, or in two; or a chosen module has no number `in_features`.
    """
    layers = basis.basis_layers(network)
    fewest = min((layer.num_bases for layer in layers.values()), default=top_k)
    coefficients.check(activation, dropout, dropout_per, top_k, fewest)
    paths = [_joined(path) for path, module in nnx.iter_modules(network) if where(_joined(path), module)]
    for layer in layers:
        owners = [path for path in paths if f"{layer}/".startswith(f"{path}/")]
        if len(owners) != 1:
            raise ValueError(f"{layer} is in {' and '.join(owners) or 'no module'} that routes, expected exactly one")

    def exchange(path, module):
        if not where(_joined(path), module) or not basis.basis_layers(module):
            return module
        if not isinstance(getattr(module, "in_features", None), int):
            raise ValueError(
                f"{_joined(path)} has no number `in_features`, which its router needs; choose other modules"
            )
        return Unit(
            module,
            hidden=hidden,
            activation=activation,
            temperature=temperature,
            top_k=top_k,
            dropout=dropout,
            dropout_per=dropout_per,
            rngs=rngs,
        )

    return Routed(nnx.recursive_map(exchange, nnx.clone(network)), rngs)


def _joined(path) -> str:
    return "/".join(map(str, path))
