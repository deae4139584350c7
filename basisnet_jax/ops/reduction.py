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

_as_params = contextvars.ContextVar("as_params", default=False)


@contextlib.contextmanager
def in_dtype_of_params() -> Iterator[None]:
    """Inside this block, devices sum the gradients of layers that cast their params in the dtype of the params."""
    token = _as_params.set(True)
    try:
        yield
    finally:
        _as_params.reset(token)


def applies(examples: int, params_dtype, dtype) -> bool:
    """Whether `by_device` is of use here: several devices share the examples, and a layer casts its params."""
    devices = math.prod(axes_of_batch().values())
    return _as_params.get() and devices > 1 and examples % devices == 0 and params_dtype != dtype


def by_device(function: Callable, params, *of_examples: jax.Array) -> jax.Array:
    """`function(params, *of_examples)` on each device of the mesh for its share of the examples.

    Args:
      function: casts the params, and treats all examples alike.
      params: a pytree, on every device.
      of_examples: arrays [B, ...]; so is the result.
    """
    axes = axes_of_batch()
    if math.prod(axes.values()) == 1:
        return function(params, *of_examples)
    shares = jax.P(tuple(axes))
    specs = (jax.P(), *(shares for _ in of_examples))
    # Without `check_vma`, which would sum what `function` makes of the params, and so after the cast.
    run = jax.shard_map(function, in_specs=specs, out_specs=shares, axis_names={*axes}, check_vma=False)
    return run(params, *of_examples)


def axes_of_batch() -> dict[str, int]:
    """The axes of the mesh, and their sizes, over which the batch is split here: all that no `shard_map` has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}
