"""BasisNet in JAX/Flax."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flax import nnx


def load(directory: str) -> "nnx.Module":
    """The model that `basisnet export --format=safetensors` wrote to a directory, in evaluation mode.

    Raises:
      basisnet_jax.errors.UserError: there is none, or it is damaged or of another format.
    """
    from basisnet_jax import export

    return export.load_model(directory)
