"""Batch norm and the activation after it, with a gradient of their own that keeps their input and nothing else.

Autodiff would keep the centred input, the normalised one and, on CPU, the products that are summed. Computing them
again costs less than moving them, and a training step of MobileNetV3-Large needs a sixth less memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from basisnet_jax.ops.platforms import platform
from basisnet_jax.ops.windows import accumulable

Activation = Callable[[jax.Array], jax.Array]  # elementwise


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` and an activation. Keeps the unbiased running variance, as PyTorch and TensorFlow's kernel do.

    With `groups` > 1 each of so many equal parts of the batch has statistics of its own, as if it were on a device of
    its own; the running ones move towards the mean of theirs. In training there are no forward-mode and no second
    derivatives.
    """

    groups = 1

    def __init__(self, num_features: int, *, activation: Activation = nnx.identity, **kwargs):
        super().__init__(num_features, **kwargs)
        self.activation = activation

    def __call__(self, x):
        if self.use_running_average:
            return self.activation(super().__call__(x))
        if x.shape[0] % self.groups:
            raise ValueError(f"groups={self.groups} does not divide a batch of {x.shape[0]}")
        parts = x.reshape(self.groups, -1, *x.shape[1:])
        y, mean, var = normalize(parts, self.scale[...], self.bias[...], self.epsilon, self.activation)
        samples = parts.size // (self.groups * x.shape[-1])
        unbiased = var * (samples / max(samples - 1, 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            # `running[...] = ` would ask a traced array for its sharding, whose refusal is half the time of tracing.
            running.set_value(self.momentum * running[...] + (1 - self.momentum) * new.mean(axis=0))
        return y.reshape(x.shape).astype(self.dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(x, scale, bias, epsilon: float, activation: Activation):
    """Every group by its own statistics: x [G, B, *spatial, C], scale and bias [C] -> y, mean [G, C], variance [G, C].

    All in float32 or more. The statistics pass no gradient on.
    """
    return _forward(x, scale, bias, epsilon, activation)[0]


def _forward(x, scale, bias, epsilon, activation):
    axes, wide = tuple(range(1, x.ndim - 1)), accumulable(x)
    mean = wide.mean(axes)
    var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0)  # reads x once
    factor = lax.rsqrt(var + epsilon)
    y = activation((wide - _along(mean, x)) * _along(factor * scale, x) + bias)
    return (y, mean, var), (x, mean, factor, scale, bias)


def _backward(epsilon, activation, residuals, cotangents):
    x, mean, factor, scale, bias = residuals
    dy, _, _ = cotangents
    samples = x.size // (x.shape[0] * x.shape[-1])
    statistics = _, slope = _along(mean, x), _along(factor * scale, x)

    def centred_and_dz(x, dy, mean, slope):
        centred = x - mean
        _, gradient = jax.vjp(activation, centred * slope + bias)
        return centred, *gradient(dy)

    def summed(*arrays):
        centred, dz = centred_and_dz(*arrays)
        return dz, dz * centred

    total, along_x = _sums(summed, x, dy, *statistics)
    centred, dz = centred_and_dz(accumulable(x), dy, *statistics)
    dx = dz - _along(total / samples, x) - centred * _along(jnp.square(factor) * along_x / samples, x)
    return (dx * slope).astype(x.dtype), (factor * along_x).sum(axis=0), total.sum(axis=0)


normalize.defvjp(_forward, _backward)


def _sums(function, *arrays):
    """Of each of the function's results, [G, B, *spatial, C], the sum over all but groups and channels: [G, C].

    On CPU some rows at a time, over the batch and the width last: XLA would first write down what is to be summed. That
    takes 8 times as long for [16, 112, 112, 64], twice for [16, 28, 28, 120].
    """
    arrays = [*map(accumulable, arrays)]
    height = arrays[0].shape[2] if arrays[0].ndim > 3 else 1
    rows_at_once = max(1, min(height, 2**18 * height // arrays[0].size))  # a MB of each array
    rows_at_once = next(rows for rows in range(rows_at_once, 0, -1) if height % rows == 0)
    if platform() != "cpu" or rows_at_once == height:
        return [x.sum(axis=tuple(range(1, x.ndim - 1))) for x in function(*arrays)]

    def rows(i):
        first = i * rows_at_once
        return function(
            *(x if x.shape[2] == 1 else lax.dynamic_slice_in_dim(x, first, rows_at_once, axis=2) for x in arrays)
        )

    zeros = [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(rows, 0)]
    add = lambda i, sums: [total + x for total, x in zip(sums, rows(i), strict=True)]  # noqa: E731
    sums = lax.fori_loop(0, height // rows_at_once, add, zeros)
    return [x.sum(axis=tuple(range(1, x.ndim - 1))) for x in sums]


def _along(statistic, x):
    """[G, C] as x's shape wants it: [G, 1..., C]."""
    return statistic.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
