"""What all networks here share besides their layers: they know how images are prepared, and predict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flax import nnx

from basisnet_jax import calling
from basisnet_jax.preprocess import Preprocess

if TYPE_CHECKING:
    import numpy as np

    from basisnet_jax.early_exit import Rule
    from basisnet_jax.inference.predictions import Prediction


class Classifier(nnx.Module):
    """A network that `create_model` or `load` returns. What it computes is up to its subclass."""

    preprocess: Preprocess | None = None  # None: images are given as the network takes them
    names: tuple[str, ...] | None = None  # of the classes, by label
    config_json: str | None = None  # of the config that makes it; None: it was made otherwise
    deterministic: bool | None = None  # False after `train()`, True after `eval()`
    rule: "Rule | None" = None  # when an image stops at the preview; None: no image does

    def predict(
        self,
        images: "np.ndarray | Sequence[np.ndarray]",
        *,
        threshold: float | None = None,
        batch_size: int = 64,
    ) -> "Prediction":
        """Labels, probabilities, and what they cost: see `basisnet_jax.predict`."""
        from basisnet_jax.inference import predictions

        return predictions.predict(self, images, threshold=threshold, batch_size=batch_size)


class Static(Classifier):
    """A network of one's own, images to logits [B, classes], as a model: it is told whether it trains, and predicts."""

    def __init__(self, network: nnx.Module, rngs: nnx.Rngs):
        self.network = network
        self.rngs = nnx.Rngs(rngs.params()) if "rngs" in calling.names_of(network) else None

    def __call__(self, images, **keywords):
        return self.network(images, **calling.in_mode(self.network, self.deterministic, self.rngs) | keywords)
