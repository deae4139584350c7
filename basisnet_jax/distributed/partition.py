"""The mesh, and where arrays live on it.

Two axes, "data" and "fsdp". Every batch is split over both. The state is copied along "data" and split along "fsdp":

    1. An array of fewer than 2^14 elements is on every device: splitting it would save less than gathering it costs.
    2. A larger one is split along its largest axis that the number of fsdp devices divides.
    3. One with no such axis is on every device.

The rules see nothing but shapes, so the params, averages and moments of one kernel lie alike, and a bank of bases
[N, h, w, I, O] is no special case. With one fsdp device, the default, all of the state is on every device.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from basisnet_jax.errors import UserError

SMALLEST = 2**14  # elements


def create_mesh(batch_size: int, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, or those given, as [data, fsdp]; they must divide the global batch.

    `fsdp=0` stands for all of them.
    """
    count = jax.device_count() if devices is None else len(devices)
    if batch_size % count:
        raise UserError(f"batch size {batch_size} is not a multiple of the {count} devices")
    fsdp = fsdp or count
    if count % fsdp:
        raise UserError(f"config.fsdp={fsdp} does not divide the {count} devices")
    shape, types = (count // fsdp, fsdp), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=types, devices=devices)


def inside(mesh: Mesh, function: Callable) -> Callable:
    """The function, to be jitted, told of the mesh: what XLA cannot split over devices by itself then can."""

    @functools.wraps(function)
    def told(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return told


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def of_state(state, mesh: Mesh):
    """The sharding of each array of a pytree (arrays or their shapes), by the rules above."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh.shape["fsdp"])), state)


def _spec(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or np.prod(shape) < SMALLEST or not axes:
        return PartitionSpec()
    split = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == split else None for axis in range(len(shape))))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch as global arrays split over the mesh."""
    sharding = over_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def on_device(batches: Iterable[dict], mesh: Mesh, ahead: int = 2) -> Iterator[dict]:
    """The batches as `global_batch`, sent to the devices `ahead` of their use: copying overlaps with computing."""
    queue = collections.deque()
    for batch in batches:
        queue.append(global_batch(batch, mesh))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
