"""Which rows of an array belong to which example, where a layer has one kernel for each.

    [B, ...]          a row for each example
    [B * P, ...]      P rows for each, one example after the other, such as the windows of an image
    [...]             no batch: of one example, or inside `jax.vmap` over the examples

An example's own axes come last; of the axes before them the first is the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

EXPECTED = "expected as first axis the examples, or equally many rows for each, one example after the other"


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
    mapped = _mapped(x, coefficients_BN) if examples != 1 else []
    if rows == examples and examples not in mapped:  # first: an export's batch is a symbol that compares with none
        return run(x, False)
    fits = rows == examples or (0 < examples <= rows and rows % examples == 0)
    if examples in mapped:  # jax.vmap over the examples
        if not fits and mapped[0] == examples and not hasattr(x, "primal"):  # jax.grad inside: it knows no custom_vmap
            return _all_at_once(x, lambda x: run(x, False), examples)
    elif x.ndim <= rank and examples == 1:
        return run(x[None], False)[0]
    elif fits and (examples == 1 or examples not in x.shape[1 : x.ndim - rank]):
        y = run(x.reshape(examples, -1, *x.shape[1:]), True)
        return y.reshape(rows, *y.shape[2:])
    if fits:
        raise ValueError(f"{name}: which axis of {x.shape} is that of the {examples} examples? {EXPECTED}")
    given = f"coefficients of {examples} examples for a batch of {rows}" if x.ndim > rank else f"{x.shape}, no batch"
    raise ValueError(f"{name}: got {given}; {EXPECTED}")


def _mapped(x, coefficients_BN) -> list[int]:
    """Sizes of the axes over which `jax.vmap` maps x but not the coefficients, the innermost first.

    They are found through `jax.jit`, `jax.checkpoint` and `jax.grad` inside `jax.vmap` too. Otherwise the tokens [T, I]
    of one example could be taken for rows of all examples.
    """
    ours, theirs = _traces(x), _traces(coefficients_BN)
    return [trace.axis_data.size for trace in ours if hasattr(trace, "axis_data") and trace not in theirs]


def _traces(x) -> list:
    """The transformations of JAX that x is in, the innermost first; of an array none."""
    traces, trace = [], getattr(x, "_trace", None)
    while trace is not None:
        traces.append(trace)
        trace = getattr(trace, "parent_trace", None)
    return traces


def _all_at_once(x, run, examples: int):
    """Inside `jax.vmap` over the examples, which sees x of one of them: what `run` makes of all of them together."""
    shape = jax.eval_shape(run, jax.ShapeDtypeStruct((examples, *x.shape), x.dtype))
    one = jax.custom_batching.custom_vmap(lambda x: jnp.zeros(shape.shape[1:], shape.dtype))  # never computed
    one.def_vmap(lambda size, in_batched, x: (run(x), True))
    return one(x)
