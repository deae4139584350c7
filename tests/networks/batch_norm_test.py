"""Batch norm's own gradient against autodiff of its formula, and its statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax.networks import batch_norm
from basisnet_jax.networks.blocks import ACTIVATIONS
from basisnet_jax.ops import platforms

EPSILON = 1e-3


def by_definition(x, scale, bias, activation):
    axes = tuple(range(1, x.ndim - 1))
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return activation((x - mean) / jnp.sqrt(var + EPSILON) * scale + bias), (mean, var)


@pytest.mark.slow
# The larger ones are summed some rows at a time on CPU: all rows at once would exceed what is summed at once.
@pytest.mark.parametrize("shape", [(1, 4, 6, 5, 3), (2, 3, 4, 4, 5), (2, 4, 12, 64, 64), (1, 2, 7, 300, 64), (1, 9, 4)])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gradient(shape, platform):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(0.7, 2, shape))
    scale, bias = (jnp.asarray(random.normal(size=shape[-1])) for _ in range(2))
    dy = jnp.asarray(random.normal(size=shape))
    with jax.enable_x64(True), platforms.paths_for(platform):
        arrays = [jnp.asarray(np.asarray(array), jnp.float64) for array in (x, scale, bias)]
        for activation in (jax.nn.swish, jax.nn.hard_swish, nnx.identity):
            definition = functools.partial(by_definition, activation=activation)
            expected, vjp, statistics = jax.vjp(definition, *arrays, has_aux=True)
            (y, mean, var), ours = jax.vjp(lambda *a, f=activation: batch_norm.normalize(*a, EPSILON, f), *arrays)
            np.testing.assert_allclose(y, expected, atol=1e-9)
            np.testing.assert_allclose(mean, statistics[0].reshape(mean.shape), atol=1e-12)
            np.testing.assert_allclose(var, statistics[1].reshape(var.shape), atol=1e-9)
            gradients = ours((dy.astype(y.dtype), jnp.zeros_like(mean), jnp.zeros_like(var)))
            for gradient, wanted in zip(gradients, vjp(dy.astype(y.dtype)), strict=True):
                np.testing.assert_allclose(gradient, wanted, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_flax_batch_norm_and_an_activation(name):
    x = jax.random.normal(jax.random.key(0), (6, 5, 5, 4)) * 3 + 1
    ours = batch_norm.BatchNorm(4, activation=ACTIVATIONS[name], epsilon=EPSILON, rngs=nnx.Rngs(0))
    plain = nnx.BatchNorm(4, epsilon=EPSILON, rngs=nnx.Rngs(0))
    for training in (True, False):
        for norm in (ours, plain):
            norm.set_attributes(use_running_average=not training)
        np.testing.assert_allclose(ours(x), ACTIVATIONS[name](plain(x)), atol=1e-5)
        plain.var[...] = ours.var[...]  # unbiased in ours


def test_each_group_has_statistics_of_its_own():
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 2)) * jnp.arange(1.0, 9)[:, None, None, None]
    norm = batch_norm.BatchNorm(2, activation=jax.nn.relu, rngs=nnx.Rngs(0))
    halves = [norm(half) for half in jnp.split(x, 2)]
    norm.groups = 2
    np.testing.assert_allclose(norm(x), jnp.concatenate(halves), atol=1e-6)


def test_updates_the_unbiased_variance():
    norm = batch_norm.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 2)) * 3
    norm(x)
    expected = 0.9 * 1.0 + 0.1 * jnp.var(x, axis=(0, 1, 2), ddof=1)
    assert jnp.allclose(norm.var[...], expected, rtol=1e-5)


def test_bfloat16_keeps_its_type_and_sums_in_float32():
    x = (jax.random.normal(jax.random.key(0), (64, 16, 16, 2)) + 100).astype(jnp.bfloat16)
    norm = batch_norm.BatchNorm(2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    ones, zeros = jnp.ones(2), jnp.zeros(2)
    (y, _, _), vjp = jax.vjp(lambda x: batch_norm.normalize(x[None], ones, zeros, EPSILON, jax.nn.relu), x)
    (gradient,) = vjp((y, zeros[None], zeros[None]))
    assert norm(x).dtype == gradient.dtype == jnp.bfloat16 and y.dtype == jnp.float32
    np.testing.assert_allclose(norm(x).astype(jnp.float32).mean(axis=(0, 1, 2)), 0, atol=0.02)
