"""Networks written with no thought of bases: as specialist, as preview, in training, and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import basisnet_jax as bnj
from basisnet_jax import basis, madds, models

N, CLASSES = 2, 3


class Attends(nnx.Module):
    """A vision transformer of one block, with dropout, told by `deterministic`."""

    def __init__(self, rngs, width=8):
        self.patches = nnx.Conv(3, width, (4, 4), (4, 4), padding="VALID", rngs=rngs)
        self.positions = nnx.Param(0.1 * jax.random.normal(rngs.params(), (4, width)))
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, width, rngs=rngs, decode=False)
        self.mlp = nnx.List([nnx.Linear(width, 2 * width, rngs=rngs), nnx.Linear(2 * width, width, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x, *, deterministic=True, rngs=None):
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.positions[...]
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp[1](nnx.gelu(self.mlp[0](self.norms[1](x))))
        return self.head(self.dropout(x.mean(axis=1), deterministic=deterministic, rngs=rngs))


class Unet(nnx.Module):
    """Down and up again, with batch norm that is told by `training`."""

    def __init__(self, rngs):
        self.down = nnx.Conv(3, 4, (3, 3), 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 3, (2, 2), (2, 2), rngs=rngs)
        self.out = nnx.Conv(6, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x, training=False):
        y = nnx.relu(self.norm(self.down(x), use_running_average=not training))
        y = jnp.concatenate([x, self.up(y)], axis=-1)
        return self.head(nnx.relu(self.out(y)).mean(axis=(1, 2)))


class Recurrent(nnx.Module):
    """Reads the rows of an image one after another."""

    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(24, 6, rngs=rngs))
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x.reshape(*x.shape[:2], -1))[:, -1])


class Wave(nnx.Module):
    """1-D: an image's pixels as one sequence."""

    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(3, 6, (5,), 2, padding="CAUSAL", rngs=rngs), nnx.Conv(6, 6, (3,), rngs=rngs)])
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(x.shape[0], -1, 3)
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(x.mean(axis=1))


