"""One kernel per example: how it is convolved. What is mixed into those kernels is `basis.py`'s business.

A static network shares one kernel over the batch; a basis network has B of them. `conv_per_example` chooses a path by
shape and backend, and every path gives what 'loop' gives, forward and gradient:

    pointwise   windows of 1: one batched matrix product
    depthwise   a sum of shifted multiply-adds with its own gradient
    stem        the same, an input channel at a time; for images, on CPU
    folded      the batch folded into the channels of one grouped convolution; for strided depthwise on TPU
    general     patches times kernels, again one batched matrix product
    loop        one ordinary convolution per example: slow, readable, the reference; gathers a sharded batch

`conv_general_dilated` runs the pointwise and depthwise layers and small stems of static networks in the same ways, so
that a static network and a basis network are compared fairly. Times below were measured on a 2-core CPU, in float32;
what is said of TPU, on programs compiled for v5e. Nothing here was measured on a GPU.
"""

import contextlib
import contextvars
import itertools
import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

PATHS = {  # and what each needs
    "pointwise": "windows of 1, groups=1 and no padding",
    "depthwise": "groups == I == O and 1 or 2 spatial axes",
    "stem": "at most 4 input channels and groups=1",
    "folded": "",
    "general": "",
    "loop": "",
}


_chosen_platform = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """For which paths are chosen: "cpu", "gpu" or "tpu"; `jax.default_backend()`, except inside `paths_for`."""
    return _chosen_platform.get() or jax.default_backend()


@contextlib.contextmanager
def paths_for(platform: str) -> Iterator[None]:
    """Inside this block paths are chosen for this platform: for what is traced here to be compiled for there."""
    token = _chosen_platform.set(platform)
    try:
        yield
    finally:
        _chosen_platform.reset(token)


def conv_per_example(x, kernels, *, strides=1, padding="SAME", dilation=1, groups=1, path=None):
    """Convolves every example with its own kernel: `y[b] = conv(x[b], kernels[b])`.

    Args:
      x: inputs [B, *spatial, I], any number of spatial axes.
      kernels: [B, *window, I // groups, O].
      strides: one per spatial axis, such as (2, 2), or one number for all.
      padding: 'SAME', 'VALID', or (low, high) for each spatial axis.
      dilation: of the window; one per spatial axis, or one number for all.
      groups: feature groups; I and O are multiples of it.
      path: one of `PATHS`, or None for the best one for these shapes on `platform()`.

    Returns:
      [B, *spatial_out, O] in x's dtype.

    Raises:
      ValueError: the shapes contradict each other, or `path` cannot compute them.
    """
    rank, given = x.ndim - 2, f"x {x.shape}, kernels {kernels.shape}, groups={groups}"
    if rank < 1 or kernels.ndim != rank + 3:
        raise ValueError(f"got {given}; expected [B, *spatial, I] and [B, *window, I // groups, O]")
    if kernels.shape[0] != x.shape[0]:
        raise ValueError(f"got {given}: {kernels.shape[0]} kernels; expected one for each of {x.shape[0]} examples")
    if kernels.shape[-2] * groups != x.shape[-1] or kernels.shape[-1] % groups:
        raise ValueError(f"got {given}; expected I = {kernels.shape[-2] * groups} and O divisible by {groups}")
    window, strides, dilation = kernels.shape[1:-2], _per_axis(strides, rank), _per_axis(dilation, rank)
    pads = _explicit_padding(x.shape[1:-1], window, strides, padding, dilation)

    possible = paths(x.shape, kernels.shape[1:], strides=strides, padding=pads, dilation=dilation, groups=groups)
    path = path or possible[0]
    if path not in possible:
        raise ValueError(
            f"path {path!r} needs {PATHS.get(path, f'to be one of {[*PATHS]}')}; got {given}, padding={pads}"
        )
    padded = _padded(x.shape, pads)
    if min(_output_size(padded, window, strides, dilation)) < 1:
        raise ValueError(f"got {given}: with {dilation=} the window exceeds x, padded to {padded}")
    kernels = kernels.astype(x.dtype)
    if path == "depthwise":
        return _depthwise(x, kernels, strides, pads, dilation)
    run = {"pointwise": _pointwise, "stem": _stem, "folded": _folded, "general": _general, "loop": _loop}[path]
    return run(_pad(x, pads), kernels, strides, dilation, groups)


