"""CondConv and dynamic convolution: coefficients from a block's or a layer's own input, on the same basis layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax import baselines, basis, madds, models, networks
from basisnet_jax.errors import UserError

N = 3
BLOCKS = basis.matching(r"stages/\d+/\d+")
LAYERS = basis.matching(r"stages/.*/conv")


def network(seed=0):
    network = networks.create(
        "mobilenet_v2", num_classes=5, width=0.1, num_stages=2, head_features=8, dropout=0.0, rngs=nnx.Rngs(seed)
    )
    return basis.with_bases(network, N, where=LAYERS, rngs=nnx.Rngs(seed + 1))


def routed(where=BLOCKS, **kwargs):
    model = baselines.routed(network(), where, **kwargs, rngs=nnx.Rngs(2))
    for unit in model.units().values():  # coefficients that differ from example to example
        unit.router.kernel[...] *= 300
    model.eval()
    return model


def images(batch=4):
    return jax.random.normal(jax.random.key(0), (batch, 16, 16, 3))


@pytest.mark.slow
def test_a_block_routes_all_its_layers_by_its_own_input():
    """CondConv, by hand: sigmoid(linear(mean of the block's input)), the plain block of each example's own kernels."""
    unit = routed().units()["stages/1/0"]
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, unit.body.in_features))
    raw = x.mean(axis=(1, 2)) @ unit.router.kernel[...] + unit.router.bias[...]
    expected = jax.nn.sigmoid(raw)
    assert expected.std(axis=0).min() > 0.01
    y = unit(x)
    np.testing.assert_allclose(unit.coefficients[:, 0], expected, rtol=1e-5)
    assert len(basis.basis_layers(unit.body)) == 3
    for b in range(4):
        plain = basis.synthesize(unit.body, expected[b][None])
        np.testing.assert_allclose(y[b], plain(x[b : b + 1])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_layer_routes_itself():
    """Dynamic convolution, by hand: softmax(linear(relu(linear(mean of the layer's input))) / temperature)."""
    model = routed(LAYERS, hidden=0.25, activation="softmax", temperature=7.0)
    units = model.units()
    assert list(units) == list(basis.basis_layers(network())) == model.coefficient_names()
    unit = units["stages/1/0/depthwise/conv"]
    features = unit.body.in_features
    assert unit.squeeze.out_features == round(features / 4)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, features))
    squeezed = jax.nn.relu(x.mean(axis=(1, 2)) @ unit.squeeze.kernel[...] + unit.squeeze.bias[...])
    expected = jax.nn.softmax((squeezed @ unit.router.kernel[...] + unit.router.bias[...]) / 7.0)
    y = unit(x)
    np.testing.assert_allclose(unit.coefficients[:, 0], expected, rtol=1e-5)
    for b in range(4):
        plain = basis.synthesize(unit.body, expected[b][None])
        np.testing.assert_allclose(y[b], plain(x[b : b + 1])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_linear_layer_routes_itself():
    model = baselines.routed(
        basis.with_bases(network(), N, where=basis.matching("classifier"), rngs=nnx.Rngs(0)),
        lambda path, module: LAYERS(path, module) or path == "classifier",
        rngs=nnx.Rngs(2),
    )
    assert model.units()["classifier"].router.in_features == 8
    assert model(images()).coefficients.shape == (4, len(model.units()), N)


@pytest.mark.slow
def test_outputs():
    model = routed()
    outputs = model(images())
    assert outputs.logits.shape == (4, 5) and outputs.preview_logits is None
    assert outputs.coefficients.shape == (4, len(model.units()), N)
    # Each row is its image's alone, and nothing of the batch stays in the model.
    reversed_ = model(images()[::-1])
    np.testing.assert_allclose(reversed_.logits[::-1], outputs.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reversed_.coefficients[::-1], outputs.coefficients, rtol=1e-4, atol=1e-5)
    assert all(unit.coefficients is None for unit in model.units().values())
    assert len({row.tobytes() for row in np.asarray(outputs.coefficients).round(4)}) == 4


def test_every_basis_layer_has_one_router():
    with pytest.raises(ValueError, match="stages/0/0/depthwise/conv is in no module"):
        baselines.routed(network(), basis.matching("stages/1/0"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"is in stages/0/0/depthwise/conv and stages/0/0 that routes, expected"):
        baselines.routed(network(), lambda *args: BLOCKS(*args) or LAYERS(*args), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="^stages has no number `in_features`"):
        baselines.routed(network(), lambda path, module: path in ("stages", "last/conv", "head"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="expected one of softmax, sigmoid"):
        baselines.routed(network(), BLOCKS, activation="tanh", rngs=nnx.Rngs(0))


def config_of(tiny, **overrides):
    config = tiny(model="routed", **overrides)
    config.routing.units = r"stages/\d+/\d+|last/conv|head"
    return config


@pytest.mark.slow
def test_of_a_config(tiny):
    """The coefficients' fields reach every unit, and gradients reach every router."""
    config = config_of(
        tiny, **{"coefficients.activation": "softmax", "coefficients.dropout": 0.5, "routing.hidden": 0.5}
    )
    model = models.create(config)
    functions = models.functional(model)
    x = jax.random.normal(jax.random.key(0), (8, 16, 16, 1))

    @jax.jit
    def run(temperature):
        def loss(params):
            outputs, _ = functions.train(params, functions.batch_stats, x, jax.random.key(1), temperature)
            return jnp.sum(jnp.square(outputs.logits)), outputs.coefficients

        return jax.value_and_grad(loss, has_aux=True)(functions.params)

    (_, coefficients), gradient = run(1.0)
    assert coefficients.shape == (8, len(model.coefficient_names()), 3)
    np.testing.assert_allclose(coefficients.sum(axis=-1), 1.0, rtol=1e-5)
    assert jnp.any(coefficients == 0)  # dropped
    assert jnp.any(coefficients[:, 0] == 0, axis=-1).tolist() != jnp.any(coefficients[:, 1] == 0, axis=-1).tolist()
    cold = run(1e-3)[0][1]
    assert cold.max(axis=-1).mean() > coefficients.max(axis=-1).mean() + 0.1
    outputs = jax.jit(functions.evaluate)(functions.params, functions.batch_stats, x)
    assert np.all(outputs.coefficients > 0)
    for unit in ("0", "last"):
        tree = gradient["network"]["stages"][0][0] if unit == "0" else gradient["network"]["last"]["conv"]
        assert float(jnp.abs(tree["router"]["kernel"]).max()) > 0, unit


def test_a_config_whose_units_leave_a_layer_out(tiny):
    config = config_of(tiny)
    config.routing.units = "head"
    with pytest.raises(UserError, match=r"config.routing: .* in no module that routes"):
        models.create(config)


def test_multiply_adds_of_routing(tiny):
    """The router and mixing on top of the static network's own."""
    routed_, static = (models.create_abstract(config_of(tiny)), models.create_abstract(tiny(model="static")))
    parts = madds.summary(madds.count(routed_, (16, 16, 1)))
    assert parts.pop("network") == madds.total(madds.count(static, (16, 16, 1)))
    layers = basis.basis_layers(routed_).values()
    assert parts.pop("mixing") == sum(layer.layer.kernel.size for layer in layers)
    assert parts == {"coefficients": sum(unit.body.in_features * 3 for unit in routed_.units().values())}
