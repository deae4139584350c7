"""BasisNet in JAX/Flax: a preview network synthesizes a specialist network for every image.

    import basisnet_jax as bnj

    model = bnj.create_model("basisnet_mobilenet_v3_small", num_classes=10, num_bases=8)
    report = bnj.fit(model, batches, num_steps=1000, validation=held_out)
    prediction = model.predict(images)      # uint8 [n, H, W, 3]: labels, probabilities, stage, madds, names

What stands here is imported when it is used.
"""

import importlib
from typing import TYPE_CHECKING

_PLACES = {
    "BasisNet": "basisnet",
    "Outputs": "basisnet",
    "Prediction": "inference.predictions",
    "Preprocess": "preprocess",
    "UserError": "errors",
    "create_model": "factory",
    "fit": "training.fit",
    "list_models": "factory",
    "load": "factory",
    "loss": "training.losses",
    "mixed": "basis",
    "predict": "inference.predictions",
    "synthesize": "basis",
    "with_bases": "basis",
}
__all__ = [
    "BasisNet",
    "Outputs",
    "Prediction",
    "Preprocess",
    "UserError",
    "create_model",
    "fit",
    "list_models",
    "load",
    "loss",
    "mixed",
    "predict",
    "synthesize",
    "with_bases",
]

if TYPE_CHECKING:
    from basisnet_jax.basis import mixed, synthesize, with_bases
    from basisnet_jax.basisnet import BasisNet, Outputs
    from basisnet_jax.errors import UserError
    from basisnet_jax.factory import create_model, list_models, load
    from basisnet_jax.inference.predictions import Prediction, predict
    from basisnet_jax.preprocess import Preprocess
    from basisnet_jax.training.fit import fit
    from basisnet_jax.training.losses import loss


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
