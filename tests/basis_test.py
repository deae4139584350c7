"""The idea itself, on a network that was written with no thought of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax import basis
from basisnet_jax.ops import conv, platforms

N = 3


class Residual(nnx.Module):
    def __init__(self, features, *, rngs):
        self.layers = nnx.List([nnx.Conv(features, features, (3, 3), rngs=rngs) for _ in range(2)])
        self.gate = nnx.Conv(features, features, (3, 3), feature_group_count=features, rngs=rngs)

    def __call__(self, x):
        y = x
        for layer in self.layers:
            y = jax.nn.relu(layer(y))
        return x + y * jax.nn.sigmoid(self.gate(x))


class Foreign(nnx.Module):
    """Nested lists, residuals, biases, one layer used twice, and a linear layer on two kinds of axes."""

    def __init__(self, *, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), strides=2, padding=1, rngs=rngs)
        self.stages = nnx.List([nnx.List([Residual(4, rngs=rngs)]) for _ in range(2)])
        self.point = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.out = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        x = self.point(self.point(x))
        return self.out(jnp.mean(x, axis=(1, 2)))


def everything(path, layer):
    return True


@pytest.fixture(scope="module")
def network():
    return Foreign(rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def bases(network):
    return basis.with_bases(network, N, where=everything, init=basis.independent, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(2), (4, 9, 9, 2))


@pytest.fixture(scope="module")
def coefficients(bases):
    logits = jax.random.normal(jax.random.key(3), (4, len(basis.basis_layers(bases)), N))
    return jax.nn.softmax(logits)


def run(network, coefficients, images):
    with basis.mixed(network, coefficients):
        return network(images)


def test_the_network_given_is_left_alone(network, bases):
    assert not basis.basis_layers(network)
    assert network.stem.kernel.shape == (3, 3, 2, 4)
    assert bases.stem.layer.kernel.shape == (N, 3, 3, 2, 4)
    assert len(basis.basis_layers(bases)) == 1 + 2 * 3 + 1 + 1


def test_mixed_kernels_equal_mixed_outputs(bases):
    """A convolution is linear in its kernel, so mixing kernels is mixing the bases' outputs."""
    layer = bases.stages[0][0].gate
    x = jax.random.normal(jax.random.key(4), (2, 6, 6, 4))
    alpha = jax.nn.softmax(jax.random.normal(jax.random.key(5), (2, N)))
    with basis.mixed(layer, alpha[:, None]):
        ours = layer(x)
    plain = [basis.synthesize(layer, jax.nn.one_hot(n, N)[None])(x) for n in range(N)]
    expected = jnp.einsum("bn,nbhwc->bhwc", alpha, jnp.stack(plain))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_one_hot_coefficients_give_the_plain_network(network, bases, images):
    """The first basis holds the kernels of the network that was given."""
    first = jnp.broadcast_to(jax.nn.one_hot(0, N), (4, 1, N))
    np.testing.assert_allclose(run(bases, first, images), network(images), atol=1e-5)
    second = jnp.broadcast_to(jax.nn.one_hot(1, N), (4, 1, N))
    assert not np.allclose(run(bases, second, images), network(images), atol=1e-2)


def test_synthesize_equals_the_basis_network(bases, images, coefficients):
    together = run(bases, coefficients, images)
    for b in range(len(images)):
        plain = basis.synthesize(bases, coefficients[b])
        assert not basis.basis_layers(plain)
        assert type(plain.stem) is nnx.Conv
        np.testing.assert_allclose(plain(images[b : b + 1])[0], together[b], atol=1e-5)


@pytest.mark.slow
def test_gradients_equal_those_of_the_plain_networks(bases, images, coefficients):
    graph, params, rest = nnx.split(bases, nnx.Param, ...)

    def together(params, coefficients):
        return jnp.sum(run(nnx.merge(graph, params, rest, copy=True), coefficients, images) ** 2)

    def one_by_one(params, coefficients):
        network = nnx.merge(graph, params, rest, copy=True)
        plain = [basis.synthesize(network, coefficients[b]) for b in range(4)]
        return sum(jnp.sum(plain[b](images[b : b + 1]) ** 2) for b in range(4))

    ours = jax.jit(jax.grad(together, argnums=(0, 1)))(params, coefficients)
    expected = jax.jit(jax.grad(one_by_one, argnums=(0, 1)))(params, coefficients)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_permuting_the_batch_permutes_the_outputs(bases, images, coefficients):
    order = jnp.array([2, 0, 3, 1])
    ours = run(bases, coefficients[order], images[order])
    np.testing.assert_allclose(ours, run(bases, coefficients, images)[order], atol=1e-5)


