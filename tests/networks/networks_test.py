"""The plain networks: sizes, strides, channels, types, and what they must refuse."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from basisnet_jax import basisnet, networks
from basisnet_jax.errors import UserError
from basisnet_jax.networks import blocks

PARAMETERS = {
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_lite0": 4_652_008,
}


def abstract(name, **kwargs):
    kwargs = {"num_classes": 1000, **kwargs}
    return nnx.eval_shape(lambda: networks.create(name, **kwargs, rngs=nnx.Rngs(0)))


def test_every_network_has_its_count_pinned():
    assert set(PARAMETERS) == set(networks.NETWORKS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    params = nnx.state(abstract(name), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


@pytest.mark.slow
# B1 and B2 are left out: B0 with more rows.
@pytest.mark.parametrize("name", sorted(PARAMETERS.keys() - {"efficientnet_b1", "efficientnet_b2"}))
def test_small_images_other_channels_and_widths(name):
    strides = {"mobilenet_v3_large": (1, 2, 2, 2, 1, 1), "mobilenet_v3_small": (2, 2, 2, 1, 1)}
    strides = strides.get(name, (1, 2, 2, 2, 1, 1, 1))
    network = abstract(name, num_classes=7, channels=1, width=0.35, stem_stride=1, stage_strides=strides)
    last = {}

    def run(network, x):
        last["shape"] = blocks.run_stages(network.stages, network.stem(x)).shape
        return network(x)

    logits = nnx.eval_shape(run, network, jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32))
    assert logits.shape == (2, 7)
    assert last["shape"][1:3] == (4, 4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_params():
    network = abstract("mobilenet_v3_small", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network, nnx.Param, nnx.BatchStat))} == {
        jnp.dtype("float32")
    }
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert nnx.eval_shape(lambda network, x: network(x), network, image).dtype == jnp.bfloat16


def test_lite0_keeps_its_stem_at_every_width():
    for name, stem in (("efficientnet_b0", 16), ("efficientnet_lite0", 32)):
        network = abstract(name, width=0.5)
        assert (network.stem.conv.out_features, network.stages[1][0].out_features) == (stem, 16)
        assert network.head.conv.out_features == 1280


def test_drop_connect_grows_linearly_over_the_residual_blocks():
    network = abstract("efficientnet_b0", drop_connect=0.32)
    flat = [block for stage in network.stages for block in stage]
    rates = [block.drop.rate if block.drop is not None else None for block in flat]
    assert rates == [pytest.approx(0.02 * i) if block.residual else None for i, block in enumerate(flat)]
    assert sum(block.residual for block in flat) == 9
    default = abstract("efficientnet_b0", drop_connect=None)
    assert default.stages[5][3].drop.rate == pytest.approx(0.2 * 14 / 16)  # the paper's 0.2


@pytest.mark.slow
def test_drop_connect_drops_whole_examples_in_training_only():
    def built(rate):
        conv, norm = blocks.conv_and_norm(padding="same", epsilon=1e-3, momentum=0.9, dtype=None, rngs=nnx.Rngs(0))
        return blocks.InvertedResidual(8, blocks.Block(3, 1, 8, drop_connect=rate), 1.0, conv, norm, nnx.Rngs(5))

    x = jax.random.normal(jax.random.key(0), (64, 4, 4, 8))
    block = built(0.25)
    branch = built(0.0)(x) - x
    dropped_or_scaled = block(x) - x
    dropped = jnp.all(dropped_or_scaled == 0, axis=(1, 2, 3))
    assert 4 <= dropped.sum() <= 30
    kept = jnp.where(dropped[:, None, None, None], 0, branch / 0.75)
    assert jnp.allclose(dropped_or_scaled, kept, atol=1e-5)
    assert not jnp.array_equal(block(x) - x, dropped_or_scaled)  # drawn anew at every step ...
    assert jnp.array_equal(built(0.25)(x) - x, dropped_or_scaled)  # ... from the rngs
    evaluated, plain = built(0.25), built(0.0)
    evaluated.eval()
    plain.eval()
    assert jnp.array_equal(evaluated(x), plain(x))


@pytest.mark.parametrize(("channels", "rounded"), [(1, 8), (12, 16), (88.08, 88), (18.9, 24), (20, 24)])
def test_make_divisible(channels, rounded):
    assert blocks.make_divisible(channels) == rounded


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"name": "mobilenet_v9"}, "mobilenet_v9"),
        ({"name": "mobilenet_v2", "stage_strides": (1, 2)}, "expected 7"),
        ({"name": "mobilenet_v2", "padding": "valid"}, "symmetric"),
        ({"name": "mobilenet_v2", "dilation": 2}, "'mobilenet_v2' has no argument 'dilation'"),
    ],
)
def test_mistakes_are_named(kwargs, words):
    with pytest.raises(UserError, match=words):
        networks.create(**kwargs, num_classes=10, rngs=nnx.Rngs(0))


def test_resize_keeps_an_image_of_the_right_size():
    x = jnp.ones((1, 8, 8, 3))
    assert basisnet.resize(x, 8) is x
    assert basisnet.resize(x, 4).shape == (1, 4, 4, 3)
