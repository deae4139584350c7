"""Depthwise convolution with one kernel per example: a sum of shifted multiply-adds, with gradients of its own.

`shifted_sum` leaves it to XLA; `on_lanes` does the same with the Pallas kernels of `depthwise_tpu.py`.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from basisnet_jax.ops import depthwise_tpu
from basisnet_jax.ops.platforms import platform
from basisnet_jax.ops.reduction import by_device
from basisnet_jax.ops.windows import accumulable, pad, slices, taps_of

TILE = 14  # rows and columns, at most: with 7, the sums of tiles are four times as many


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def shifted_sum(x, kernels, strides, pads, dilation):
    """Depthwise: x [B, H, W, C], kernels [B, kh, kw, C], or [1, kh, kw, C] shared by all -> [B, H', W', C].

    XLA fuses the taps into one pass over x. Without forward-mode and second derivatives.
    """
    return _shifted_sum_fwd(x, kernels, strides, pads, dilation)[0]


def _shifted_sum_fwd(x, kernels, strides, pads, dilation):
    padded = pad(x, pads)
    windows = slices(accumulable(padded), kernels.shape[1:3], strides, dilation)
    y = sum(window * tap for window, tap in zip(windows, taps_of(kernels), strict=True)).astype(x.dtype)
    return y, (padded, kernels)


def _shifted_sum_bwd(strides, pads, dilation, residuals, dy):
    # Autodiff would reduce over the whole image once per tap. Forward and backward, [32, 28, 28, 120] 5x5: 76 ms, by
    # autodiff 339, by XLA's depthwise convolution 1693; [32, 112, 112, 64] 3x3 stride 2: 151, 233, 2409.
    padded, kernels = residuals
    size, shape = padded.shape[1:3], kernels.shape
    if platform() == "cpu":  # XLA would compute it again in every use, were it not cut: 13 % of MobileNetV3's step
        dx = _input_gradient(dy, kernels, size, strides, ((0, 0), (0, 0)), dilation)
        dx = pad(dx, [(-low, -high) for low, high in pads])
        dkernels = _kernel_gradient_by_rows(padded, dy, shape, strides, dilation)
    elif platform() == "gpu":
        dx = _input_gradient_of_diluted(dy, kernels, size, strides, pads, dilation)
        dkernels = _kernel_gradient_by_tiles(padded, dy, shape, strides, dilation)
    else:
        dx = _input_gradient(dy, kernels, size, strides, pads, dilation)
        dkernels = _kernel_gradient_by_taps(padded, dy, shape, strides, dilation)
    return dx.astype(padded.dtype), dkernels.astype(kernels.dtype)


shifted_sum.defvjp(_shifted_sum_fwd, _shifted_sum_bwd)


def _input_gradient(dy, kernels, padded, strides, pads, dilation):
    """Again a shifted sum, of dy [B, H', W', C], once for each phase of the strides; interleaved to [B, H, W, C].

    Convolving a dy diluted with zeros takes twice as long (121 against 55 ms, [32, 112, 112, 64] 3x3 stride 2). The
    gradient of the padding is never computed: to cut it off afterwards, a TPU moves 997 MB in place of 72 in
    [128, 14, 14, 672] 5x5.
    """
    axes = []  # of height and width: size, its share of a phase, for each tap (shift, phase), padding of dy
    for axis, (low, high) in enumerate(pads):
        size = padded[axis] - low - high
        phase_size = -(-size // strides[axis])
        taps = [divmod(i * dilation[axis] - low, strides[axis]) for i in range(kernels.shape[1 + axis])]
        shifts = [shift for shift, _ in taps]
        around = max(0, *shifts), max(0, phase_size - min(shifts) - dy.shape[1 + axis])
        axes.append((size, phase_size, taps, around))
    (height, rows, down, vertical), (width, columns, right, horizontal) = axes
    dy = pad(dy, (vertical, horizontal))
    zero = jnp.zeros((dy.shape[0], rows, columns, dy.shape[3]), accumulable(dy).dtype)
    phases = [[zero] * strides[1] for _ in range(strides[0])]
    for ((i, p), (j, q)), tap in zip(itertools.product(down, right), taps_of(kernels), strict=True):
        top, left = vertical[0] - i, horizontal[0] - j
        phases[p][q] += accumulable(dy[:, top : top + rows, left : left + columns]) * tap
    dx = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return dx.reshape(dy.shape[0], rows * strides[0], columns * strides[1], -1)[:, :height, :width]


def _input_gradient_of_diluted(dy, kernels, padded, strides, pads, dilation):
    """The same as one shifted sum of a dy with zeros between its rows and columns, for GPU.

    XLA fuses the zeros into the sum. To interleave phases it writes a concatenation, a kernel of another kind.
    """
    around = [(0, 0, 0)]
    for axis, (low, high) in enumerate(pads):
        size, reach = padded[axis] - low - high, (kernels.shape[1 + axis] - 1) * dilation[axis]
        last = (dy.shape[1 + axis] - 1) * strides[axis]
        around.append((reach - low, size + low - last - 1, strides[axis] - 1))
    diluted = lax.pad(dy, jnp.zeros((), dy.dtype), (*around, (0, 0, 0)))
    windows = slices(accumulable(diluted), kernels.shape[1:3], (1, 1), dilation)
    return sum(window * tap for window, tap in zip(windows, [*taps_of(kernels)][::-1], strict=True))


def _kernel_gradient_by_taps(x, dy, shape, strides, dilation):
    """From x [B, H, W, C] and dy [B, H', W', C], one reduction per tap -> [B or 1, kh, kw, C].

    XLA for TPU fuses them into one pass over x and dy.
    """
    taps = [(accumulable(seen) * accumulable(dy)).sum(axis=(1, 2)) for seen in slices(x, shape[1:3], strides, dilation)]
    return _summed(jnp.stack(taps, axis=1).reshape(-1, *shape[1:]), shape)


def _kernel_gradient_by_tiles(x, dy, shape, strides, dilation):
    """The same, over small tiles of the image first, for GPU.

    XLA for GPU reduces a whole image by a block of threads, two or three taps at once, so it reads x and dy many times.
    A sum of at most 31 rows or columns is left to one thread, and all taps share one pass. Compiled for an H100,
    [128, 28, 28, 120] 5x5 moves 69 MB instead of 727, and [128, 112, 112, 64] 3x3 stride 2 274 MB instead of 1,322.
    """
    counts = [-(-size // TILE) for size in dy.shape[1:3]]
    rows, columns = (-(-size // count) for size, count in zip(dy.shape[1:3], counts, strict=True))
    more = counts[0] * rows - dy.shape[1], counts[1] * columns - dy.shape[2]
    x = accumulable(pad(x, [(0, n * stride) for n, stride in zip(more, strides, strict=True)]))
    dy = accumulable(pad(dy, [(0, n) for n in more]))
    products = [seen * dy for seen in slices(x, shape[1:3], strides, dilation)]
    if counts == [1, 1]:  # over columns after the taps are stacked, or XLA would reduce both at once
        taps = jnp.stack([product.sum(axis=1) for product in products], axis=1).sum(axis=2)
    else:
        tiles = dy.shape[0], counts[0], rows, counts[1], columns, dy.shape[3]
        sums = lax.optimization_barrier([product.reshape(tiles).sum(axis=(2, 4)) for product in products])
        taps = jnp.stack(sums, axis=1).sum(axis=(2, 3))
    return _summed(taps.reshape(-1, *shape[1:]), shape)


def _kernel_gradient_by_rows(x, dy, shape, strides, dilation):
    """The same, row by row, summed over the width last.

    On CPU one reduction per tap takes 3-13 times as long; reducing each row over the width, 1.4-2.5 times.
    """
    x, dy = accumulable(x), accumulable(dy)
    kh, kw = shape[1:3]

    def add_row(h, sums):  # kw times [B, kh, W', C]
        lines = lax.dynamic_slice_in_dim(x, h * strides[0], (kh - 1) * dilation[0] + 1, axis=1)
        windows = slices(lines, (1, kw), (dilation[0], strides[1]), (1, dilation[1]))
        row = lax.dynamic_slice_in_dim(dy, h, 1, axis=1)
        return [total + window * row for total, window in zip(sums, windows, strict=True)]

    zero = jnp.zeros((dy.shape[0], kh, *dy.shape[2:]), dy.dtype)
    sums = lax.fori_loop(0, dy.shape[1], add_row, [zero] * kw)
    return _summed(jnp.stack([total.sum(axis=2) for total in sums], axis=2), shape)


def _summed(gradient, shape):
    """Over the batch, where it shares one kernel."""
    return gradient if shape[0] == gradient.shape[0] else gradient.sum(axis=0, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def on_lanes(x, kernels, strides, pads, dilation):
    """x [B, H, W, C], kernels [B, kh, kw, C] -> [B, H', W', C], where C is a multiple of 8; see `depthwise_tpu.py`.

    A TPU needs bfloat16 or float32, 128 examples or a multiple on each device and, where there are several, the mesh
    (`partition.inside`, `jax.set_mesh`): then every device computes its share of the batch.
    """
    return _on_lanes_fwd(x, kernels, strides, pads, dilation)[0]


def _on_lanes_fwd(x, kernels, strides, pads, dilation):
    y = by_device(lambda _, *arrays: depthwise_tpu.forward(*arrays, strides, pads, dilation), (), x, kernels)
    return y, (x, kernels)


def _on_lanes_bwd(strides, pads, dilation, residuals, dy):
    x, kernels = residuals
    size, window = x.shape[1:3], kernels.shape[1:3]

    def gradients(_, x, kernels, dy):
        dx = depthwise_tpu.input_gradient(dy, kernels, size, strides, pads, dilation)
        return dx, depthwise_tpu.kernel_gradient(x, dy, window, strides, pads, dilation).astype(kernels.dtype)

    return by_device(gradients, (), x, kernels, dy)


on_lanes.defvjp(_on_lanes_fwd, _on_lanes_bwd)
