"""One kernel per example: how it is convolved. What is mixed into those kernels is `basis.py`'s business.

A static network shares one kernel over the batch; a basis network has B of them. `conv_per_example` chooses a path by
shape and backend, and every path gives what 'loop' gives, forward and gradient:

    pointwise   windows of 1: one batched matrix product
    depthwise   a sum of shifted multiply-adds with its own gradient
    lanes       the same in Pallas, for TPU, where every device has whole vectors of 128 examples; elsewhere interpreted
    stem        a sum of multiply-adds, an input channel at a time; for images, on CPU
    folded      the batch folded into the channels of one grouped convolution; on TPU, strided, for fewer examples
    general     patches times kernels, again one batched matrix product
    loop        one ordinary convolution per example: slow, readable, the reference; gathers a sharded batch

`conv_general_dilated` runs the pointwise and depthwise layers and small stems of static networks in the same ways, so
that a static network and a basis network are compared fairly. Times below were measured on a 2-core CPU, in float32;
what is said of TPU and GPU, on programs compiled for a v5e and an H100. A GPU takes the paths of a CPU, but for the
stem, with gradients of its own in the depthwise one; no time was measured there.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from basisnet_jax.ops import depthwise_tpu
from basisnet_jax.ops.depthwise import on_lanes, shifted_sum
from basisnet_jax.ops.platforms import platform
from basisnet_jax.ops.reduction import axes_of_batch
from basisnet_jax.ops.windows import accumulable, explicit_padding, output_size, pad, padded_shape, per_axis, slices

PATHS = {  # and what each needs
    "pointwise": "windows of 1, groups=1 and no padding",
    "depthwise": "groups == I == O and 1 or 2 spatial axes",
    "lanes": "groups == I == O, a multiple of 8; 2 spatial axes; rows that fit on a chip; on TPU multiples of 128 "
    "examples on each device",
    "stem": "at most 4 input channels and groups=1",
    "folded": "",
    "general": "",
    "loop": "",
}


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
    window, strides, dilation = kernels.shape[1:-2], per_axis(strides, rank), per_axis(dilation, rank)
    pads = explicit_padding(x.shape[1:-1], window, strides, padding, dilation)

    possible = paths(x.shape, kernels.shape[1:], strides=strides, padding=pads, dilation=dilation, groups=groups)
    path = path or next(p for p in possible if p != "lanes" or x.dtype in (jnp.bfloat16, jnp.float32))
    if path not in possible:
        raise ValueError(
            f"path {path!r} needs {PATHS.get(path, f'to be one of {[*PATHS]}')}; got {given}, padding={pads}"
        )
    padded = padded_shape(x.shape, pads)
    if min(output_size(padded, window, strides, dilation)) < 1:
        raise ValueError(f"got {given}: with {dilation=} the window exceeds x, padded to {padded}")
    kernels = kernels.astype(x.dtype)
    if path == "depthwise":
        return _depthwise(x, kernels, strides, pads, dilation)
    if path == "lanes":
        return on_lanes(x, kernels[..., 0, :], strides, tuple(map(tuple, pads)), dilation)
    run = {"pointwise": _pointwise, "stem": _stem, "folded": _folded, "general": _general, "loop": _loop}[path]
    return run(pad(x, pads), kernels, strides, dilation, groups)


def paths(x_shape, kernel_shape, *, strides=1, padding="SAME", dilation=1, groups=1) -> list[str]:
    """Those of `PATHS` that can convolve x [B, *spatial, I] with kernels [*window, I / groups, O], the best one first.

    The best on `platform()`, by shape alone; inside a mesh, by a device's share of B. The other arguments as above.
    """
    (*window, _, outputs), rank = kernel_shape, len(x_shape) - 2
    strides, dilation = per_axis(strides, rank), per_axis(dilation, rank)
    pads = explicit_padding(x_shape[1:-1], window, strides, padding, dilation)
    found = []
    if groups == 1 and set(window) == {1} and not any(map(any, pads)):
        found.append("pointwise")
    if groups == x_shape[-1] == outputs and rank <= 2:
        in_lanes = ["lanes"] if rank == 2 and depthwise_tpu.fits(x_shape, window, strides, pads, dilation) else []
        if _in_whole_vectors(x_shape[0]):
            found += [*in_lanes, "depthwise"]
        elif platform() == "tpu":
            found += ["folded", "depthwise"] if max(strides) > 1 else ["depthwise"]
        else:
            found += ["depthwise", *in_lanes]
    if groups == 1 and x_shape[-1] <= 4:
        found += ["stem", "general"] if platform() == "cpu" else ["general", "stem"]
    return [*dict.fromkeys([*found, "general", "folded", "loop"])]


def _in_whole_vectors(batch: int) -> bool:
    """Whether every device of a TPU has 128 examples or a multiple: activations then lie with the batch in lanes."""
    if platform() != "tpu" or (jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1):
        return False  # of several devices without a mesh nobody knows how they share the batch
    return batch % (math.prod(axes_of_batch().values()) * depthwise_tpu.LANES) == 0


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
        pads = explicit_padding(lhs.shape[1:-1], window, strides, padding, dilation)
        if feature_group_count == 1 and set(window) == {1} and not any(map(any, pads)):
            (x,) = slices(lhs, window, strides, dilation)
            return jnp.matmul(x.reshape(-1, x.shape[-1]), rhs.reshape(rhs.shape[-2:])).reshape(*x.shape[:-1], -1)
        fits = min(output_size(padded_shape(lhs.shape, pads), window, strides, dilation)) >= 1
        if rank == 2 and feature_group_count == lhs.shape[-1] == rhs.shape[-1] and fits:
            return shifted_sum(lhs, rhs[None, :, :, 0], strides, tuple(map(tuple, pads)), dilation)
        # To 32 outputs, or from windows of 5x5, XLA's own is as quick.
        if feature_group_count == 1 and lhs.shape[-1] <= 4 and rhs[..., 0].size <= 36 and rhs.shape[-1] <= 16 and fits:
            return _stem(pad(lhs, pads), rhs[None], strides, dilation, 1)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, **kwargs
    )


# The paths: x [B, *spatial, I] already padded (but for depthwise), kernels [B, *window, I // groups, O] to
# [B, *spatial_out, O].


def _pointwise(x, kernels, strides, dilation, groups):
    (x,) = slices(x, kernels.shape[1:-2], strides, dilation)
    if _in_whole_vectors(x.shape[0]):  # XLA copies x and y between that and this product's layout, else in float32
        x = lax.optimization_barrier(x)
    batch, *_, inputs = x.shape
    y = jnp.matmul(x.reshape(batch, -1, inputs), kernels.reshape(batch, inputs, -1))
    y = y.reshape(*x.shape[:-1], -1)
    return lax.optimization_barrier(y) if _in_whole_vectors(x.shape[0]) else y


def _depthwise(x, kernels, strides, pads, dilation):
    if len(strides) == 1:  # an image of one row
        return _depthwise(x[:, None], kernels[:, None], (1, *strides), ((0, 0), *pads), (1, *dilation))[:, 0]
    return shifted_sum(x, kernels[..., 0, :], strides, tuple(map(tuple, pads)), dilation)


def _folded(x, kernels, strides, dilation, groups):
    # Not for CPU: depthwise [32, 14, 14, 240] 3x3 takes 74 ms forward and 8.6 s for the kernel gradient there (the
    # shifted sum: 3 and 5 ms). On TPU strides cost the shifted sum much: a block of MobileNetV3 that has one of 2 in
    # [B, 112, 112, 64] 3x3 moves 1,310, 4,152, 9,937 and 8,425 MB with 16, 32, 64 and 128 examples, with this 363,
    # 1,755, 5,243 and 13,111, with 'lanes' 4,690. At stride 1 this moves no less, and compiles 4-6 times as long.
    batch = x.shape[0]
    x = jnp.moveaxis(x, 0, -2).reshape(1, *x.shape[1:-1], -1)
    kernels = jnp.moveaxis(kernels, 0, -2).reshape(*kernels.shape[1:-1], -1)
    y = _lax_conv(x, kernels, strides, dilation, batch * groups)
    return jnp.moveaxis(y.reshape(*y.shape[1:-1], batch, -1), -2, 0)


def _general(x, kernels, strides, dilation, groups):
    # The patches cost window-size times x's memory. Forward and backward on CPU, [16, 28, 28, 32] 3x3 to 32: 23 ms;
    # 'loop' 184, 'folded' 808; a product per tap, without the patches, takes 1.3-1.9 times as long as this.
    batch, *window, _, outputs = kernels.shape
    patches = jnp.concatenate([*slices(x, window, strides, dilation)], axis=-1)
    kernels = kernels.reshape(batch, -1, x.shape[-1] // groups, groups, outputs // groups)
    split = patches.reshape(batch, -1, kernels.shape[1], groups, kernels.shape[2])
    return jnp.einsum("bptgi,btigo->bpgo", split, kernels).reshape(*patches.shape[:-1], outputs)


def _loop(x, kernels, strides, dilation, groups):
    return lax.map(lambda pair: _lax_conv(pair[0][None], pair[1], strides, dilation, groups)[0], (x, kernels))


def _lax_conv(x, kernel, strides, dilation, groups):
    return lax.conv_general_dilated(x, kernel, strides, "VALID", None, dilation, _channels_last(len(strides)), groups)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _stem(x, kernels, strides, dilation, groups):
    """Few inputs: x [B, *spatial, I], kernels [B, *window, I, O], or [1, ...] shared by all -> [B, *spatial_out, O].

    XLA fuses the terms, one for each tap and input, into one pass over x. [16, 224, 224, 3] 3x3 stride 2 to 16: 9 ms,
    'general' 38; with one kernel for all 6, XLA's convolution 13.
    """
    x, rank, (_, *window, inputs, outputs) = accumulable(x), x.ndim - 2, kernels.shape
    taps = accumulable(kernels).reshape(-1, math.prod(window) * inputs, *(1,) * rank, outputs)
    terms = (seen[..., i : i + 1] for seen in slices(x, window, strides, dilation) for i in range(inputs))
    return sum(seen * taps[:, n] for n, seen in enumerate(terms)).astype(kernels.dtype)


def _stem_bwd(strides, dilation, groups, residuals, dy):
    x, kernels = residuals
    if kernels.shape[0] == x.shape[0]:
        _, gradient = jax.vjp(lambda x, kernels: _general(x, kernels, strides, dilation, groups), x, kernels)
    else:
        _, gradient = jax.vjp(lambda x, kernels: _lax_conv(x, kernels[0], strides, dilation, groups), x, kernels)
    return gradient(dy)


_stem.defvjp(lambda x, kernels, *static: (_stem(x, kernels, *static), (x, kernels)), _stem_bwd)


def _channels_last(rank):
    features = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(features, (rank + 1, rank, *range(rank)), features)