# The network, its layers with bases, and by hand the multiply-adds of one image [8, 8, 3] and of mixing its kernels.
ATTENTION = ["attention/key", "attention/out", "attention/query", "attention/value"]
NETWORKS = {
    Attends: ([*ATTENTION, "mlp/0", "mlp/1"], 4 * 48 * 8 + 4 * 4 * 64 + 2 * 4 * 128 + 24, 4 * 64 + 2 * 128),
    Unet: (["down", "out", "up"], 16 * 108 + 16 * 48 + 64 * 216 + 12, 108 + 48 + 216),
    Recurrent: (None, 8 * 4 * (24 * 6 + 36) + 18, 8 * 4 * (24 * 6 + 36) + 18),
    Wave: (["convs/0", "convs/1"], 32 * 90 + 32 * 108 + 18, 90 + 108),
}
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def where(kind):
    return basis.matching("attention/.*|mlp/.*") if kind is Attends else None


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_a_network_of_ones_own(kind):
    names, cost, mixing = NETWORKS[kind]
    specialist = bnj.with_bases(kind(nnx.Rngs(0)), N, where=where(kind))
    found = basis.basis_layers(specialist)
    assert list(found) == names if names else len(found) == 9
    model = bnj.BasisNet(specialist, kind(nnx.Rngs(1)))

    # Counted.
    items = madds.count(model, (8, 8, 3))
    parts = madds.summary(items)
    assert (parts["preview"], parts["specialist"], parts["mixing"]) == (cost, cost, N * mixing)
    params = nnx.state(model, nnx.Param)
    norms = ("bias", "scale", "positions")
    kernels = [leaf for path, leaf in nnx.to_flat_state(params) if path[-1] not in norms]
    assert sum(item.params for item in items) >= sum(leaf.size for leaf in kernels)

    # The specialist that coefficients make is the network itself.
    model.eval()
    outputs = model(IMAGES)
    plain = bnj.synthesize(model.specialist, outputs.coefficients[2])
    assert type(plain) is kind
    np.testing.assert_allclose(plain(IMAGES[2:3])[0], outputs.logits[2], atol=1e-5)

    # Three steps of a training loop.
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    before = jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(nnx.state(model, nnx.BatchStat))

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda model: bnj.loss(model(IMAGES), np.arange(4) % CLASSES))(model)
        optimizer.update(model, gradient)
        return loss

    model.train()
    losses = [float(step(model, optimizer)) for _ in range(3)]
    assert losses[-1] < losses[0]
    after = jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    for old, new in zip(before, after, strict=True):
        moved = [not np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
        assert sum(moved) >= 0.9 * len(moved)  # of parameters all but attention's biases of the keys, of statistics all


@pytest.mark.slow
def test_a_network_is_told_whether_it_trains():
    """By `train()` and `eval()`, by a keyword, by position, and in the functional form that the library trains."""
    model = bnj.BasisNet(bnj.with_bases(Unet(nnx.Rngs(0)), N), Unet(nnx.Rngs(1)))

    def moves(call):
        before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        call()
        after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]

    assert moves(lambda: model(IMAGES)) == [False] * 4
    assert moves(lambda: model(IMAGES, training=True)) == moves(lambda: model(IMAGES, True)) == [True] * 4
    model.train()
    assert moves(lambda: model(IMAGES)) == [True] * 4 and moves(lambda: model(IMAGES, training=False)) == [False] * 4
    model.eval()
    assert moves(lambda: model(IMAGES)) == [False] * 4
    with pytest.raises(TypeError, match="'training' is given by position and by keyword"):
        model(IMAGES, True, training=True)
    with pytest.raises(TypeError, match=r"2 arguments after the first, of which .* \['training'\]"):
        model(IMAGES, True, 1)
    for of in (model, Unet(nnx.Rngs(0))):
        functions = models.functional(of)
        _, stats = functions.train(functions.params, functions.batch_stats, IMAGES, jax.random.key(0))
        assert all(
            not np.array_equal(*pair)
            for pair in zip(*map(jax.tree.leaves, (stats, functions.batch_stats)), strict=True)
        )
        functions.evaluate(functions.params, functions.batch_stats, IMAGES)


@pytest.mark.slow
def test_dropout_of_a_network_that_takes_rngs_follows_the_key():
    model = bnj.BasisNet(bnj.with_bases(Attends(nnx.Rngs(0)), N), Attends(nnx.Rngs(1)))
    for of in (model, Attends(nnx.Rngs(0))):
        functions = models.functional(of)
        one, again, other = (
            functions.train(functions.params, functions.batch_stats, IMAGES, jax.random.key(seed))[0].logits
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(one, again)
        assert not np.array_equal(one, other)
    report = bnj.fit(model, lambda first: iter(lambda: {"image": IMAGES, "label": np.arange(4) % CLASSES}, None), 2)
    assert np.isfinite(report["loss"])


class Counts(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.calls = nnx.Linear(2, 3, rngs=rngs), nnx.Variable(jnp.zeros(()))
        self.table = nnx.Variable(jnp.ones(2))  # never changes, so it may be any variable

    def __call__(self, x):
        if self.counts:
            self.calls[...] += 1
        return self.linear(x * self.table[...])


@pytest.mark.parametrize("counts", [True, False])
def test_state_that_training_would_lose_is_refused(counts):
    network = Counts(nnx.Rngs(0))
    network.counts = counts
    functions = models.functional(network)
    given = functions.params, functions.batch_stats, jnp.ones((4, 2)), jax.random.key(0)
    if counts:
        with pytest.raises(ValueError, match="calls changes in training, but only nnx.BatchStat is kept"):
            jax.eval_shape(functions.train, *given)
    else:
        jax.eval_shape(functions.train, *given)