def paths(x_shape, kernel_shape, *, strides=1, padding="SAME", dilation=1, groups=1) -> list[str]:
    """Those of `PATHS` that can convolve x [B, *spatial, I] with kernels [*window, I / groups, O], the best one first.

    The best on `platform()`, by shape alone; the other arguments as above.
    """
    (*window, _, outputs), rank = kernel_shape, len(x_shape) - 2
    strides, dilation = _per_axis(strides, rank), _per_axis(dilation, rank)
    pads = _explicit_padding(x_shape[1:-1], window, strides, padding, dilation)
    found = []
    if groups == 1 and set(window) == {1} and not any(map(any, pads)):
        found.append("pointwise")
    if groups == x_shape[-1] == outputs and rank <= 2:
        strided_on_tpu = platform() == "tpu" and max(strides) > 1
        found += ["folded", "depthwise"] if strided_on_tpu else ["depthwise"]
    if groups == 1 and x_shape[-1] <= 4:
        found += ["stem", "general"] if platform() == "cpu" else ["general", "stem"]
    return [*dict.fromkeys([*found, "general", "folded", "loop"])]


def conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    **kwargs,
):
    """`jax.lax.conv_general_dilated`, but quick on CPU in training: `nnx.Conv(conv_general_dilated=...)`.

    On CPU, for lhs [B, *spatial, I] and rhs [*window, I / groups, O], it is one matrix product where the window is 1,
    and the shifted sum, with one kernel shared by the batch, where it is 2-D and depthwise, or a small stem. XLA's own
    kernel gradient of a pointwise convolution takes 2-18 times as long as the product's (56 against 5 ms,
    [16, 56, 56, 24] to 72). `precision` has no meaning there. Anything else goes to `jax.lax` unchanged.
    """
    rank = lhs.ndim - 2
    if (
        platform() == "cpu"
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _channels_last(rank)
        and set(lhs_dilation or (1,)) == {1}
        and lhs.dtype == rhs.dtype
        and all(value is None for name, value in kwargs.items() if name != "precision")
    ):
        window, strides, dilation = rhs.shape[:rank], tuple(window_strides), tuple(rhs_dilation or (1,) * rank)
        pads = _explicit_padding(lhs.shape[1:-1], window, strides, padding, dilation)
        if feature_group_count == 1 and set(window) == {1} and not any(map(any, pads)):
            (x,) = _windows(lhs, window, strides, dilation)
            return jnp.matmul(x.reshape(-1, x.shape[-1]), rhs.reshape(rhs.shape[-2:])).reshape(*x.shape[:-1], -1)
        fits = min(_output_size(_padded(lhs.shape, pads), window, strides, dilation)) >= 1
        if rank == 2 and feature_group_count == lhs.shape[-1] == rhs.shape[-1] and fits:
            return _shifted_sum(lhs, rhs[None, :, :, 0], strides, tuple(map(tuple, pads)), dilation)
        # To 32 outputs, or from windows of 5x5, XLA's own is as quick.
        if feature_group_count == 1 and lhs.shape[-1] <= 4 and rhs[..., 0].size <= 36 and rhs.shape[-1] <= 16 and fits:
            return _stem(_pad(lhs, pads), rhs[None], strides, dilation, 1)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, **kwargs
    )


# The paths: x [B, *spatial, I] already padded (but for depthwise), kernels [B, *window, I // groups, O] to
# [B, *spatial_out, O].


def _pointwise(x, kernels, strides, dilation, groups):
    (x,) = _windows(x, kernels.shape[1:-2], strides, dilation)
    batch, *_, inputs = x.shape
    y = jnp.matmul(x.reshape(batch, -1, inputs), kernels.reshape(batch, inputs, -1))
    return y.reshape(*x.shape[:-1], -1)


def _depthwise(x, kernels, strides, pads, dilation):
    if len(strides) == 1:  # an image of one row
        return _depthwise(x[:, None], kernels[:, None], (1, *strides), ((0, 0), *pads), (1, *dilation))[:, 0]
    return _shifted_sum(x, kernels[..., 0, :], strides, tuple(map(tuple, pads)), dilation)


def _folded(x, kernels, strides, dilation, groups):
    # Not for CPU: depthwise [32, 14, 14, 240] 3x3 takes 74 ms forward and 8.6 s for the kernel gradient there (the
    # shifted sum: 3 and 5 ms). On TPU a stride costs the shifted sum much: in [16, 112, 112, 64] 3x3 stride 2 it moves
    # 607 MB forward, this 42; at stride 1 both move the same, and this takes 4-6 times as long to compile.
    batch = x.shape[0]
    x = jnp.moveaxis(x, 0, -2).reshape(1, *x.shape[1:-1], -1)
    kernels = jnp.moveaxis(kernels, 0, -2).reshape(*kernels.shape[1:-1], -1)
    y = _lax_conv(x, kernels, strides, dilation, batch * groups)
    return jnp.moveaxis(y.reshape(*y.shape[1:-1], batch, -1), -2, 0)


