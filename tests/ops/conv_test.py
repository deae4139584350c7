"""Every path of ops/conv.py against a loop over examples, forward and gradient; the static drop-in against lax."""

import itertools
from functools import partial

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax.ops import conv, platforms

SIZES = [(8, 5), (7, 6)]  # each axis once even and once odd
# Kernel, stride, padding, size. At stride 1 "half" is 'SAME'.
WINDOWS = [
    *itertools.product([3, 5], [1], ["SAME"], SIZES),
    *itertools.product([3, 5], [2], ["SAME", "half"], SIZES),
]
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if conftest.AS_USERS:
    QUICK_COMPILE = {}
NHWC = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def explicit(padding, kernel):
    return [(kernel // 2, kernel // 2)] * 2 if padding == "half" else padding


def value_and_gradients(f, x, kernels):
    """f's value, and its gradients against a fixed, uneven cotangent."""
    y, pullback = jax.vjp(f, x, kernels)
    return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def assert_same(actual, expected, tolerance=1e-5):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())


def assert_equals_loop(x, kernels, paths, **options):
    """Forward and both gradients, as on CPU and as elsewhere; all in one compilation."""

    @partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(x, kernels):
        results = []
        for path in ("loop", *paths):
            for platform in ("cpu", "tpu", "gpu") if path == "depthwise" else ("cpu",):
                with platforms.paths_for(platform):
                    f = partial(conv.conv_per_example, path=path, **options)
                    results.append(value_and_gradients(f, x, kernels))
        return results

    expected, *results = run(x, kernels)
    for result in results:
        assert_same(result, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_pointwise(size, strides):
    x, kernels = normal(0, 3, *size, 4), normal(1, 3, 1, 1, 4, 6)
    assert_equals_loop(x, kernels, ["pointwise", "general"], strides=strides)


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), WINDOWS)
def test_depthwise(kernel, stride, padding, size):
    padding = explicit(padding, kernel)
    x, kernels = normal(0, 3, *size, 4), normal(1, 3, kernel, kernel, 1, 4)
    assert_equals_loop(x, kernels, ["depthwise"], strides=(stride, stride), padding=padding, groups=4)


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), WINDOWS[::2])
def test_general(kernel, stride, padding, size):
    padding = explicit(padding, kernel)
    x, kernels = normal(0, 3, *size, 4), normal(1, 3, kernel, kernel, 4, 6)
    assert_equals_loop(x, kernels, ["general", "stem"], strides=(stride, stride), padding=padding)


@pytest.mark.parametrize(
    ("x", "window", "outputs", "options"),
    [
        ((2, 7, 6, 4), (3, 3), 4, {"groups": 4}),
        ((2, 7, 6, 4), (3, 3), 4, {"groups": 4, "strides": (2, 1), "dilation": (2, 2)}),
        ((2, 7, 6, 4), (2, 1), 4, {"groups": 4, "strides": (3, 3), "padding": "VALID"}),  # windows skip some inputs
        ((2, 7, 6, 4), (3, 3), 4, {"groups": 4, "padding": [(0, 2), (-1, 3)]}),
        ((2, 9, 4), (3,), 4, {"groups": 4, "strides": (2,)}),
        ((2, 7, 6, 4), (1, 1), 4, {"groups": 4}),
        ((2, 17, 30, 4), (3, 3), 4, {"groups": 4}),  # on GPU 2 x 3 tiles, the last row of zeros
        ((2, 62, 9, 4), (3, 2), 4, {"groups": 4, "strides": (2, 3), "dilation": (1, 2)}),
    ],
)
def test_depthwise_of_other_shapes(x, window, outputs, options):
    x, kernels = normal(0, *x), normal(1, x[0], *window, 1, outputs)
    assert_equals_loop(x, kernels, ["depthwise", "folded", "general"], **options)


@pytest.mark.parametrize(
    ("x", "kernels", "options"),
    [
        ((2, 8, 7, 4), (2, 3, 3, 2, 6), {"groups": 2}),
        ((2, 8, 7, 4), (2, 3, 3, 1, 8), {"groups": 4, "strides": (2, 2)}),  # channel multiplier 2
        ((2, 8, 7, 4), (2, 3, 3, 4, 3), {"dilation": (2, 2), "padding": "VALID"}),
        ((2, 9, 4), (2, 3, 4, 3), {}),
        ((2, 4, 5, 4, 2), (2, 2, 3, 2, 2, 3), {"strides": (1, 2, 1)}),
        ((2, 5, 4, 3), (2, 1, 1, 3, 2), {"padding": [(1, 1), (0, 2)]}),
    ],
)
def test_general_of_other_shapes(x, kernels, options):
    stem = [] if "groups" in options else ["stem"]
    assert_equals_loop(normal(0, *x), normal(1, *kernels), ["general", "folded", *stem], **options)


