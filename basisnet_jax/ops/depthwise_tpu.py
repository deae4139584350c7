"""Depthwise convolution with one kernel per example on a TPU, in Pallas: the examples lie in the lanes of its vectors.

XLA for TPU lays a convolution's activations out with the batch last in memory, [H, W, C, B] with C and B in tiles of
8x128. There a kernel per example is one more array of tiles, [kh, kw, C, B], and every tap a multiply-add of whole
tiles: height and width are no part of a tile, so neither shifts nor strides move anything within one. XLA's own fusions
of the same sum write the padded input and the interleaved gradient down, in float32, and copy them between layouts.

A program has one tile of channels and examples, and some rows, which it copies to memory of the chip in float32, padded
with zeros. All is read once and written once, but for rows that two programs need: a tenth to a third of the input of
MobileNetV3's layers at 224 px, more where the height has no divisors. On other platforms the kernels are
interpreted, slowly.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

CHANNELS, LANES = 8, 128  # of a tile
MEMORY = 12 * 2**20  # bytes of the chip's memory for a program; the compiler grants 16 MiB


class Axis(NamedTuple):
    """Height or width: result[u * phases + p] is the sum of source[u * step + shift] * kernel[tap] over phase p's taps.

    A forward pass has one phase, and steps of the stride; the gradient of the input steps of one, and a phase for each
    position within the stride.
    """

    size: int  # how many u
    step: int
    phases: tuple[tuple[tuple[int, int], ...], ...]  # for each the pairs (tap, shift)

    @property
    def first(self) -> int:
        """The least position of the source that u = 0 reads, negative for padding."""
        return min(shift for taps in self.phases for _, shift in taps)

    def extent(self, size: int) -> int:
        """From the first to the last position of the source that so many u read, both counted."""
        return (size - 1) * self.step + max(shift for taps in self.phases for _, shift in taps) - self.first + 1


def fits(x_shape, window, strides, pads, dilation) -> bool:
    """Whether x [B, H, W, C] consists of whole tiles, and a row of each program, in float32, has room on the chip."""
    if x_shape[3] % CHANNELS:
        return False
    forward = _forward_axes(x_shape[1:3], window, strides, pads, dilation)
    backward = _backward_axes(x_shape[1:3], window, strides, pads, dilation)
    return all(_needs(1, *axes, itemsize=4) <= MEMORY for axes in (forward, backward))


def forward(x, kernels, strides, pads, dilation):
    """x [B, H, W, C], kernels [B, kh, kw, C] -> [B, H', W', C]; C is a multiple of 8."""
    axes = _forward_axes(x.shape[1:3], kernels.shape[1:3], strides, pads, dilation)
    return _batch_first(_correlate(_batch_last(x), _batch_last(kernels), *axes))


def input_gradient(dy, kernels, size, strides, pads, dilation):
    """dy [B, H', W', C], kernels [B, kh, kw, C] -> [B, H, W, C], where `size` is (H, W)."""
    axes = _backward_axes(size, kernels.shape[1:3], strides, pads, dilation)
    dx = _correlate(_batch_last(dy), _batch_last(kernels), *axes)
    return _batch_first(dx[: size[0], : size[1]])


def kernel_gradient(x, dy, window, strides, pads, dilation):
    """x [B, H, W, C], dy [B, H', W', C] -> [B, kh, kw, C], float32, where `window` is (kh, kw)."""
    axes = _forward_axes(x.shape[1:3], window, strides, pads, dilation)
    return _batch_first(_products(_batch_last(x), _batch_last(dy), *axes))


def _forward_axes(size, window, strides, pads, dilation) -> list[Axis]:
    axes = []
    for n, k, stride, (low, high), d in zip(size, window, strides, pads, dilation, strict=True):
        taps = tuple((i, i * d - low) for i in range(k))
        axes.append(Axis((n + low + high - (k - 1) * d - 1) // stride + 1, stride, (taps,)))
    return axes


def _backward_axes(size, window, strides, pads, dilation) -> list[Axis]:
    axes = []
    for n, k, stride, (low, _), d in zip(size, window, strides, pads, dilation, strict=True):
        shifts = [[(i, divmod(p + low - i * d, stride)) for i in range(k)] for p in range(stride)]
        phases = tuple(tuple((i, shift) for i, (shift, rest) in taps if rest == 0) for taps in shifts)
        axes.append(Axis(-(-n // stride), 1, phases))
    return axes


def _batch_last(x):
    return x.transpose(1, 2, 3, 0)  # moves nothing: so it lies in memory


def _batch_first(x):
    # XLA would convert to float32 before the transposition, where no use of it can be fused with that: it wrote the
    # float32 down.
    return lax.optimization_barrier(x.transpose(3, 0, 1, 2))


def _correlate(source, kernels, down: Axis, right: Axis):
    """Source [H, W, C, B] with kernels [kh, kw, C, B], as the axes say -> [u * phases, v * phases, C, B]."""
    rows, lanes = _share(source, down, right)
    phases = len(down.phases), len(right.phases)

    def program(source_ref, kernels_ref, result_ref, padded_ref):
        _fill(padded_ref, source_ref, rows, source.shape[0], down, right)
        kernel = {at: kernels_ref[at].astype(jnp.float32) for at in itertools.product(*map(range, kernels.shape[:2]))}

        @pl.loop(0, rows)
        def _(u):
            @pl.loop(0, right.size)
            def _(v):
                for (p, above), (q, left) in itertools.product(enumerate(down.phases), enumerate(right.phases)):
                    total = jnp.zeros((CHANNELS, lanes), jnp.float32)
                    for (i, shift), (j, aside) in itertools.product(above, left):
                        total += padded_ref[_at(u, shift, down), _at(v, aside, right)] * kernel[i, j]
                    result_ref[u * phases[0] + p, v * phases[1] + q] = total.astype(result_ref.dtype)

    shape = down.size * phases[0], right.size * phases[1], *source.shape[2:]
    written = pl.BlockSpec((rows * phases[0], shape[1], CHANNELS, lanes), lambda c, b, t: (t, 0, c, b))
    result = jax.ShapeDtypeStruct(shape, source.dtype)
    return _run(program, source, kernels, result, down, right, second=_all_of(kernels, lanes), written=written)


def _products(x, dy, down: Axis, right: Axis):
    """x [H, W, C, B] with dy [H', W', C, B], as the axes of the forward pass say -> [kh, kw, C, B], float32."""
    rows, lanes = _share(x, down, right)
    taps = [*itertools.product(down.phases[0], right.phases[0])]
    gradient = jax.ShapeDtypeStruct((len(down.phases[0]), len(right.phases[0]), *x.shape[2:]), jnp.float32)

    def program(x_ref, dy_ref, result_ref, padded_ref):
        _fill(padded_ref, x_ref, rows, x.shape[0], down, right)

        @pl.when(pl.program_id(2) == 0)
        def _():
            result_ref[...] = jnp.zeros_like(result_ref)

        def add(u, v, totals):
            seen = (padded_ref[_at(u, shift, down), _at(v, aside, right)] for (_, shift), (_, aside) in taps)
            dy = dy_ref[u, v].astype(jnp.float32)
            return [total + x * dy for total, x in zip(totals, seen, strict=True)]

        def add_row(u, totals):
            return lax.fori_loop(0, right.size, functools.partial(add, u), totals)

        totals = lax.fori_loop(0, rows, add_row, [jnp.zeros((CHANNELS, lanes), jnp.float32)] * len(taps))
        for ((i, _), (j, _)), total in zip(taps, totals, strict=True):
            result_ref[i, j] += total

    second = pl.BlockSpec((rows, right.size, CHANNELS, lanes), lambda c, b, t: (t, 0, c, b))
    return _run(program, x, dy, gradient, down, right, second=second, written=_all_of(gradient, lanes))


def _run(program, source, other, result, down: Axis, right: Axis, *, second: pl.BlockSpec, written: pl.BlockSpec):
    """The program for each tile of channels, of examples, and its rows, in this order; XLA is told what they cost."""
    rows, lanes = _share(source, down, right)
    height, width, channels, batch = source.shape
    read, programs = min(down.extent(rows), height), down.size // rows
    multiply_adds = down.size * right.size * math.prod(sum(map(len, axis.phases)) for axis in (down, right))
    arrays = (jax.ShapeDtypeStruct((programs * read, *source.shape[1:]), source.dtype), other, result)
    call = functools.partial(
        pl.pallas_call,
        program,
        result,
        grid=(channels // CHANNELS, batch // lanes, programs),
        in_specs=[
            pl.BlockSpec(
                (pl.Element(read), pl.Element(width), pl.Element(CHANNELS), pl.Element(lanes)),
                lambda c, b, t: (_first_read(t, rows, down, read, height), 0, c * CHANNELS, b * lanes),
            ),
            second,
        ],
        out_specs=written,
        scratch_shapes=[pltpu.VMEM((down.extent(rows), right.extent(right.size), CHANNELS, lanes), jnp.float32)],
        cost_estimate=pl.CostEstimate(
            flops=2 * multiply_adds * channels * batch,
            transcendentals=0,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in arrays),
        ),
    )
    return lax.platform_dependent(source, other, tpu=call(interpret=False), default=call(interpret=True))


def _share(source, down: Axis, right: Axis) -> tuple[int, int]:
    """How many u of the height, and examples, one program has: the most rows that divide them and fit in `MEMORY`."""
    divisors = [n for n in range(1, down.size + 1) if down.size % n == 0]
    rows = max((n for n in divisors if _needs(n, down, right, source.dtype.itemsize) <= MEMORY), default=1)
    return rows, LANES if source.shape[3] % LANES == 0 else source.shape[3]


def _needs(rows: int, down: Axis, right: Axis, itemsize: int) -> int:
    """Bytes on the chip: padded rows in float32; what is read and written twice, as the next and last are under way."""
    read = down.extent(rows) * right.extent(right.size)
    written = rows * len(down.phases) * right.size * len(right.phases)
    return CHANNELS * LANES * (4 * read + 2 * itemsize * (read + written))


def _first_read(t, rows: int, down: Axis, read: int, height: int):
    """The first row that program t reads: moved inwards where it would begin above the source or end below it."""
    return jnp.clip(t * rows * down.step + down.first, 0, height - read)


def _all_of(kernels, lanes: int) -> pl.BlockSpec:
    return pl.BlockSpec((*kernels.shape[:2], CHANNELS, lanes), lambda c, b, t: (0, 0, c, b))


def _at(u, shift: int, axis: Axis):
    """Where in the padded memory that position is which tap `shift` of u sees."""
    return u * axis.step + shift - axis.first


def _fill(padded_ref, source_ref, rows: int, height: int, down: Axis, right: Axis) -> None:
    """The rows and columns that this program's u and v see, zero where the source has none."""
    t, left = pl.program_id(2), right.first
    first = t * rows * down.step + down.first
    moved = first - _first_read(t, rows, down, source_ref.shape[0], height)
    begin = min(max(0, -left), padded_ref.shape[1])
    end = max(begin, min(padded_ref.shape[1], source_ref.shape[1] - left))
    edges = [edge for edge in ((0, begin), (end, padded_ref.shape[1])) if edge[0] < edge[1]]

    @pl.loop(0, padded_ref.shape[0])
    def _(row):
        inside = (first + row >= 0) & (first + row < height)

        @pl.when(inside)
        def _():
            if begin < end:
                padded_ref[row, begin:end] = source_ref[row + moved, begin + left : end + left].astype(jnp.float32)
            for edge in edges:
                padded_ref[row, slice(*edge)] = jnp.zeros((edge[1] - edge[0], *padded_ref.shape[2:]), jnp.float32)

        @pl.when(jnp.logical_not(inside))
        def _():
            padded_ref[row] = jnp.zeros(padded_ref.shape[1:], jnp.float32)