def _general(x, kernels, strides, dilation, groups):
    # The patches cost window-size times x's memory. Forward and backward on CPU, [16, 28, 28, 32] 3x3 to 32: 23 ms;
    # 'loop' 184, 'folded' 808; a product per tap, without the patches, takes 1.3-1.9 times as long as this.
    batch, *window, _, outputs = kernels.shape
    patches = jnp.concatenate([*_windows(x, window, strides, dilation)], axis=-1)
    kernels = kernels.reshape(batch, -1, x.shape[-1] // groups, groups, outputs // groups)
    split = patches.reshape(batch, -1, kernels.shape[1], groups, kernels.shape[2])
    return jnp.einsum("bptgi,btigo->bpgo", split, kernels).reshape(*patches.shape[:-1], outputs)


def _loop(x, kernels, strides, dilation, groups):
    return lax.map(lambda pair: _lax_conv(pair[0][None], pair[1], strides, dilation, groups)[0], (x, kernels))


def _lax_conv(x, kernel, strides, dilation, groups):
    return lax.conv_general_dilated(x, kernel, strides, "VALID", None, dilation, _channels_last(len(strides)), groups)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted_sum(x, kernels, strides, pads, dilation):
    """Depthwise: x [B, H, W, C], kernels [B, kh, kw, C], or [1, kh, kw, C] shared by all -> [B, H', W', C].

    XLA fuses the taps into one pass over x. Without forward-mode and second derivatives.
    """
    return _shifted_sum_fwd(x, kernels, strides, pads, dilation)[0]


def _shifted_sum_fwd(x, kernels, strides, pads, dilation):
    padded = _pad(x, pads)
    windows = _windows(accumulable(padded), kernels.shape[1:3], strides, dilation)
    y = sum(window * tap for window, tap in zip(windows, _taps(kernels), strict=True)).astype(x.dtype)
    return y, (padded, kernels)


def _shifted_sum_bwd(strides, pads, dilation, residuals, dy):
    # Autodiff would reduce over the whole image once per tap. Forward and backward, [32, 28, 28, 120] 5x5: 76 ms, by
    # autodiff 339, by XLA's depthwise convolution 1693; [32, 112, 112, 64] 3x3 stride 2: 151, 233, 2409.
    padded, kernels = residuals
    if platform() == "cpu":  # XLA would compute it again in every use, were it not cut: 13 % of MobileNetV3's step
        dx = _input_gradient(dy, kernels, padded.shape[1:3], strides, ((0, 0), (0, 0)), dilation)
        dx = _pad(dx, [(-low, -high) for low, high in pads])
    else:
        dx = _input_gradient(dy, kernels, padded.shape[1:3], strides, pads, dilation)
    kernel_gradient = _kernel_gradient_by_rows if platform() == "cpu" else _kernel_gradient_by_taps
    dkernels = kernel_gradient(padded, dy, kernels.shape, strides, dilation)
    return dx.astype(padded.dtype), dkernels.astype(kernels.dtype)


_shifted_sum.defvjp(_shifted_sum_fwd, _shifted_sum_bwd)


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
    dy = _pad(dy, (vertical, horizontal))
    zero = jnp.zeros((dy.shape[0], rows, columns, dy.shape[3]), accumulable(dy).dtype)
    phases = [[zero] * strides[1] for _ in range(strides[0])]
    for ((i, p), (j, q)), tap in zip(itertools.product(down, right), _taps(kernels), strict=True):
        top, left = vertical[0] - i, horizontal[0] - j
        phases[p][q] += accumulable(dy[:, top : top + rows, left : left + columns]) * tap
    dx = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return dx.reshape(dy.shape[0], rows * strides[0], columns * strides[1], -1)[:, :height, :width]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _stem(x, kernels, strides, dilation, groups):
    """Few inputs: x [B, *spatial, I], kernels [B, *window, I, O], or [1, ...] shared by all -> [B, *spatial_out, O].

    XLA fuses the terms, one for each tap and input, into one pass over x. [16, 224, 224, 3] 3x3 stride 2 to 16: 9 ms,
    'general' 38; with one kernel for all 6, XLA's convolution 13.
    """
    x, rank, (_, *window, inputs, outputs) = accumulable(x), x.ndim - 2, kernels.shape
    taps = accumulable(kernels).reshape(-1, math.prod(window) * inputs, *(1,) * rank, outputs)
    terms = (seen[..., i : i + 1] for seen in _windows(x, window, strides, dilation) for i in range(inputs))
    return sum(seen * taps[:, n] for n, seen in enumerate(terms)).astype(kernels.dtype)


def _stem_bwd(strides, dilation, groups, residuals, dy):
    x, kernels = residuals
    if kernels.shape[0] == x.shape[0]:
        _, gradient = jax.vjp(lambda x, kernels: _general(x, kernels, strides, dilation, groups), x, kernels)
    else:
        _, gradient = jax.vjp(lambda x, kernels: _lax_conv(x, kernels[0], strides, dilation, groups), x, kernels)
    return gradient(dy)


_stem.defvjp(lambda x, kernels, *static: (_stem(x, kernels, *static), (x, kernels)), _stem_bwd)


def _kernel_gradient_by_taps(x, dy, shape, strides, dilation):
    """From x [B, H, W, C] and dy [B, H', W', C], one reduction per tap -> [B or 1, kh, kw, C].

    XLA for TPU fuses them into one pass over x and dy.
    """
    taps = [
        (accumulable(seen) * accumulable(dy)).sum(axis=(1, 2)) for seen in _windows(x, shape[1:3], strides, dilation)
    ]
    return _summed(jnp.stack(taps, axis=1).reshape(-1, *shape[1:]), shape)


def _kernel_gradient_by_rows(x, dy, shape, strides, dilation):
    """The same, row by row, summed over the width last.

    On CPU one reduction per tap takes 3-13 times as long; reducing each row over the width, 1.4-2.5 times.
    """
    x, dy = accumulable(x), accumulable(dy)
    kh, kw = shape[1:3]

    def add_row(h, sums):  # kw times [B, kh, W', C]
        lines = lax.dynamic_slice_in_dim(x, h * strides[0], (kh - 1) * dilation[0] + 1, axis=1)
        windows = _windows(lines, (1, kw), (dilation[0], strides[1]), (1, dilation[1]))
        row = lax.dynamic_slice_in_dim(dy, h, 1, axis=1)
        return [total + window * row for total, window in zip(sums, windows, strict=True)]

    zero = jnp.zeros((dy.shape[0], kh, *dy.shape[2:]), dy.dtype)
    sums = lax.fori_loop(0, dy.shape[1], add_row, [zero] * kw)
    return _summed(jnp.stack([total.sum(axis=2) for total in sums], axis=2), shape)


def _summed(gradient, shape):
    """Over the batch, where it shares one kernel."""
    return gradient if shape[0] == gradient.shape[0] else gradient.sum(axis=0, keepdims=True)


def _windows(x, window, strides, dilation):
    """For each position in the window, what it sees of x: strided slices [B, *spatial_out, I], in row-major order."""
    shape = _output_size(x.shape, window, strides, dilation)
    for index in itertools.product(*map(range, window)):
        start = [i * d for i, d in zip(index, dilation, strict=True)]
        limit = [i + (n - 1) * s + 1 for i, n, s in zip(start, shape, strides, strict=True)]
        yield lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1))


