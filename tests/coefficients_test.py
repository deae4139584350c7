"""Dropout of bases and the measures of their use, by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax import coefficients, models
from basisnet_jax.errors import UserError

N = 4
UNITS = r"stages/\d+/\d+|last/conv|head"  # of a routed network


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


@pytest.mark.parametrize("activation", coefficients.ACTIVATIONS)
def test_top_k_is_the_dense_mixture_without_the_smallest(activation):
    raw = jax.random.normal(jax.random.key(0), (3, 5, N))
    dense = coefficients.activate(raw, activation)
    np.testing.assert_array_equal(coefficients.activate(raw, activation, top_k=N), dense)
    best = np.asarray(raw) >= np.sort(raw, axis=-1)[..., -2:-1]

    def without(raw):
        left = coefficients.activate(raw, activation) * best
        return left / jnp.sum(left, -1, keepdims=True) if activation == "softmax" else left

    def sparse(raw):
        return coefficients.activate(raw, activation, top_k=2)

    np.testing.assert_array_equal(sparse(raw) != 0, best)
    np.testing.assert_allclose(sparse(raw), without(raw), rtol=1e-6)
    weights = jax.random.normal(jax.random.key(1), raw.shape)
    gradient, expected = (jax.grad(lambda raw, of=of: jnp.sum(weights * of(raw)))(raw) for of in (sparse, without))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(gradient[~best], 0.0)
    assert np.all(gradient[best] != 0)


@pytest.mark.parametrize("k", range(1, N + 1))
def test_of_equal_numbers_exactly_k_are_kept(k):
    raw = jnp.array([[[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 2.0, 2.0], [-1.0, 3.0, -1.0, 3.0]]])
    np.testing.assert_array_equal(coefficients.largest(raw, k).sum(axis=-1), k)
    mixture = coefficients.activate(raw, "softmax", top_k=k)
    np.testing.assert_array_equal((mixture != 0).sum(axis=-1), k)
    np.testing.assert_allclose(mixture.sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(mixture[0, 1, 0] != 0, k == N)


def test_top_k_chooses_among_what_dropout_leaves():
    raw = jnp.array([[[4.0, 3.0, 2.0, 1.0]]] * 3)
    mask = jnp.array([[[False, True, True, True]], [[True, False, False, False]], [[True] * 4]])
    softmax = coefficients.activate(raw, "softmax", mask, top_k=2)
    np.testing.assert_array_equal(
        softmax[:, 0] != 0, [[False, True, True, False], [True] + [False] * 3, [True, True] + [False] * 2]
    )
    np.testing.assert_allclose(softmax.sum(axis=-1), 1.0, rtol=1e-6)
    sigmoid, of = coefficients.activate(raw, "sigmoid", mask, top_k=2), jax.nn.sigmoid(raw)[0, 0]
    # Of two to be mixed, one is left to the second example: it counts twice.
    np.testing.assert_allclose(
        sigmoid[:, 0], [[0, of[1], of[2], 0], [2 * of[0], 0, 0, 0], [of[0], of[1], 0, 0]], rtol=1e-6
    )
    for activation in coefficients.ACTIVATIONS:
        of_all = jax.grad(lambda raw: jnp.sum(coefficients.activate(raw, activation, mask, 2) ** 2))(raw)  # noqa: B023
        assert jnp.all(jnp.isfinite(of_all))


@pytest.mark.parametrize("model", ["basisnet", "routed"])
def test_models_mix_so_many_bases(tiny, model):
    """In training and evaluation; the dense model has the same weights."""
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))

    def made(top_k):
        overrides = {"model": model, "routing.units": UNITS, "coefficients.top_k": top_k}
        built = models.create(tiny(**overrides))
        return built.coefficient_names(), models.functional(built)

    names, functions = made(2)
    weights = functions.params, functions.batch_stats
    trained = jax.jit(functions.train)(*weights, images, jax.random.key(1), 0.5)[0].coefficients
    sparse = jax.jit(functions.evaluate)(*weights, images).coefficients
    for mixture in (trained, sparse):
        np.testing.assert_array_equal((mixture != 0).sum(axis=-1), 2)
        np.testing.assert_allclose(mixture.sum(axis=-1), 1.0, rtol=1e-6)
    # A routed layer sees what those before it mixed, so of these the first is compared.
    k = [names.index("stages/0/0")] if model == "routed" else slice(None)
    sparse, dense = (of[:, k] for of in (sparse, jax.jit(made(0)[1].evaluate)(*weights, images).coefficients))
    left = dense * (sparse != 0)
    np.testing.assert_allclose(sparse, left / left.sum(axis=-1, keepdims=True), rtol=1e-5)
    assert np.all(jnp.min(dense, axis=-1, where=sparse != 0, initial=1) >= jnp.max(dense * (sparse == 0), axis=-1))


def test_more_bases_than_there_are_cannot_be_mixed(tiny):
    for model in ("basisnet", "routed"):
        config = tiny(**{"model": model, "coefficients.top_k": 4, "routing.units": UNITS})
        with pytest.raises(UserError, match="config.coefficients.*: top_k=4, expected 0 for all bases, or 1 to 3"):
            models.create(config)


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


def test_measures_of_sparse_mixtures_are_finite():
    sparse = coefficients.activate(jax.random.normal(jax.random.key(0), (40, 3, N)), "softmax", top_k=2)
    assert 0 < coefficients.entropy(sparse) < 0.5  # log 2 of log 4
    np.testing.assert_allclose(coefficients.usage(sparse).mean(axis=-1), 1.0, rtol=1e-6)
    assert all(np.isfinite(value) for value in coefficients.spread_of(np.asarray(sparse)).values())
    one = coefficients.activate(jnp.array([[[0.0, 1.0, 2.0, 3.0]]] * 5), "softmax", top_k=2)
    assert coefficients.dead(np.asarray(coefficients.usage(one)), ["a"]) == ["basis 0 of a", "basis 1 of a"]


def test_imbalance_by_hand():
    one = jnp.broadcast_to(jax.nn.one_hot(2, N), (5, 3, N))
    np.testing.assert_allclose(coefficients.imbalance(one), N - 1, rtol=1e-6)
    np.testing.assert_allclose(coefficients.imbalance(jnp.eye(N)[:, None]), 0.0, atol=1e-6)  # each image another basis
    # Two layers: sums of 1.5, 0.5, 1, 1 with a mean of 1 and a variance of 0.125; and even ones.
    batch = jnp.array([[[0.5, 0.5, 0, 0], [1.0, 1.0, 0, 0]], [[1.0, 0, 1.0, 1.0], [0, 0, 1.0, 1.0]]])
    np.testing.assert_allclose(coefficients.imbalance(batch), 0.125 / 2, rtol=1e-6)


def test_the_gradient_of_imbalance_leads_to_even_use():
    """Bases that are used too much fall below those that few images mix."""
    raw = jax.random.normal(jax.random.key(0), (64, 1, N)) * 0.4 + jnp.array([0.4, 0.2, -0.2, -0.4])

    def loss(bias):
        return coefficients.imbalance(coefficients.activate(raw + bias, "softmax", top_k=2))

    step, bias = jax.jit(jax.value_and_grad(loss)), jnp.zeros(N)
    before, gradient = step(bias)
    assert gradient[0] > 0 > gradient[3]
    for _ in range(100):
        bias -= 0.1 * step(bias)[1]
    assert before > 0.2 and step(bias)[0] < 0.02, (before, step(bias)[0])


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
    assert "train anew with a lower config.optimizer.coefficient_rate or" in coefficients.collapse(0.25, 0.0, top_k=2)
