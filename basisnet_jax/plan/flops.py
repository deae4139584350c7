"""The FLOPs of a program, counted from what was traced: two for each multiply-add of its products and convolutions.

XLA counts those of a program compiled for a TPU. Of one for a GPU it tells nothing.
"""

import math
from collections.abc import Iterator

import numpy as np


def count(jaxpr) -> int:
    """FLOPs of a jaxpr, of all devices together.

    Sums, exponentials and other work by elements do not count, a depthwise convolution by shifted sums included; nor do
    a convolution's products with padding or with the zeros of a dilated input. A loop counts as often as it runs, a
    `while` once, and of branches the largest.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = [
            variable.aval.shape for variable in (*equation.invars, *equation.outvars) if hasattr(variable, "aval")
        ]
        if name == "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracting)
        elif name == "conv_general_dilated":
            total += 2 * convolution(*shapes, params)
        elif name == "cond":
            total += max(map(count, inner(params)))
        else:
            times = params["length"] if name == "scan" else 1
            if name == "shard_map":  # what is inside is one device's
                times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
            total += times * sum(map(count, inner(params)))
    return total


def inner(params: dict) -> Iterator:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def convolution(x: tuple[int, ...], kernel: tuple[int, ...], y: tuple[int, ...], params: dict) -> int:
    """Multiply-adds of `lax.conv_general_dilated`, from the shapes of its input, its kernel and its output."""
    (_, _, *spatial), (outputs, inputs, *window), (batch, _, *given) = params["dimension_numbers"]
    total = y[batch] * kernel[outputs] * kernel[inputs]
    for axis, (at, over, to) in enumerate(zip(spatial, window, given, strict=True)):
        (low, _), dilation = params["padding"][axis], params["lhs_dilation"][axis]
        begins = np.arange(y[to])[:, None] * params["window_strides"][axis] - low
        taps = begins + np.arange(kernel[over]) * params["rhs_dilation"][axis]
        total *= int(np.sum((taps >= 0) & (taps <= (x[at] - 1) * dilation) & (taps % dilation == 0)))
    return total
