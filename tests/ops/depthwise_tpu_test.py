"""The Pallas kernels, interpreted, against one ordinary convolution per example; when they are chosen."""

import itertools
import os
import subprocess
import sys
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax.distributed import partition
from basisnet_jax.ops import conv, depthwise_tpu, platforms
from basisnet_jax.ops.windows import explicit_padding
from basisnet_jax.plan import hlo

SAME_3, SAME_5 = ((1, 1), (1, 1)), ((2, 2), (2, 2))
GEOMETRIES = [  # size, window, strides, padding, dilation
    ((6, 5), (3, 3), (1, 1), SAME_3, (1, 1)),
    ((6, 7), (5, 5), (1, 1), SAME_5, (1, 1)),
    ((8, 6), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),
    ((7, 9), (5, 5), (2, 2), SAME_5, (1, 1)),
    ((7, 8), (3, 2), (2, 3), "VALID", (1, 1)),
    ((8, 9), (3, 3), (2, 1), SAME_5, (2, 2)),
    ((7, 8), (2, 1), (3, 3), "VALID", (1, 1)),  # windows skip some inputs
    ((7, 6), (3, 3), (1, 1), ((0, 2), (-1, 3)), (1, 1)),
    ((3, 3), (5, 5), (1, 1), SAME_5, (1, 1)),  # the window exceeds the image
    ((2, 1), (1, 1), (4, 3), ((2, 1), (4, 0)), (1, 1)),  # it sees nothing but padding
]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "window", "strides", "padding", "dilation"), GEOMETRIES)
def test_equals_the_loop(size, window, strides, padding, dilation, monkeypatch):
    x, kernels = normal(0, 2, *size, 16), normal(1, 2, *window, 1, 16)
    pads = tuple(explicit_padding(size, window, strides, padding, dilation))
    options = {"strides": strides, "padding": pads, "dilation": dilation, "groups": 16}
    expected, pullback = jax.vjp(lambda *args: conv.conv_per_example(*args, **options, path="loop"), x, kernels)
    dy = normal(2, *expected.shape)
    dx, dkernels = pullback(dy)
    geometry = strides, pads, dilation

    def run(x, kernels, dy):
        return (
            depthwise_tpu.forward(x, kernels, *geometry),
            depthwise_tpu.input_gradient(dy, kernels, size, *geometry),
            depthwise_tpu.kernel_gradient(x, dy, window, *geometry),
        )

    for memory in (depthwise_tpu.MEMORY, 2**21, 0):  # all rows in one program, some, and one in each
        monkeypatch.setattr(depthwise_tpu, "MEMORY", memory)
        found = jax.jit(lambda *args: run(*args))(x, kernels[..., 0, :], dy)  # a new function: no cached trace
        for actual, wanted in zip(found, (expected, dx, dkernels[..., 0, :]), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_bfloat16_is_summed_in_float32():
    x, kernels = normal(0, 2, 6, 6, 8), normal(1, 2, 5, 5, 8)
    geometry = (1, 1), SAME_5, (1, 1)
    narrow = [a.astype(jnp.bfloat16) for a in (x, kernels)]
    expected = depthwise_tpu.forward(*(a.astype(jnp.float32) for a in narrow), *geometry)
    y = depthwise_tpu.forward(*narrow, *geometry)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
    gradient = depthwise_tpu.kernel_gradient(narrow[0], y, (5, 5), *geometry)
    wide = (a.astype(jnp.float32) for a in (narrow[0], y))
    np.testing.assert_array_equal(gradient, depthwise_tpu.kernel_gradient(*wide, (5, 5), *geometry))


@pytest.mark.slow
def test_on_a_mesh_each_device_computes_its_share():
    """In Pallas where a share is whole vectors of 128 examples; the batch is never gathered."""
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, __file__], env=environment, check=True)


