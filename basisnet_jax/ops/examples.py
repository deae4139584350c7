"""Which rows of an array belong to which example, where a layer has one kernel for each.

    [B, ...]          a row for each example
    [B * P, ...]      P rows for each, one example after the other, such as the windows of an image
    [...]             no batch: of one example, or inside `jax.vmap` over the examples

An example's own axes come last; of the axes before them the first is the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

EXPECTED = "expected the batch, or as many rows for each example one after the other, as first axis"


def by_example(x: jax.Array, run: Callable, coefficients_BN: jax.Array, rank: int, name: str) -> jax.Array:
    """`run(x, False)` of x [B, ...], or `run(x, True)` of x [B, P, ...]; the result has x's rows again.

    Args:
      coefficients_BN: of each example, which `run` uses.
      rank: axes of one example's x, at least.
      name: of the layer, for errors.

    Raises:
      ValueError: x is of another number of examples, or it is not clear which axis has them.
    """
    examples, rows = coefficients_BN.shape[0], x.shape[0] if x.ndim > rank else 0
    mapped = _mapped(x) if examples != 1 and _mapped(coefficients_BN) is None else None
    if rows == examples and mapped != examples:  # first, because an export's batch is a symbol that compares with none
        return run(x, False)
    fits = rows == examples or (0 < examples <= rows and rows % examples == 0)
    if mapped == examples:  # jax.vmap over the examples
        if not fits:
            return _all_at_once(x, lambda x: by_example(x, run, coefficients_BN, rank, name), examples)
    elif x.ndim <= rank and examples == 1:
        return run(x[None], False)[0]
    elif fits and (examples == 1 or examples not in x.shape[1 : x.ndim - rank]):
        y = run(x.reshape(examples, -1, *x.shape[1:]), True)
        return y.reshape(rows, *y.shape[2:])
    if fits:
        raise ValueError(f"{name}: which axis of {x.shape} is that of the {examples} examples? {EXPECTED}")
    given = f"coefficients of {examples} examples for a batch of {rows}" if x.ndim > rank else f"{x.shape}, no batch"
    raise ValueError(f"{name}: got {given}; {EXPECTED}")


def _mapped(x) -> int | None:
    """Size of the axis over which the innermost `jax.vmap` maps x; None where none is seen."""
    axis = getattr(x, "batch_dim", None)
    return x.val.shape[axis] if isinstance(axis, int) else None


def _all_at_once(x, run, examples: int):
    """Inside `jax.vmap` over the examples, which sees x of one of them: what `run` makes of all of them together."""
    shape = jax.eval_shape(run, jax.ShapeDtypeStruct((examples, *x.shape), x.dtype))
    one = jax.custom_batching.custom_vmap(lambda x: jnp.zeros(shape.shape[1:], shape.dtype))  # never computed
    one.def_vmap(lambda size, in_batched, x: (run(x), True))
    return one(x)