@pytest.mark.parametrize("kernel", [1, 3])
def test_loop_is_a_convolution_of_each_example(kernel):
    x, kernels = normal(0, 3, 6, 5, 2), normal(1, 3, kernel, kernel, 2, 4)
    y = conv.conv_per_example(x, kernels, strides=(2, 2), path="loop")
    for b in range(3):
        expected = jax.lax.conv_general_dilated(x[b : b + 1], kernels[b], (2, 2), "SAME", dimension_numbers=NHWC)
        np.testing.assert_array_equal(y[b], expected[0])


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), WINDOWS[::2])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 4, 4), (1, 16, 1)])  # depthwise, and a stem
def test_static_equals_lax(kernel, stride, padding, size, inputs, outputs, groups):
    x, rhs = normal(0, 3, *size, inputs), normal(1, kernel, kernel, inputs // groups, outputs)
    options = {"window_strides": (stride, stride), "padding": explicit(padding, kernel), "feature_group_count": groups}

    @partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(x, rhs):
        return [
            value_and_gradients(partial(f, dimension_numbers=NHWC, **options), x, rhs)
            for f in (conv.conv_general_dilated, jax.lax.conv_general_dilated)
        ]

    assert_same(*run(x, rhs))


@pytest.mark.parametrize(
    ("kernel", "shifted", "options"),
    [
        ((3, 3, 1, 4), "shifted_sum", {"feature_group_count": 4, "rhs_dilation": (2, 2), "precision": "highest"}),
        ((3, 3, 4, 4), "_stem", {"rhs_dilation": (2, 2), "precision": "highest"}),
        ((3, 3, 4, 17), False, {}),
        ((4, 3, 4, 4), False, {}),
        ((3, 3, 1, 8), False, {"feature_group_count": 4}),
        ((3, 3, 1, 4), False, {"feature_group_count": 4, "lhs_dilation": (2, 2), "padding": [(1, 1)] * 2}),
        ((3, 3, 1, 4), False, {"feature_group_count": 4, "preferred_element_type": jnp.float32}),
        ((9, 9, 1, 4), False, {"feature_group_count": 4, "padding": "VALID"}),  # an empty output
    ],
)
def test_static_drop_in_shifts_only_depthwise_and_stems(kernel, shifted, options, monkeypatch):
    x, rhs = normal(0, 2, 8, 7, 4), normal(1, *kernel)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC} | options
    expected = jax.lax.conv_general_dilated(x, rhs, **options)
    calls = []
    for name in ("shifted_sum", "_stem"):
        function = getattr(conv, name)
        monkeypatch.setattr(conv, name, lambda *args, f=function, n=name: calls.append(n) or f(*args))
    actual = conv.conv_general_dilated(x, rhs, **options)
    assert calls == ([shifted] if shifted else [])
    if expected.size:
        assert_same([actual], [expected])
    assert actual.shape == expected.shape


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_static_pointwise_equals_lax(rank, stride, monkeypatch):
    spatial = "HWD"[:rank]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    x, rhs = normal(0, 2, *(5, 4, 3)[:rank], 6), normal(1, *(1,) * rank, 6, 7)

    def run(convolve):
        f = partial(convolve, window_strides=(stride,) * rank, padding="SAME", dimension_numbers=numbers)
        return value_and_gradients(f, x, rhs)

    expected = run(jax.lax.conv_general_dilated)
    monkeypatch.setattr(conv.lax, "conv_general_dilated", None)  # it must do without
    assert_same(run(conv.conv_general_dilated), expected)


def test_static_drop_in_serves_nnx():
    def layer(**kwargs):
        return nnx.Conv(4, 4, (3, 3), strides=2, feature_group_count=4, rngs=nnx.Rngs(0), **kwargs)

    x = normal(0, 2, 9, 8, 4)
    assert_same([layer(conv_general_dilated=conv.conv_general_dilated)(x)], [layer()(x)])


