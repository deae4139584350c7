"""Gradients of layers that cast their params: what is summed over devices, and when nothing changes."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from basisnet_jax import basis, layers, reduced
from basisnet_jax.errors import UserError
from basisnet_jax.ops import reduction
from basisnet_jax.training.step import build_step


class Network(nnx.Module):
    """Every kind of layer that casts: with bases and without, with a bias and without."""

    def __init__(self, dtype):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(3, 4, (3, 3), strides=2, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(4, 4, (1, 1), use_bias=False, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(4, 5, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.head(self.conv(self.stem(x)).mean(axis=(1, 2)))


def gradient(dtype=jnp.bfloat16, devices=4, batch=8, inside=reduction.in_dtype_of_params):
    """The gradient's jaxpr on a mesh of so many devices."""
    network = basis.with_bases(Network(dtype), 2, where=basis.matching("conv"))
    graph, params = nnx.split(reduced.with_reduced_layers(network))

    def loss(params, x, coefficients):
        model = nnx.merge(graph, params)
        with inside(), basis.mixed(model, coefficients):
            return model(x).astype(jnp.float32).sum()

    mesh = AbstractMesh((devices, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.make_jaxpr(jax.grad(loss))(params, jnp.ones((batch, 8, 8, 3)), jnp.ones((batch, 1, 2)))


def sums(jaxpr) -> list:
    """The types of all that devices sum."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("psum"):
            found += [variable.aval for variable in equation.outvars]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            found += sums(inner) if hasattr(inner, "eqns") else []
    return found


def test_every_cast_param_is_summed_in_its_own_dtype():
    found = sums(gradient().jaxpr)
    assert sorted(one.shape for one in found) == sorted([(3, 3, 3, 4), (4,), (2, 1, 1, 4, 4), (4, 5), (5,)])
    assert {one.dtype for one in found} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "changed",
    [{"devices": 1}, {"dtype": jnp.float32}, {"dtype": None}, {"batch": 6}, {"inside": contextlib.nullcontext}],
)
def test_else_the_program_is_as_it_was(changed):
    assert "shard_map" in str(gradient()) and "shard_map" not in str(gradient(**changed))


@pytest.mark.parametrize(
    "layer",
    [
        nnx.Conv(3, 4, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
        nnx.Linear(8, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    ],
)
def test_an_example_alone_is_not_split(layer):
    (layer,) = reduced.with_reduced_layers(nnx.List([layer]))
    one = jnp.ones((8, 8, 3) if isinstance(layer, nnx.Conv) else (8,))
    mesh = AbstractMesh((4, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh), reduction.in_dtype_of_params():
        assert "shard_map" not in str(jax.make_jaxpr(layer)(one))
        assert "shard_map" in str(jax.make_jaxpr(layer)(jnp.stack([one] * 8)))


def test_a_copy_for_training_leaves_the_model_as_it_was():
    model = Network(jnp.bfloat16)
    copy = reduced.with_reduced_layers(model)
    assert type(model.conv) is nnx.Conv and isinstance(copy.conv, nnx.Conv) and type(copy.conv) is not nnx.Conv
    assert jax.tree.structure(nnx.to_pure_dict(nnx.state(copy))) == jax.tree.structure(
        nnx.to_pure_dict(nnx.state(model))
    )
    assert layers.is_plain(model.head, nnx.Linear)


def test_a_pass_that_the_devices_cannot_share_is_refused(tiny):
    """`by_device` would leave it, and its gradients would be summed in bfloat16."""
    config = tiny(batch_size=96, accumulate=4, dtype="bfloat16")
    mesh = AbstractMesh((16, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(UserError, match="accumulate=4 leaves 24 images for a pass, which the 16 devices cannot share"):
        build_step(config, None, 1, mesh)