def test_layers_use_their_own_row_of_coefficients(bases, images, coefficients):
    k = list(basis.basis_layers(bases)).index("point")
    changed = coefficients.at[:, k].set(jax.nn.one_hot(1, N))
    assert not np.allclose(run(bases, changed, images), run(bases, coefficients, images), atol=1e-3)


def test_nothing_of_the_batch_stays_behind(bases, images, coefficients):
    before = nnx.graphdef(bases), jax.tree.structure(nnx.state(bases))
    with pytest.raises(RuntimeError, match="inside"), basis.mixed(bases, coefficients):
        raise RuntimeError("inside")
    assert (nnx.graphdef(bases), jax.tree.structure(nnx.state(bases))) == before
    with pytest.raises(ValueError, match="without coefficients"):
        bases(images)


def test_only_the_chosen_layers_get_bases(network):
    chosen = basis.with_bases(network, N, where=basis.matching(r"stages/.*/layers/\d+"), rngs=nnx.Rngs(0))
    assert list(basis.basis_layers(chosen)) == [f"stages/{s}/0/layers/{i}" for s in range(2) for i in range(2)]
    default = basis.with_bases(network, N, rngs=nnx.Rngs(0))
    assert "out" not in basis.basis_layers(default)


def test_independent_bases_differ_and_have_the_layers_spread(bases):
    kernels = bases.stages[0][0].layers[0].layer.kernel[...]
    assert jnp.abs(kernels[1] - kernels[2]).max() > 0.1
    np.testing.assert_allclose(jnp.std(kernels[1:], axis=(1, 2, 3, 4)), jnp.std(kernels[0]), rtol=0.25)


def test_copies_without_noise_compute_what_the_network_computed(network, images):
    copied = basis.with_bases(network, N, where=everything, init=basis.copies(0.0), rngs=nnx.Rngs(0))
    alpha = jnp.broadcast_to(jnp.array([0.5, 0.25, 0.25]), (4, 1, N))  # exact in binary, and sums to one
    np.testing.assert_array_equal(
        basis.synthesize(copied, alpha[0]).stem.kernel[...], network.stem.kernel[...], strict=True
    )
    np.testing.assert_allclose(run(copied, alpha, images), network(images), atol=1e-5)


def test_noisy_copies_spread_around_the_kernel_that_they_are_copies_of(network, images):
    noisy = basis.with_bases(network, N, where=everything, rngs=nnx.Rngs(0))  # the default
    np.testing.assert_allclose(run(noisy, jnp.full((4, 1, N), 1 / N), images), network(images), atol=1e-5)
    assert not np.allclose(run(noisy, jnp.broadcast_to(jnp.eye(N)[0], (4, 1, N)), images), network(images), atol=1e-2)
    spread = jnp.std(noisy.out.layer.kernel[...] - network.out.kernel[...]) / jnp.std(network.out.kernel[...])
    assert 0.08 < spread < 0.12