@pytest.mark.parametrize(
    ("backend", "examples", "groups", "strides", "expected"),
    [
        ("cpu", 128, 8, 1, "_depthwise"),
        ("cpu", 2, 8, 2, "_depthwise"),
        ("tpu", 2, 8, 1, "_depthwise"),
        ("tpu", 2, 8, 2, "_folded"),
        ("tpu", 128, 8, 2, "on_lanes"),
        ("tpu", 128, 4, 2, "_depthwise"),  # fewer channels than a tile
        ("gpu", 128, 8, 2, "_depthwise"),
        ("cpu", 2, 1, 2, "_stem"),
        ("tpu", 2, 1, 2, "_general"),
    ],
)
def test_choice_by_backend(backend, examples, groups, strides, expected, monkeypatch):
    monkeypatch.setattr(conv, expected, lambda *_: "chosen")
    channels = max(groups, 4)
    x, kernels = normal(0, examples, 5, 5, channels), normal(1, examples, 3, 3, channels // groups, channels)
    with platforms.paths_for(backend):
        assert conv.conv_per_example(x, kernels, groups=groups, strides=strides) == "chosen"
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert conv.conv_per_example(x, kernels, groups=groups, strides=strides) == "chosen"


def test_static_drop_in_by_backend(monkeypatch):
    monkeypatch.setattr(conv, "shifted_sum", lambda *_: "shifted")
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC, "feature_group_count": 4}
    x, rhs = normal(0, 2, 5, 5, 4), normal(1, 3, 3, 1, 4)
    assert conv.conv_general_dilated(x, rhs, **options) == "shifted"
    with platforms.paths_for("tpu"):
        assert conv.conv_general_dilated(x, rhs, **options).shape == x.shape
    assert conv.conv_general_dilated(x, rhs, **options) == "shifted"


@pytest.mark.parametrize(("window", "groups"), [((1, 1), 1), ((3, 3), 4), ((3, 3), 1)])
def test_permuting_the_batch_permutes_the_outputs(window, groups):
    x, kernels = normal(0, 4, 6, 5, 4), normal(1, 4, *window, 4 // groups, 4)
    order = jnp.array([2, 0, 3, 1])
    run = partial(conv.conv_per_example, groups=groups)
    assert_same([run(x[order], kernels[order])], [run(x, kernels)[order]], tolerance=1e-6)


@pytest.mark.parametrize(("window", "groups"), [((1, 1), 1), ((3, 3), 4), ((3, 3), 1)])
def test_bfloat16(window, groups):
    x, kernels = normal(0, 2, 6, 5, 4), normal(1, 2, *window, 4 // groups, 4)
    f = partial(value_and_gradients, partial(conv.conv_per_example, groups=groups))
    f = jax.jit(f, compiler_options=QUICK_COMPILE)
    expected = f(x, kernels)
    actual = f(x.astype(jnp.bfloat16), kernels.astype(jnp.bfloat16))
    assert {a.dtype for a in actual} == {jnp.dtype(jnp.bfloat16)}
    assert_same([a.astype(jnp.float32) for a in actual], expected, tolerance=2e-2)


def test_gradient_under_checkpoint():
    x, kernels = normal(0, 2, 6, 5, 4), normal(1, 2, 3, 3, 1, 4)
    f = partial(conv.conv_per_example, groups=4, path="depthwise")
    run = jax.jit(lambda x, kernels: [value_and_gradients(g, x, kernels) for g in (f, jax.checkpoint(f))])
    assert_same(*run(x, kernels))


@pytest.mark.parametrize(
    ("x", "kernels", "options", "message"),
    [
        ((2, 5, 5, 4), (3, 3, 3, 4, 4), {}, "3 kernels; expected one for each of 2"),
        ((2, 5, 5, 4), (2, 3, 3, 3, 4), {}, "expected I = 3"),
        ((2, 5, 5, 4), (2, 3, 3, 2, 3), {"groups": 2}, "divisible by 2"),
        ((2, 5, 5, 4), (2, 3, 4, 4), {}, r"expected \[B, \*spatial, I\]"),
        ((2, 5, 5, 4), (2, 3, 3, 4, 4), {"strides": (2,)}, "expected 2 positive"),
        ((2, 5, 5, 4), (2, 3, 3, 4, 4), {"padding": "CIRCULAR"}, "'CIRCULAR'; expected 'SAME'"),
        ((2, 5, 5, 4), (2, 3, 3, 4, 4), {"padding": [(1, 1)]}, r"expected 2 \(low, high\)"),
        ((2, 5, 5, 4), (2, 7, 7, 4, 4), {"padding": "VALID"}, "the window exceeds x"),
        ((2, 5, 5, 4), (2, 3, 3, 4, 4), {"path": "pointwise"}, "needs windows of 1"),
        ((2, 5, 5, 4), (2, 3, 3, 4, 4), {"path": "depthwise"}, "needs groups == I == O"),
        ((2, 5, 5, 4), (2, 3, 3, 4, 4), {"path": "winograd"}, "'winograd' needs to be one of"),
    ],
)
def test_errors_say_what_was_given_and_expected(x, kernels, options, message):
    with pytest.raises(ValueError, match=message):
        conv.conv_per_example(jnp.zeros(x), jnp.zeros(kernels), **options)
