"""What is known of TPUs and of their compiler."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from basisnet_jax.distributed import partition
from basisnet_jax.errors import UserError
from basisnet_jax.ops import conv, platforms
from basisnet_jax.plan import hlo, tpu

compiled = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs the extra tpu-plan"
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (79.5G) "
            "exceeds available HBM (15.75G).",
            (79.5, 15.75),
        ),
        ("Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm. Exceeded hbm capacity", (0.5, 15.75)),
        ("Ran out of memory in memory space vmem. Used 17.0M of 16.0M vmem.", None),
    ],
)
def test_memory_needed(message, expected):
    assert tpu.memory_needed(message) == (expected and tuple(2**30 * gib for gib in expected))


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:1x1", "v5e:2x2"])
@pytest.mark.parametrize("shape", [(14, 672, 5, 1), (14, 672, 5, 2), (56, 72, 3, 1), (112, 64, 3, 2)])
def test_a_depthwise_convolution_moves_little_more_than_it_must(shape, topology):
    """128 images a device, forward and backward: what is written down on the way, or gathered, would show."""
    size, channels, window, stride = shape
    devices = tpu.find_machine(topology).devices
    mesh = partition.create_mesh(128 * len(devices), devices=devices)
    like = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=partition.over_batch(mesh))
    x = like((128 * len(devices), size, size, channels))
    kernels, dy = like((len(x), window, window, 1, channels)), like((len(x), *[size // stride] * 2, channels))

    def run(x, kernels, dy):
        f = lambda *args: conv.conv_per_example(*args, strides=stride, groups=channels)  # noqa: E731
        y, pullback = jax.vjp(f, x, kernels)
        return y, *pullback(dy)

    with platforms.paths_for("tpu"):
        lowered = jax.jit(partition.inside(mesh, run), out_shardings=x.sharding).lower(x, kernels, dy)
    program = lowered.compile(tpu.COMPILER_OPTIONS)
    text, flops = program.as_text(), program.cost_analysis()["flops"]
    assert flops == pytest.approx(3 * 2 * window**2 * dy.size / len(devices), rel=0.1)
    needed = 2 * (3 * x.size + 3 * dy.size + 4 * kernels.size) / len(devices)
    print(f"\n{shape}: {hlo.traffic(text) / 1e6:.0f} MB, needed {needed / 1e6:.0f} MB")
    assert hlo.traffic(text) < 1.1 * needed and not hlo.collectives(text)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tpu-plan"):
        tpu.find_machine("v5e:2x2")
