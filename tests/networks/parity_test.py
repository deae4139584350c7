"""The same logits and the same batch statistics as geffnet, a PyTorch implementation, from the same weights."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
geffnet = pytest.importorskip("geffnet", reason="needs the extra `torch`")

import jax
import jax.numpy as jnp
from basisnet_jax.configs import imagenet_condconv_efficientnet_b0
from flax import nnx
from peers import randomized

from basisnet_jax import models, networks
from basisnet_jax.training import import_weights

pytestmark = pytest.mark.slow  # each compiles a full-size network twice

PEERS = {
    "mobilenetv2_100": ("mobilenet_v2", "pytorch"),
    "tf_mobilenetv3_large_100": ("mobilenet_v3_large", "tensorflow"),
    "tf_mobilenetv3_small_100": ("mobilenet_v3_small", "tensorflow"),
    "mobilenetv3_large_100": ("mobilenet_v3_large", "pytorch"),
    "efficientnet_b0": ("efficientnet_b0", "pytorch"),
    "tf_efficientnet_b0": ("efficientnet_b0", "tensorflow"),
    "tf_efficientnet_lite0": ("efficientnet_lite0", "tensorflow"),
}
TRAINED = ("mobilenetv2_100", "tf_mobilenetv3_large_100", "tf_efficientnet_b0")  # also compared in training mode


def peer(name):
    """A peer, all of it drawn with the seed 0."""
    torch.manual_seed(0)
    return randomized(geffnet.create_model(name, pretrained=False), seed=None)


@functools.cache
def abstract(name):
    """Our network for a peer, with shapes in place of arrays."""
    network_name, origin = PEERS[name]
    kwargs = dict(num_classes=1000, momentum=0.9, dropout=0.0, **import_weights.ORIGINS[origin])
    if network_name.startswith("efficientnet"):
        kwargs["drop_connect"] = 0.0
    return nnx.eval_shape(lambda: networks.create(network_name, **kwargs, rngs=nnx.Rngs(0)))


def ours(name, state_dict):
    """Our network with the peer's weights in it."""
    graph = nnx.graphdef(abstract(name))
    params, batch_stats = import_weights.convert(state_dict, abstract(name))
    rest = nnx.state(nnx.Dropout(0.0, rngs=nnx.Rngs(0)), nnx.RngState)
    return nnx.merge(graph, nnx.State(params), nnx.State(batch_stats), nnx.State({"dropout": rest}))


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_batch_statistics(name):
    model = peer(name)
    state_dict = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
    network = ours(name, state_dict)
    images = np.random.default_rng(0).normal(size=(4, 96, 96, 3)).astype(np.float32)
    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    @nnx.jit
    def run(network, images):
        return network(images)

    network.eval()
    with torch.no_grad():
        expected = model.eval()(theirs).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(run(network, jnp.asarray(images)), expected, atol=1e-4)

    if name not in TRAINED:
        return
    # Training mode, at a batch norm whose inputs are the same: the stem's output and its updated statistics ...
    network.train()
    model.train()
    before = network.stem(jnp.asarray(images))
    with torch.no_grad():
        after_norm = model.act1(model.bn1(model.conv_stem(theirs))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(before, after_norm, atol=1e-4)
    np.testing.assert_allclose(network.stem.norm.mean[...], model.bn1.running_mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(network.stem.norm.var[...], model.bn1.running_var.numpy(), rtol=1e-5)

    # ... and of the whole network. (Reset first: the stem has been run once already.)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in state_dict.items()})
    network = ours(name, state_dict)
    network.train()
    with torch.no_grad():
        expected = model.train()(theirs).numpy()
    np.testing.assert_allclose(run(network, jnp.asarray(images)), expected, atol=1e-3 * np.abs(expected).max())
    updated = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    _, expected_stats = import_weights.convert(updated, network)
    stats = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
    compare_trees(stats, expected_stats)


def compare_trees(ours, expected, path=""):
    for key, value in expected.items():
        if isinstance(value, dict):
            compare_trees(ours[key], value, f"{path}/{key}")
        else:
            np.testing.assert_allclose(ours[key], value, rtol=1e-4, atol=1e-4, err_msg=f"{path}/{key}")


@pytest.mark.parametrize(("experts", "parameters"), [(4, 13_314_116), (8, 24_013_284)])
def test_condconv(experts, parameters):
    model = peer(f"tf_efficientnet_cc_b0_{experts}e")
    config = imagenet_condconv_efficientnet_b0.get_config(f"bases={experts}")
    config.dtype = "float32"
    functions = models.functional(models.create(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(functions.params)) == parameters
    state_dict = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    params, batch_stats = import_weights.convert(state_dict, models.create_abstract(config))
    images = np.random.default_rng(0).normal(size=(4, 96, 96, 3)).astype(np.float32)
    with torch.no_grad():  # in double precision: in float32 PyTorch is as far from it as we are
        given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double()
        expected = model.eval().double()(given).numpy()
    outputs = jax.jit(functions.evaluate)(params, batch_stats, jnp.asarray(images))
    assert np.abs(expected).max() > 0.1 and outputs.coefficients.std() > 0.01
    # Eight experts' random kernels add up to logits near 200, off by 1e-3 to 3e-3 as the CPU model rounds.
    np.testing.assert_allclose(outputs.logits, expected, atol=max(1e-4, 3e-5 * np.abs(expected).max()))


@pytest.mark.parametrize("name", ["efficientnet_b1", "efficientnet_b2"])
def test_parameter_shapes_of_the_larger_networks(name):
    theirs = geffnet.create_model(name, pretrained=False).state_dict()
    network = nnx.eval_shape(lambda: networks.create(name, num_classes=1000, rngs=nnx.Rngs(0)))
    # Refuses what is missing, left over or of another shape.
    import_weights.convert({key: tensor.numpy() for key, tensor in theirs.items()}, network)