def test_linear_layers_on_more_axes():
    linear = basis.with_bases(nnx.List([nnx.Linear(3, 2, rngs=nnx.Rngs(0))]), N, where=everything, rngs=nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    alpha = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, 1, N)))
    with basis.mixed(linear, alpha):
        y = linear[0](x)
    for b in range(2):
        np.testing.assert_allclose(y[b], basis.synthesize(linear, alpha[b])[0](x[b]), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel_used_at_one_position_is_never_mixed(dtype):
    network = nnx.List([nnx.Conv(6, 10, (1, 1), dtype=dtype, rngs=nnx.Rngs(0))])
    network = basis.with_bases(network, N, rngs=nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (4, 1, 1, 6))
    alpha = jax.nn.softmax(jax.random.normal(jax.random.key(1), (4, 1, N)))

    def call(alpha, x):
        with basis.mixed(layer := nnx.clone(network[0]), alpha):
            return layer(x)

    def equations(alpha, x):
        return jax.make_jaxpr(call)(alpha, x).eqns

    y = call(alpha, x)
    for b in range(4):
        expected = basis.synthesize(network, alpha[b])[0](x[b : b + 1])[0]
        np.testing.assert_allclose(y[b], expected, atol=1e-5 if dtype == "float32" else 0.03)
    shapes = {var.aval.shape for eqn in equations(alpha, x) for var in eqn.outvars}
    assert not any(shape[:1] == (4,) and math.prod(shape[1:]) == 60 for shape in shapes)
    two_pixels = {var.aval.shape for eqn in equations(alpha, x.repeat(2, 1)) for var in eqn.outvars}
    assert any(shape[:1] == (4,) and math.prod(shape[1:]) == 60 for shape in two_pixels)


def test_mistakes(network, bases, images):
    with pytest.raises(ValueError, match="no layer"):
        basis.with_bases(network, 2, where=basis.matching("nothing"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least 1"):
        basis.with_bases(network, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected \[B, 9 or 1, N\]"):
        run(bases, jnp.ones((4, 2, N)), images)
    with pytest.raises(ValueError, match="coefficients of 3 examples for a batch of 4"):
        run(bases, jnp.ones((3, 9, N)), images[:4])
    with pytest.raises(ValueError, match=r"expected \[9 or 1, N\]"):
        basis.synthesize(bases, jnp.ones((2, N)))


@pytest.mark.parametrize("path", ["pointwise", "depthwise", "stem", "general", "folded", "loop"])
def test_every_path_computes_the_same_network(path, bases, images, coefficients):
    with basis.mixed(bases, coefficients):
        expected = bases(images)
    network = nnx.clone(bases)
    chosen = []
    for layer in basis.basis_layers(network).values():
        if isinstance(layer, basis.BasisConv):
            kernel = layer.layer.kernel.shape[1:]
            if path in conv.paths((2, 9, 9, layer.in_features), kernel, **layer.geometry):
                layer.path = path
                chosen.append(layer)
    assert chosen
    with basis.mixed(network, coefficients):
        np.testing.assert_allclose(network(images), expected, atol=1e-5)


def test_kernels_are_mixed_one_layer_after_the_other():
    """XLA's own order would hold the kernels of all layers at once."""
    layers = nnx.Sequential(*[nnx.Conv(64, 64, (1, 1), rngs=nnx.Rngs(i)) for i in range(8)])
    network = basis.with_bases(layers, N, rngs=nnx.Rngs(0))
    graph, state = nnx.split(network)

    def run(state, x, coefficients):
        network = nnx.merge(graph, state)
        with basis.mixed(network, coefficients):
            return network(x)

    program = jax.jit(run).lower(state, jnp.zeros((32, 2, 2, 64)), jnp.ones((32, 1, N))).compile()
    kernels_of_a_layer = 4 * 32 * 64 * 64
    assert program.memory_analysis().temp_size_in_bytes < 3 * kernels_of_a_layer


@pytest.mark.parametrize(
    ("platform", "remat", "kept"),
    [("tpu", None, False), ("tpu", False, True), ("cpu", None, True), ("cpu", True, False)],
)
def test_the_backward_pass_mixes_again_on_tpu_or_if_told_to(platform, remat, kept):
    plain = nnx.Sequential(nnx.Conv(8, 16, (1, 1), rngs=nnx.Rngs(0)))
    network = basis.with_bases(plain, N, where=everything, rngs=nnx.Rngs(1))
    for layer in basis.basis_layers(network).values():
        layer.remat = remat
    x, coefficients, (graph, state) = jnp.ones((5, 2, 2, 8)), jnp.ones((5, 1, N)), nnx.split(network)

    def apply(x, coefficients):
        network = nnx.merge(graph, state)
        with basis.mixed(network, coefficients):
            return network(x)

    with platforms.paths_for(platform):
        _, gradient = jax.vjp(apply, x, coefficients)
    assert any(residual.size == 5 * 8 * 16 for residual in jax.tree.leaves(gradient)) == kept
