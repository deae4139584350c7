"""The count: pinned to the literature, and checked against what XLA counts."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import pytest
from basisnet_jax.configs import imagenet_basisnet_mv3
from flax import nnx

from basisnet_jax import basis, madds, models, networks
from basisnet_jax.ops import platforms

PINNED = {
    "mobilenet_v2": 300_774_272,
    "mobilenet_v3_large": 216_589_760,
    "mobilenet_v3_small": 56_510_400,
    "efficientnet_b0": 385_814_752,
    "efficientnet_b1": 569_651_680,
    "efficientnet_b2": 658_963_440,
    "efficientnet_lite0": 385_187_552,
}


@functools.cache
def abstract(name):
    return nnx.eval_shape(lambda: networks.create(name, num_classes=1000, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", PINNED)
def test_published_counts(name):
    assert madds.total(madds.count(abstract(name), (224, 224, 3))) == PINNED[name]


@pytest.fixture(scope="module")
def paper():
    config = imagenet_basisnet_mv3.get_config()
    return madds.count(models.create_abstract(config), (224, 224, 3))


@pytest.mark.slow
def test_the_headline_of_the_paper(paper):
    assert madds.total(paper) == pytest.approx(289.8e6, abs=0.05e6)
    assert madds.with_early_termination(paper, 0.35) == pytest.approx(198e6, rel=0.005)
    parts = madds.summary(paper)
    assert parts["specialist"] == PINNED["mobilenet_v3_large"]
    assert parts["preview"] == pytest.approx(29.8e6, abs=0.1e6)
    assert parts["mixing"] == pytest.approx(42.6e6, abs=0.05e6)
    assert parts["coefficients"] == 1024 * 46 * 16


def test_items_are_whole(paper):
    model = models.create_abstract(imagenet_basisnet_mv3.get_config())
    assert len({(item.name, item.kind) for item in paper}) == len(paper)
    counted = sum(item.params for item in paper)
    norms = sum(
        module.scale.size + module.bias.size
        for _, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm)
    )
    assert counted + norms == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    mixing = [item for item in paper if item.kind == "mixing"]
    assert len(mixing) == len(basis.basis_layers(model.specialist)) == 46
    assert all(item.params == 0 for item in mixing)


@pytest.mark.parametrize(
    ("overrides", "per_weight"),
    [
        ({}, 3),
        ({"coefficients.top_k": 3}, 3),
        ({"coefficients.top_k": 2}, 2),
        ({"coefficients.top_k": 1}, 0),  # the softmax of one is 1: a kernel is chosen, not computed
        ({"coefficients.top_k": 1, "coefficients.activation": "sigmoid"}, 1),
        ({"coefficients.top_k": 2, "model": "routed", "routing.units": r"stages/\d+/\d+|last/conv|head"}, 2),
    ],
    ids=str,
)
def test_mixing_counts_the_bases_that_are_mixed(tiny, overrides, per_weight):
    model = models.create_abstract(tiny(**overrides))
    mixing = {item.name: item.madds for item in madds.count(model, (16, 16, 1)) if item.kind == "mixing"}
    weights = {name: math.prod(layer.layer.kernel.shape[1:]) for name, layer in basis.basis_layers(model).items()}
    assert mixing == {name: per_weight * size for name, size in weights.items()}


def flops(function, *args):
    return (
        jax.jit(lambda *args: function(*args)).lower(*args).cost_analysis()["flops"]
    )  # a new function: no cached trace


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PINNED if name[-2:] not in ("b1", "b2")])  # they are b0, deeper
def test_against_xla(name, monkeypatch):
    """XLA's FLOPs of the network less those of the same network whose convolutions and matrix products cost nothing.

    XLA leaves out products with padding, which the papers count and we too; at 448x448 they are less than 2 %.
    """
    # The network's own drop-in runs depthwise layers as shifted sums on CPU; XLA shall see convolutions.
    blocks = importlib.import_module("basisnet_jax.networks.blocks")
    monkeypatch.setattr(blocks.conv_lib, "conv_general_dilated", jax.lax.conv_general_dilated)
    network = abstract(name)
    network.eval()
    graph, state = nnx.split(network)
    image = jax.ShapeDtypeStruct((1, 448, 448, 3), jnp.float32)
    ours = madds.total(madds.count(network, image.shape[1:]))

    def run(state, image):
        return nnx.merge(graph, state)(image)

    with_products = flops(run, state, image)
    convolve = nnx.Conv.__call__

    def free_conv(self, x):  # of the right shape, and dependent on x so that nothing before it is dropped
        return jnp.broadcast_to(x[:, :1, :1, :1], jax.eval_shape(lambda x: convolve(self, x), x).shape)

    monkeypatch.setattr(nnx.Conv, "__call__", free_conv)
    monkeypatch.setattr(nnx.Linear, "__call__", lambda self, x: jnp.broadcast_to(x[:, :1], (1, self.out_features)))
    assert (with_products - flops(run, state, image)) / 2 == pytest.approx(ours, rel=0.02)


@pytest.mark.parametrize(("images", "depthwise"), [(1, "folded"), (64, "folded"), (128, "lanes")])
def test_paths_are_those_for_so_many_images(images, depthwise, tiny):
    with platforms.paths_for("tpu"):
        items = madds.count(models.create_abstract(tiny()), (16, 16, 1), images)
    assert [item.path for item in items if item.kind == "depthwise" and item.path] == [depthwise]
    one = madds.count(models.create_abstract(tiny()), (16, 16, 1))
    assert [item._replace(path="") for item in items] == [item._replace(path="") for item in one]
