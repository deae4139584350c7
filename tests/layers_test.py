"""Layers of any kind with bases: their own code, every way of batching, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax import basis, layers

N = 3


class Tenfold(nnx.Conv):
    def __call__(self, x):
        return 10 * super().__call__(x)


class Standardized(nnx.Conv):
    """Reads its kernel itself."""

    def __call__(self, inputs):
        kernel = self.kernel[...]
        kernel = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
        return jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Own(nnx.Module):
    """No subclass of any layer."""

    def __init__(self, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (5, 4)))

    def __call__(self, x, scale=1.0):
        return scale * jnp.tanh(x @ self.kernel[...])


def halved(x, kernel, *args, **kwargs):
    return jax.lax.dot_general(x, kernel / 2, *args, **kwargs)


def conv_halved(x, kernel, *args, **kwargs):
    return jax.lax.conv_general_dilated(x, kernel / 2, *args, **kwargs)


IMAGES, ROWS = (4, 6, 7, 5), (4, 6, 5)
R = nnx.Rngs(0)
KINDS = {  # a layer with 5 input features, and the shape that it reads
    "subclass": (lambda: Tenfold(5, 4, (3, 3), rngs=R), IMAGES),
    "standardized": (lambda: Standardized(5, 4, (3, 3), rngs=R), IMAGES),
    "own": (lambda: Own(R), ROWS),
    "lora": (lambda: nnx.LoRALinear(5, 4, lora_rank=2, b_initializer=nnx.initializers.normal(), rngs=R), ROWS),
    "dot_general": (lambda: nnx.Linear(5, 4, dot_general=halved, rngs=R), ROWS),
    "conv_general_dilated": (lambda: nnx.Conv(5, 4, (3,), conv_general_dilated=conv_halved, rngs=R), ROWS),
    "precision": (lambda: nnx.Linear(5, 4, precision="highest", rngs=R), ROWS),
    "circular": (lambda: nnx.Conv(5, 4, (3, 4), (1, 2), padding="CIRCULAR", rngs=R), IMAGES),
    "reflect": (lambda: nnx.Conv(5, 4, (4, 3), padding="REFLECT", kernel_dilation=2, rngs=R), (4, 9, 9, 5)),
    "causal": (lambda: nnx.Conv(5, 4, (3,), padding="CAUSAL", kernel_dilation=2, rngs=R), ROWS),
    "mask": (lambda: nnx.Conv(5, 4, (3,), mask=jnp.tril(jnp.ones((3, 5, 4))), rngs=R), ROWS),
    "input dilation": (lambda: nnx.Conv(5, 4, (3, 3), input_dilation=2, padding=1, rngs=R), IMAGES),
    "transposed": (lambda: nnx.ConvTranspose(5, 4, (3, 3), (2, 2), rngs=R), IMAGES),
    "transposed circular": (lambda: nnx.ConvTranspose(5, 4, (4,), 2, padding="CIRCULAR", rngs=R), ROWS),
    "general": (lambda: nnx.LinearGeneral((6, 5), (2, 4), axis=(-2, -1), rngs=R), IMAGES[:1] + (7, 6, 5)),
    "general axis": (lambda: nnx.LinearGeneral((6, 5), 4, axis=(1, -1), rngs=R), IMAGES),
    "einsum": (lambda: nnx.Einsum("nta,hab->nthb", (2, 5, 4), (2, 4), rngs=R), ROWS),
    "einsum with dots": (lambda: nnx.Einsum("...a,ab->...b", (5, 4), rngs=R), IMAGES),
}


def with_bases(layer, n=N):
    return basis.with_bases(nnx.List([layer]), n, where=basis.everything, init=basis.independent)[0]


def run(layer, coefficients, x, *args, **kwargs):
    with basis.mixed(layer, coefficients[:, None]):
        return layer(x, *args, **kwargs)


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


COEFFICIENTS = jax.nn.softmax(3 * normal(1, (4, N)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_it_does_with_each_kernel(kind):
    make, shape = KINDS[kind]
    layer, x = with_bases(make()), normal(0, shape)
    y = run(layer, COEFFICIENTS, x)
    for b in (0, 3):
        plain = basis.synthesize(layer, COEFFICIENTS[b][None])
        assert type(plain) is type(layer.layer)
        np.testing.assert_allclose(y[b], plain(x[b : b + 1])[0], rtol=1e-4, atol=1e-4)
    # One-hot: the plain layer with that basis's kernel, on the whole batch.
    plain = nnx.clone(layer.layer)
    plain.kernel = nnx.Param(layer.kernel[1])
    np.testing.assert_allclose(run(layer, jnp.eye(N)[jnp.full(4, 1)], x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["subclass", "lora", "mask", "einsum"])
def test_gradients_reach_all_bases(kind):
    make, shape = KINDS[kind]
    layer, x = with_bases(make()), normal(0, shape)
    (graph, state), targets = nnx.split(layer), normal(2, run(layer, COEFFICIENTS, x).shape)

    def together(state, coefficients):
        return jnp.sum(run(nnx.merge(graph, state, copy=True), coefficients, x) * targets)

    def one_by_one(state, coefficients):
        plain = [basis.synthesize(nnx.merge(graph, state, copy=True), row[None]) for row in coefficients]
        return jnp.sum(jnp.concatenate([plain[b](x[b : b + 1]) for b in range(4)]) * targets)

    of = [jax.jit(jax.grad(f, (0, 1)))(state, COEFFICIENTS) for f in (together, one_by_one)]
    for ours, expected in zip(*map(jax.tree.leaves, of), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3 * float(jnp.abs(expected).max()))
    (gradient,) = jax.tree.leaves(of[0][0]["layer"]["kernel"])
    assert jnp.abs(gradient).reshape(N, -1).max(axis=1).min() > 0


# How it is called.


def test_a_layer_with_bases_is_a_drop_in():
    plain = nnx.Conv(5, 4, (3, 3), (2, 1), rngs=nnx.Rngs(0), kernel_metadata={"note": "mine"})
    layer, x = with_bases(plain), normal(0, IMAGES)
    for name in ("in_features", "out_features", "kernel_size", "strides", "padding", "use_bias", "dtype"):
        assert getattr(layer, name) == getattr(plain, name)
    assert layer.kernel.shape == (N, *plain.kernel.shape) and layer.kernel.get_metadata()["note"] == "mine"
    assert basis.synthesize(layer, COEFFICIENTS[:1]).kernel.get_metadata()["note"] == "mine"
    np.testing.assert_array_equal(layer.bias[...], plain.bias[...])
    y = run(layer, COEFFICIENTS, x)
    with basis.mixed(layer, COEFFICIENTS[:, None]):
        np.testing.assert_array_equal(layer(inputs=x), y)
        np.testing.assert_array_equal(layer(x, out_sharding=None), y)
        assert (layer.kernel.shape, layer.kernel.ndim, layer.kernel.dtype) == (plain.kernel.shape, 4, jnp.float32)
        for read in (lambda: layer.kernel[...], lambda: layer.kernel[0] * 2):
            with pytest.raises(ValueError, match="^0: the network reads the kernel"):
                read()
        with pytest.raises(ValueError, match="^0: out_sharding=P"):
            layer(x, out_sharding=jax.sharding.PartitionSpec())
    with pytest.raises(AttributeError):
        layer.bias = None
    with pytest.raises(AttributeError, match="'Conv' object has no attribute 'kernel_sizes'"):
        _ = layer.kernel_sizes
    own = with_bases(Own(nnx.Rngs(0)))
    once = run(own, COEFFICIENTS, normal(0, ROWS))
    np.testing.assert_allclose(run(own, COEFFICIENTS, scale=2.0, x=normal(0, ROWS)), 2 * once, rtol=1e-5)
    with pytest.raises(ValueError, match="^0: called with more than one array"):
        run(own, COEFFICIENTS, normal(0, ROWS), jnp.ones(4))


def test_the_axis_of_metadata_grows_with_the_kernel():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        plain = nnx.Linear(5, 4, rngs=nnx.Rngs(0), kernel_metadata={"out_sharding": (None, "model")})
        layer = with_bases(plain)
        assert layer.kernel.get_metadata()["out_sharding"] == (None, None, "model")
        again = basis.synthesize(layer, COEFFICIENTS[:1]).kernel
        assert again.get_metadata() == plain.kernel.get_metadata() and again.shape == (5, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "linear", "subclass", "general"])
def test_more_axes_and_rows_before_an_examples_own(kind):
    """Video [B, T, H, W, C], windows [B * P, H, W, C], and both at once."""
    kinds = {
        "conv": (lambda: nnx.Conv(5, 4, (3, 3), rngs=R), IMAGES),
        "linear": (lambda: nnx.Linear(5, 4, rngs=R), ROWS),
    }
    make, shape = {**KINDS, **kinds}[kind]
    layer, own = with_bases(make()), shape[1:]
    for batch in ((8,), (4, 3), (12, 2)):
        if kind == "general":
            batch = batch[:1]
        x = normal(0, (*batch, *own))
        y = run(layer, COEFFICIENTS, x)
        rows = batch[0] // 4
        for b in (0, 2):
            plain, here = basis.synthesize(layer, COEFFICIENTS[b][None]), slice(b * rows, (b + 1) * rows)
            np.testing.assert_allclose(y[here], plain(x[here]), rtol=1e-4, atol=1e-4)
    # One example alone, also without a batch.
    plain, x = basis.synthesize(layer, COEFFICIENTS[:1]), normal(0, own)
    if kind == "conv":
        np.testing.assert_allclose(run(layer, COEFFICIENTS[:1], x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["conv", "dense", "transposed"])
def test_vmap_over_the_examples(kind):
    kinds = {
        "conv": (lambda: nnx.Conv(5, 4, (3, 3), rngs=R), IMAGES),
        "dense": (lambda: nnx.Linear(5, 4, rngs=R), ROWS),
    }
    make, shape = {**KINDS, **kinds}[kind]
    layer, x = with_bases(make()), normal(0, shape)
    (graph, state), weights = nnx.split(layer), normal(2, run(layer, COEFFICIENTS, x).shape)

    def loss(state, call):
        layer = nnx.merge(graph, state, copy=True)
        with basis.mixed(layer, COEFFICIENTS[:, None]):
            return jnp.sum(call(layer)(x) * weights)

    vmapped, batched = (
        jax.jit(jax.value_and_grad(lambda state, call=call: loss(state, call)))(state)
        for call in (jax.vmap, lambda f: f)
    )
    for ours, expected in zip(*map(jax.tree.leaves, (vmapped, batched)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    with basis.mixed(layer, COEFFICIENTS[:, None]):  # which does not show inside what is traced on its own
        y = jax.vmap(jax.checkpoint(lambda x: layer(x)))(x)
    np.testing.assert_allclose(y, run(layer, COEFFICIENTS, x), rtol=1e-4, atol=1e-4)
    # Over another axis each call sees the batch.
    more = normal(3, (3, *shape))
    with basis.mixed(layer, COEFFICIENTS[:, None]):
        y = jax.vmap(layer)(more)
    np.testing.assert_allclose(y[1], run(layer, COEFFICIENTS, more[1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["conv", "subclass", "dense"])
def test_the_batch_may_be_a_symbol_as_in_exports(kind):
    make, shape = {
        **KINDS,
        "conv": (lambda: nnx.Conv(5, 4, (3, 3), rngs=R), IMAGES),
        "dense": (lambda: nnx.Linear(5, 4, rngs=R), ROWS),
    }[kind]
    layer = with_bases(make())
    for rows in ("b", "2*b"):
        sizes = jax.export.symbolic_shape(f"b, {rows}")
        specs = jax.ShapeDtypeStruct((sizes[0], N), "float32"), jax.ShapeDtypeStruct((sizes[1], *shape[1:]), "float32")
        exported = jax.export.export(jax.jit(lambda coefficients, x: run(nnx.clone(layer), coefficients, x)))(*specs)
        x = normal(0, (4 * (1 + (rows != "b")), *shape[1:]))
        np.testing.assert_allclose(exported.call(COEFFICIENTS, x), run(layer, COEFFICIENTS, x), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_told_apart_is_refused():
    conv, linear = (
        with_bases(make()) for make in (lambda: nnx.Conv(5, 4, (3, 3), rngs=R), lambda: nnx.Linear(5, 4, rngs=R))
    )
    for call, shape, words in (
        (lambda x: run(conv, COEFFICIENTS, x), (5, 6, 7, 5), "coefficients of 4 examples for a batch of 5"),
        (lambda x: run(conv, COEFFICIENTS, x), (2, 6, 7, 5), "coefficients of 4 examples for a batch of 2"),
        (lambda x: run(conv, COEFFICIENTS, x), (4, 7, 5), r"\(4, 7, 5\), no batch"),
        (lambda x: run(linear, COEFFICIENTS, x), (8, 4, 5), "which axis of .8, 4, 5. is that of the 4 examples"),
    ):
        with pytest.raises(ValueError, match=f"^0: .*{words}"):
            call(jnp.zeros(shape))
    for inside in (linear, jax.jit(lambda x: linear(x)), jax.checkpoint(lambda x: linear(x))):
        with basis.mixed(linear, COEFFICIENTS[:, None]), pytest.raises(ValueError, match="which axis"):
            jax.vmap(inside)(jnp.zeros((4, 8, 5)))  # 8 tokens, or 2 rows for each example?


@pytest.mark.slow
def test_cells_of_recurrent_networks():
    class Recurrent(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.LSTMCell(5, 6, rngs=rngs))

        def __call__(self, x):
            return self.rnn(x)[:, -1]

    network = basis.with_bases(Recurrent(nnx.Rngs(0)), N)  # no convolution: every layer with a kernel
    assert len(basis.basis_layers(network)) == 8
    coefficients, x = jax.nn.softmax(normal(1, (4, 8, N))), normal(0, (4, 7, 5))
    with basis.mixed(network, coefficients):
        y = network(x)
    for b in range(4):
        np.testing.assert_allclose(y[b], basis.synthesize(network, coefficients[b])(x[b : b + 1])[0], atol=1e-5)


# What is refused, or said.


class Normalizes(nnx.Linear):
    """Statistics of its own that move."""

    def __init__(self, *args, rngs):
        super().__init__(*args, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(super().__call__(x))


class Drops(nnx.Linear):
    def __init__(self, *args, rngs):
        super().__init__(*args, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(super().__call__(x))


@nnx.vmap
def stacked(key):
    return nnx.Conv(5, 5, (3,), rngs=nnx.Rngs(params=key))


class Holds(nnx.Module):
    def __init__(self, inner):
        self.inner = inner


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: stacked(jax.random.split(jax.random.key(0), 2)), r"a kernel of \(2, 3, 5, 5\), expected \(3, 5, 5\)"),
        (lambda: nnx.LinearGeneral(5, 4, batch_axis={0: 4}, rngs=R), "a kernel along the batch"),
        (lambda: nnx.Einsum("nta,ab->tnb", (5, 4), rngs=R), "does not keep the batch as first axis"),
        (lambda: nnx.WeightNorm(nnx.Linear(5, 4, rngs=R), rngs=R), "layer_instance: WeightNorm around it"),
        (lambda: nnx.SpectralNorm(nnx.Linear(5, 4, rngs=R), rngs=R), "layer_instance: SpectralNorm around it"),
    ],
)
def test_layers_that_cannot_have_bases_are_refused_when_made(layer, words):
    network = Holds(layer())
    with pytest.raises(ValueError, match=f"^inner.*{words}.*leave it out by where="):
        basis.with_bases(network, N, where=basis.everything)


def test_code_that_changes_what_examples_share_is_refused():
    for kind, changed in ((Normalizes, "norm/mean"), (Drops, "dropout/rngs/count")):
        layer = with_bases(kind(5, 4, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match=f"^0: its call changes {changed}"):
            run(layer, COEFFICIENTS, normal(0, ROWS))
        layer.eval()
        assert run(layer, COEFFICIENTS, normal(0, ROWS)).shape == (4, 6, 4)


def test_mistakes_are_refused_at_once():
    network = nnx.List([nnx.Linear(5, 4, rngs=R)])
    bases = basis.with_bases(network, 4)
    for where in (None, basis.matching("0"), lambda path, layer: isinstance(layer, nnx.Linear)):
        with pytest.raises(ValueError, match="^0: has bases already"):
            basis.with_bases(bases, 4, where=where)
    with pytest.raises(ValueError, match=r"coefficients of 5 bases, shape \(2, 1, 5\), for layers of 4 bases"):
        run(bases, jnp.ones((2, 5)), jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="coefficients of 5 bases"):
        basis.synthesize(bases, jnp.ones((1, 5)))


def test_chosen_modules_that_cannot_have_bases_are_named_once():
    class Network(nnx.Module):
        def __init__(self):
            self.embed, self.norm = nnx.Embed(7, 5, rngs=R), nnx.LayerNorm(5, rngs=R)
            self.attention = nnx.MultiHeadAttention(2, 4, 8, rngs=R, decode=False)

    with pytest.warns(UserWarning, match="so shared as before: embed$") as said:
        network = basis.with_bases(Network(), N, where=lambda path, layer: True)
    assert len(said) == 1
    assert list(basis.basis_layers(network)) == [f"attention/{name}" for name in ("key", "out", "query", "value")]


def test_layers_that_share_a_kernel_go_on_sharing():
    one, two = nnx.Linear(5, 5, rngs=R), nnx.Linear(5, 5, rngs=R)
    two.kernel = one.kernel
    bases = basis.with_bases(nnx.List([one, two]), N)
    assert bases[0].kernel is bases[1].kernel
    with pytest.raises(ValueError, match="inside it has bases too"):
        holder = Own(nnx.Rngs(0))
        holder.inner = nnx.Linear(5, 5, rngs=R)
        basis.with_bases(nnx.List([holder]), N)


def test_plain_layers_keep_their_paths():
    kinds = {
        type(with_bases(make())): make
        for make in (lambda: nnx.Conv(5, 4, (3,), rngs=R), lambda: nnx.Linear(5, 4, rngs=R))
    }
    assert set(kinds) == {layers.BasisConv, layers.BasisLinear}
    for kind in ("circular", "reflect", "causal", "mask"):
        assert type(with_bases(KINDS[kind][0]())) is layers.BasisConv
