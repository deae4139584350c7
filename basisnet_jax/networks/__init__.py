"""The networks, by name. Each is a plain `nnx.Module`: images to logits, `features` to what its classifier reads.

A network of one's own has the name PACKAGE.MODULE:FACTORY, see `own`.
"""

import functools
import inspect

from flax import nnx

from basisnet_jax.configs import ranges
from basisnet_jax.errors import UserError
from basisnet_jax.networks import efficientnet, mobilenet_v2, mobilenet_v3, own

NETWORKS = {
    "mobilenet_v2": mobilenet_v2.MobileNetV2,
    "mobilenet_v3_large": functools.partial(mobilenet_v3.MobileNetV3, mobilenet_v3.LARGE, head_features=1280),
    "mobilenet_v3_small": functools.partial(mobilenet_v3.MobileNetV3, mobilenet_v3.SMALL, head_features=1024),
    "efficientnet_b0": functools.partial(efficientnet.EfficientNet, efficientnet.B0, head_features=1280),
    "efficientnet_b1": functools.partial(efficientnet.EfficientNet, efficientnet.B1, head_features=1280),
    "efficientnet_b2": functools.partial(efficientnet.EfficientNet, efficientnet.B2, head_features=1408, dropout=0.3),
    "efficientnet_lite0": functools.partial(
        efficientnet.EfficientNet, efficientnet.LITE0, head_features=1280, scale_stem=False
    ),
}


def create(name: str, **kwargs) -> nnx.Module:
    """The network called `name`, built with its class's arguments; one that is None keeps the class's default.

    Of one's own, PACKAGE.MODULE:FACTORY, as `own.create` does it.
    """
    if ranges.is_own(name):
        return own.create(name, **kwargs)
    if name not in NETWORKS:
        known = ", ".join(sorted(NETWORKS))
        raise UserError(f"network {name!r} is unknown, expected one of {known}, or PACKAGE.MODULE:FACTORY")
    given = {key: value for key, value in kwargs.items() if value is not None}
    network = NETWORKS[name]
    known = inspect.signature(getattr(network, "func", network).__init__).parameters
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"network {name!r} has no argument {unknown[0]!r}")
    return network(**given)
