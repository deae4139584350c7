"""In which type the gradients of several devices are summed.

Params are float32. A layer that computes in bfloat16 casts them, and of its gradient each device has a part, in
bfloat16. XLA sums the parts as they are and then casts the sum. `by_device` has each device cast its part first: inside
`shard_map` the cast is the device's own, and what is summed is the gradient of the params themselves.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator

import jax
from flax import nnx

from basisnet_jax.ops.depthwise import axes_of_batch

_as_params = contextvars.ContextVar("as_params", default=False)


@contextlib.contextmanager
def in_dtype_of_params() -> Iterator[None]:
    """Inside this block, the gradients of layers that cast their params are summed over devices as the params are."""
    token = _as_params.set(True)
    try:
        yield
    finally:
        _as_params.reset(token)


def by_device(layer: nnx.Module, run: Callable, x: jax.Array, of_examples: tuple[str, ...] = ()) -> jax.Array:
    """`run(layer, x)` of x [B, ...], on each device for its share of B, inside `in_dtype_of_params`.

    On one device, or where the layer does not cast its params, it is `run(layer, x)` as it stands.

    Args:
      layer: its params are on every device. `run` treats all examples alike and changes nothing in it.
      of_examples: names of its attributes that are arrays [B, ...].
    """
    axes, dtype = axes_of_batch(), getattr(layer, "dtype", None)
    devices = math.prod(axes.values())
    casts = dtype is not None and dtype != layer.kernel.dtype
    if not (_as_params.get() and casts and devices > 1 and x.shape[0] % devices == 0):
        return run(layer, x)
    graph, state = nnx.split(layer)
    shares = jax.P(tuple(axes))
    of_state = nnx.map_state(lambda path, _: shares if path[0] in of_examples else jax.P(), state)
    on_device = lambda state, x: run(nnx.merge(graph, state), x)  # noqa: E731
    in_specs = (of_state, shares)
    # Without `check_vma`, which would sum what `run` makes of the params, and so after the cast.
    return jax.shard_map(on_device, in_specs=in_specs, out_specs=shares, axis_names={*axes}, check_vma=False)(state, x)