def check_on_two_devices(batch: int, by_hand: bool = False) -> list[int]:
    """How many examples the Pallas kernels of the chosen path were given; `by_hand` in a `shard_map` of the user's."""
    shares = []
    original = {name: getattr(depthwise_tpu, name) for name in ("forward", "input_gradient", "kernel_gradient")}

    def counted(name, x, *rest):
        shares.append(x.shape[0])
        return original[name](x, *rest)

    mesh = partition.create_mesh(batch)
    arrays = normal(0, batch, 4, 3, 8), normal(1, batch, 3, 3, 1, 8), normal(2, batch, 2, 2, 8)

    def gradients(x, kernels, dy):
        y, pullback = jax.vjp(lambda *args: conv.conv_per_example(*args, groups=8, strides=2), x, kernels)
        return y, *pullback(dy)

    expected = jax.jit(gradients)(*arrays)
    sharded = [jax.device_put(a, partition.over_batch(mesh)) for a in arrays]
    with mock.patch.multiple(depthwise_tpu, **{name: partial(counted, name) for name in original}):
        with platforms.paths_for("tpu"):
            run = partition.inside(mesh, gradients)
            if by_hand:
                over_batch = partition.over_batch(mesh).spec
                run = jax.shard_map(gradients, mesh=mesh, in_specs=over_batch, out_specs=over_batch, check_vma=False)
            compiled = jax.jit(run).lower(*sharded).compile()
    assert not hlo.collectives(compiled.as_text())
    for actual, wanted in zip(compiled(*sharded), expected, strict=True):
        assert actual.sharding.is_equivalent_to(partition.over_batch(mesh), actual.ndim)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    return shares


@pytest.mark.slow
def test_gradients_of_the_path_under_checkpoint():
    x, kernels, dy = normal(0, 128, 4, 3, 8), normal(1, 128, 3, 3, 1, 8), normal(2, 128, 4, 3, 8)
    gradients = []
    for path, wrap in itertools.product(("lanes", "depthwise"), (jax.checkpoint, lambda f: f)):
        f = wrap(lambda x, kernels, path=path: conv.conv_per_example(x, kernels, groups=8, path=path))
        gradients.append(jax.jit(lambda f, *args: jax.vjp(f, *args)[1](dy), static_argnums=0)(f, x, kernels))
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_needs_whole_tiles():
    with pytest.raises(ValueError, match="'lanes' needs groups == I == O, a multiple of 8"):
        conv.conv_per_example(normal(0, 2, 4, 4, 12), normal(1, 2, 3, 3, 1, 12), groups=12, path="lanes")
    shapes = {"x_shape": (192, 4, 4, 8), "kernel_shape": (3, 3, 1, 8), "groups": 8}
    assert "lanes" in conv.paths(**shapes)
    with platforms.paths_for("tpu"):
        assert "lanes" not in conv.paths(**shapes)
        assert conv.paths(**shapes, strides=2)[0] == "folded"
        shapes["x_shape"] = (256, 4, 4, 8)
        assert conv.paths(**shapes)[0] == "lanes"
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((4,), ("batch",))):
            assert "lanes" not in conv.paths(**shapes)  # 64 examples a device
        with mock.patch("jax.device_count", lambda: 4):
            assert "lanes" not in conv.paths(**shapes)  # nor where nobody knows how many
        # Rows too wide for the chip, and a type that it does not know.
        assert "lanes" not in conv.paths((256, 1000, 1000, 8), (5, 5, 1, 8), groups=8)
        with mock.patch.object(conv, "on_lanes", side_effect=AssertionError):
            half = jnp.zeros((256, 4, 4, 8), jnp.float16), jnp.zeros((256, 3, 3, 1, 8), jnp.float16)
            assert conv.conv_per_example(*half, groups=8).shape == (256, 4, 4, 8)


if __name__ == "__main__":
    assert check_on_two_devices(256) == check_on_two_devices(256, by_hand=True) == [128] * 3
    assert check_on_two_devices(128) == []
