"""FLOPs of traced programs, against sums by hand and against the multiply-adds that `madds` counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax.plan import flops


def of(function, *shapes):
    return flops.count(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def test_products():
    assert of(lambda a, b: a @ b, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 3, 4), (7, 4, 5)) == 2 * 7 * 3 * 4 * 5
    assert of(lambda a: jnp.sin(a) + a, (3, 4)) == 0


def test_loops_and_branches():
    def loop(a):
        return jax.lax.scan(lambda x, _: (jax.jit(lambda x: x @ x)(x), None), a, None, length=6)[0]

    def branch(a):
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: (a @ a) @ (a @ a), a)

    product = 2 * 4**3
    assert of(loop, (4, 4)) == 6 * product
    assert of(branch, (4, 4)) == 3 * product


def test_what_devices_do_by_themselves():
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    on_each = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"), axis_names={"data"}
    )
    assert of(on_each, (8, 3)) == 4 * 2 * (2 * 3 * 2)  # on 4 devices two rows of three, with themselves


def products_by_hand(x, kernel, **how):
    """Multiply-adds that meet no zero: the convolution of ones with ones counts them."""
    y = jax.lax.conv_general_dilated(np.ones(x, np.float32), np.ones(kernel, np.float32), **how)
    return int(y.sum())


@pytest.mark.parametrize(
    ("x", "kernel", "how"),
    [
        ((2, 9, 8, 3), (3, 3, 3, 5), {"window_strides": (2, 2), "padding": "SAME"}),
        ((2, 9, 8, 6), (3, 3, 1, 6), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 6}),
        ((2, 5, 5, 3), (3, 3, 3, 4), {"window_strides": (1, 1), "padding": [(2, 1)] * 2, "lhs_dilation": (2, 2)}),
        ((2, 9, 9, 3), (3, 3, 3, 4), {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)}),
        ((6, 9, 8, 3), (3, 3, 3, 4), {"window_strides": (1, 1), "padding": "VALID", "batch_group_count": 2}),
    ],
)
def test_convolutions(x, kernel, how):
    how |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    expected = 2 * products_by_hand(x, kernel, **how)
    assert of(lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, **how), x, kernel) == expected


def test_a_step_costs_three_times_its_forward_pass():
    def loss(x, kernel):
        return jax.lax.conv(x, kernel, (1, 1), "VALID").sum()

    shapes = (2, 3, 9, 9), (4, 3, 1, 1)
    assert of(jax.value_and_grad(loss, (0, 1)), *shapes) == 3 * of(loss, *shapes)
