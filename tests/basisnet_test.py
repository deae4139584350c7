"""Both stages together: shapes, kinds of coefficients, and what the functional form promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax import basis, basisnet, models
from basisnet_jax.errors import UserError
from basisnet_jax.ops import platforms


@pytest.fixture(scope="module")
def model(tiny):
    return models.create(tiny())


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (4, 16, 16, 1))


@pytest.mark.slow
def test_outputs_and_the_two_stages_apart(model, images):
    model.eval()
    outputs = model(images)
    layers = len(basis.basis_layers(model.specialist))
    assert layers == 4  # depthwise, project, last, head
    assert outputs.logits.shape == outputs.preview_logits.shape == (4, 10)
    assert outputs.coefficients.shape == (4, layers, 3)
    np.testing.assert_allclose(jnp.sum(outputs.coefficients, -1), 1.0, rtol=1e-5)
    preview_logits, coefficients = model.preview_stage(images)
    np.testing.assert_array_equal(preview_logits, outputs.preview_logits)
    np.testing.assert_array_equal(model.specialist_stage(images, coefficients), outputs.logits)
    # An image's coefficients give the plain network that answers for it.
    plain = basis.synthesize(model.specialist, coefficients[2])
    np.testing.assert_allclose(plain(images[2:3])[0], outputs.logits[2], atol=1e-5)


@pytest.mark.slow
def test_permuting_the_batch_permutes_all_outputs(model, images):
    model.eval()
    order = jnp.array([3, 1, 0, 2])
    for ours, expected in zip(model(images[order]), model(images), strict=True):
        np.testing.assert_allclose(ours, expected[order], atol=1e-5)


def test_kinds_of_coefficients(tiny, images):
    def coefficients(**overrides):
        model = models.create(tiny(**overrides))
        model.eval()
        model.coefficient_head.kernel[...] *= 100
        return model(images).coefficients

    softmax = coefficients()
    even = coefficients(**{"coefficients.temperature": 1000.0})
    assert jnp.ptp(even) < 0.01 < jnp.ptp(softmax)
    sigmoid = coefficients(**{"coefficients.activation": "sigmoid"})
    assert not np.allclose(jnp.sum(sigmoid, -1), 1.0, atol=0.01)
    assert coefficients(**{"coefficients.shared": True}).shape == (4, 1, 3)


def test_the_preview_sees_its_own_resolution(tiny, images):
    seen = {}
    model = models.create(tiny())
    model.eval()
    features = model.preview.features
    model.preview.features = lambda x: seen.update(shape=x.shape) or features(x)
    model(images)
    assert seen["shape"] == (4, 8, 8, 1)


def test_functional_form(tiny, images):
    functions = models.functional(models.create(tiny(**{"network.dropout": 0.5})))
    params, stats = functions.params, functions.batch_stats
    train = jax.jit(functions.train)
    outputs, new_stats = train(params, stats, images, jax.random.key(0))
    again, _ = train(params, stats, images, jax.random.key(0))
    other, _ = train(params, stats, images, jax.random.key(1))
    np.testing.assert_array_equal(outputs.logits, again.logits)
    assert not np.array_equal(outputs.logits, other.logits)  # dropout follows the key
    assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (stats, new_stats)), strict=True))
    evaluate = jax.jit(functions.evaluate)
    evaluated = evaluate(params, stats, images)
    np.testing.assert_array_equal(evaluated.logits, evaluate(params, stats, images).logits)


def test_the_seed_decides_the_initial_weights(tiny):
    def leaves(seed):
        return jax.tree.leaves(models.functional(models.create(tiny(seed=seed))).params)

    assert all(np.array_equal(a, b) for a, b in zip(leaves(1), leaves(1), strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(leaves(1), leaves(2), strict=True))


def test_static_model_has_no_preview(tiny, images):
    model = models.create(tiny(model="static"))
    outputs = models.functional(model).evaluate(*models.functional(model)[:2], images)
    assert outputs.preview_logits is None
    assert not basis.basis_layers(model)


def test_bases_that_are_copies_start_as_the_static_network_of_that_seed(tiny, images):
    def logits(**overrides):
        model = models.create(tiny(**overrides))
        model.eval()
        outputs = model(images)
        return getattr(outputs, "logits", outputs)

    copies, static = {"basis.init": "copies", "init_noise": 0.0}, logits(model="static")
    np.testing.assert_allclose(logits(**copies), static, atol=1e-5)
    even = {"basis.init": "copies", "init_noise": 0.5, "coefficients.temperature": 1e9}
    np.testing.assert_allclose(logits(**even), static, atol=1e-5)
    uneven = {"init_noise": 0.5, "coefficients.temperature": 0.01}
    for other in (uneven, {"basis.init": "independent"}, {"coefficients.activation": "sigmoid"}):
        assert not np.allclose(logits(**{**copies, **other}), static, rtol=0.01, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_gives_float32_coefficients(tiny, images):
    model = models.create(tiny(dtype="bfloat16"))
    model.eval()
    outputs = model(images)
    assert (outputs.logits.dtype, outputs.coefficients.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"coefficients.activation": "relu"}, "softmax"),
        ({"basis.layers": "nothing"}, "config.basis.*no layer"),
        ({"basis.num_bases": 0}, "num_bases"),
    ],
)
def test_mistakes_in_the_config(tiny, overrides, words):
    with pytest.raises(UserError, match=words):
        models.create(tiny(**overrides))


def test_specialist_without_bases_is_refused(tiny):
    network = models.create(tiny(model="static"))
    with pytest.raises(ValueError, match="bases"):
        basisnet.BasisNet(network, network, preview_size=8, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(56, 56, 40), (16, 16, 8), (9, 30, 17), (5, 5, 12), (28, 28, 27)])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_resizing_is_that_of_jax(shape, platform):
    """Both forms: larger and smaller, and not square."""
    *sides, size = shape
    images = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
    expected = jax.image.resize(images, (2, size, size, 3), "bilinear")
    with platforms.paths_for(platform):
        np.testing.assert_allclose(basisnet.resize(images, size), expected, atol=5e-5)
        assert basisnet.resize(images.astype(jnp.bfloat16), size).dtype == jnp.bfloat16
