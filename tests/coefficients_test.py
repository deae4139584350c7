"""Dropout of bases and the measures of their use, by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax import coefficients, models

N = 4


def kept(rate, per="example", batch=4000, seed=0):
    dropout = coefficients.BasisDropout(rate, per, nnx.Rngs(seed))
    return np.asarray(dropout(batch, N))


def test_bases_are_dropped_at_the_rate_and_never_all():
    mask = kept(0.3)
    assert mask.shape == (4000, 1, N)
    assert mask.any(axis=-1).all()
    # Where all four would go (probability 0.3 ** 4) one is spared.
    assert mask.mean() == pytest.approx(0.7 + 0.3**4 / N, abs=0.01)
    np.testing.assert_allclose(mask.mean(axis=(0, 1)), mask.mean(), atol=0.03)  # no basis is favoured
    assert (kept(0.999).sum(axis=-1) == 1).mean() > 0.99
    assert kept(0.5, "batch").shape == (1, 1, N)


def test_what_remains_is_renormalised():
    raw = jax.random.normal(jax.random.key(0), (3, 5, N))
    mask = jnp.array([[[True, False, True, True]], [[False, True, False, False]], [[True] * 4]])
    softmax = coefficients.activate(raw, "softmax", mask)
    whole = coefficients.activate(raw, "softmax")
    expected = whole * mask / jnp.sum(whole * mask, -1, keepdims=True)
    np.testing.assert_allclose(softmax, expected, rtol=1e-5)
    np.testing.assert_array_equal(softmax[1, :, 1], 1.0)
    sigmoid = coefficients.activate(raw, "sigmoid", mask)
    np.testing.assert_allclose(sigmoid[0], jax.nn.sigmoid(raw[0]) * mask[0] * 4 / 3, rtol=1e-5)
    np.testing.assert_array_equal(sigmoid[2], jax.nn.sigmoid(raw[2]))
    grads = jax.grad(lambda raw: jnp.sum(coefficients.activate(raw, "softmax", mask) ** 2))(raw)
    assert jnp.all(jnp.isfinite(grads))


@pytest.mark.slow
def test_dropout_works_in_training_only_and_in_all_layers_at_once(tiny):
    functions = models.functional(models.create(tiny(**{"coefficients.dropout": 0.5})))
    images = jax.random.normal(jax.random.key(0), (16, 16, 16, 1))
    weights = functions.params, functions.batch_stats
    trained = functions.train(*weights, images, jax.random.key(1))[0].coefficients
    dropped = np.asarray(trained == 0)
    assert 0.2 < dropped.mean() < 0.6
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1], dropped.shape))
    np.testing.assert_allclose(jnp.sum(trained, -1), 1.0, rtol=1e-5)
    again = functions.train(*weights, images, jax.random.key(1))[0].coefficients
    np.testing.assert_array_equal(trained, again)
    assert not np.array_equal(dropped, functions.train(*weights, images, jax.random.key(2))[0].coefficients == 0)
    assert np.all(jax.jit(functions.evaluate)(*weights, images).coefficients > 0)


def test_the_temperature_given_in_training_counts(tiny):
    model = models.create(tiny())
    model.coefficient_head.kernel[...] *= 100
    functions = models.functional(model)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))

    def entropy(**kwargs):
        train = jax.jit(functions.train)
        outputs, _ = train(functions.params, functions.batch_stats, images, jax.random.key(1), **kwargs)
        return coefficients.entropy(outputs.coefficients)

    assert entropy(temperature=1000.0) > 0.999 > entropy(temperature=1.0) > entropy(temperature=0.1)
    np.testing.assert_allclose(entropy(), entropy(temperature=1.0), rtol=1e-6)


def test_entropy_and_usage():
    even = jnp.full((2, 3, N), 0.3)
    one = jnp.broadcast_to(jax.nn.one_hot(2, N), (2, 3, N))
    np.testing.assert_allclose(coefficients.entropy(even), 1.0, rtol=1e-6)
    np.testing.assert_allclose(coefficients.entropy(one), 0.0, atol=1e-6)
    assert coefficients.entropy(jnp.ones((2, 3, 1))) == 0
    both = np.concatenate([np.asarray(even), np.asarray(one)])
    np.testing.assert_allclose(coefficients.usage(both).mean(axis=-1), 1.0, rtol=1e-6)
    alive = np.ones((2, N))
    alive[1, 3] = 0.001
    assert coefficients.dead(alive, ["first", "second"]) == ["basis 3 of second"]
    assert coefficients.dead(alive[1:], ["all layers"]) == ["basis 3 of all layers"]
    assert coefficients.dead(np.ones((2, N)), ["first", "second"]) == []


def test_what_a_mixture_tells_about_its_image():
    def spread_of(values):
        return list(coefficients.spread_of(np.asarray(values, np.float32)).values())

    one_hot, even = np.eye(N)[:, None], np.full((5, 2, N), 0.25)
    np.testing.assert_allclose(spread_of(one_hot), [0, 1], atol=1e-6)  # every image has a basis of its own
    half = np.array([[[0.5, 0.5, 0, 0]], [[0, 0, 0.5, 0.5]]])  # one bit of two
    np.testing.assert_allclose(spread_of(3.0 * half), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(spread_of(even), [1, 0], atol=1e-6)
    alike = np.broadcast_to([0.7, 0.1, 0.1, 0.1], (5, 2, N))
    entropy, information = spread_of(alike)
    assert information == pytest.approx(0, abs=1e-6)
    assert entropy == pytest.approx(float(coefficients.entropy(jnp.asarray(alike))), rel=1e-5)
    assert spread_of(np.ones((5, 2, 1))) == [0, 0]


def test_a_collapse_says_what_to_change():
    assert coefficients.collapse(0.9, 0.01) is None
    assert "raise config.optimizer.coefficient_rate" in coefficients.collapse(1.0, 0.0)
    assert "lower config.optimizer.coefficient_rate" in coefficients.collapse(0.01, 0.0)
