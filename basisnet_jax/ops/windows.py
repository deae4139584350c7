"""What the window of a convolution sees: paddings, sizes, and the input as each of its positions has it."""

import itertools

import jax.numpy as jnp
from jax import lax


def slices(x, window, strides, dilation):
    """For each position in the window, what it sees of x: strided slices [B, *spatial_out, I], in row-major order."""
    shape = output_size(x.shape, window, strides, dilation)
    for index in itertools.product(*map(range, window)):
        start = [i * d for i, d in zip(index, dilation, strict=True)]
        limit = [i + (n - 1) * s + 1 for i, n, s in zip(start, shape, strides, strict=True)]
        yield lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1))


def taps_of(kernels):
    """[B, kh, kw, C] -> kh * kw times [B, 1, 1, C]: what each position of an equal window sees."""
    return slices(accumulable(kernels), kernels.shape[1:3], (1, 1), (1, 1))


def accumulable(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))  # bfloat16 is summed in float32


def pad(x, pads):
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))


def per_axis(value, rank):
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or min(values) < 1:
        raise ValueError(f"got strides or dilation {value}; expected {rank} positive numbers, one a spatial axis")
    return values


def explicit_padding(size, window, strides, padding, dilation):
    if isinstance(padding, str):
        if padding not in ("SAME", "SAME_LOWER", "VALID"):
            raise ValueError(f"got padding {padding!r}; expected 'SAME', 'SAME_LOWER', 'VALID' or (low, high) pairs")
        extent = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        return lax.padtype_to_pads(size, extent, strides, padding)
    if len(padding) != len(size) or any(len(pair) != 2 for pair in padding):
        raise ValueError(f"got padding {padding}; expected {len(size)} (low, high) pairs, one a spatial axis")
    return padding


def padded_shape(shape, pads):
    return (shape[0], *(n + low + high for n, (low, high) in zip(shape[1:-1], pads, strict=True)), shape[-1])


def output_size(shape, window, strides, dilation):
    axes = zip(shape[1:-1], window, strides, dilation, strict=True)
    return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, s, d in axes)