def _taps(kernels):
    """[B, kh, kw, C] -> kh * kw times [B, 1, 1, C]: what each position of an equal window sees."""
    return _windows(accumulable(kernels), kernels.shape[1:3], (1, 1), (1, 1))


def accumulable(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))  # bfloat16 is summed in float32


def _pad(x, pads):
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))


def _channels_last(rank):
    features = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(features, (rank + 1, rank, *range(rank)), features)


def _per_axis(value, rank):
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or min(values) < 1:
        raise ValueError(f"got strides or dilation {value}; expected {rank} positive numbers, one a spatial axis")
    return values


def _explicit_padding(size, window, strides, padding, dilation):
    if isinstance(padding, str):
        if padding not in ("SAME", "SAME_LOWER", "VALID"):
            raise ValueError(f"got padding {padding!r}; expected 'SAME', 'SAME_LOWER', 'VALID' or (low, high) pairs")
        extent = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        return lax.padtype_to_pads(size, extent, strides, padding)
    if len(padding) != len(size) or any(len(pair) != 2 for pair in padding):
        raise ValueError(f"got padding {padding}; expected {len(size)} (low, high) pairs, one a spatial axis")
    return padding


def _padded(shape, pads):
    return (shape[0], *(n + low + high for n, (low, high) in zip(shape[1:-1], pads, strict=True)), shape[-1])


def _output_size(shape, window, strides, dilation):
    axes = zip(shape[1:-1], window, strides, dilation, strict=True)
    return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, s, d in axes)
