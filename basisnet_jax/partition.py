"""The mesh, and where arrays live on it: batches split over the "data" axis, the state on every device."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from basisnet_jax.errors import UserError


def create_mesh(batch_size: int) -> Mesh:
    """All devices of all processes along "data"; they must divide the global batch."""
    if batch_size % jax.device_count():
        raise UserError(f"batch size {batch_size} is no multiple of the {jax.device_count()} devices")
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch as global arrays split over the mesh."""
    sharding = over_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
