"""The same logits and the same batch statistics as geffnet, a PyTorch implementation, from the same weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
geffnet = pytest.importorskip("geffnet", reason="needs the extra `torch`")

import jax.numpy as jnp
from flax import nnx

from basisnet_jax import basisnet, cli, networks, train, weights
from basisnet_jax.errors import UserError

PEERS = {
    "mobilenetv2_100": ("mobilenet_v2", "pytorch"),
    "tf_mobilenetv3_large_100": ("mobilenet_v3_large", "tensorflow"),
    "tf_mobilenetv3_small_100": ("mobilenet_v3_small", "tensorflow"),
    "mobilenetv3_large_100": ("mobilenet_v3_large", "pytorch"),
}


def peer(name, seed=0, **kwargs):
    """A randomly initialised peer with random batch statistics, affine parameters and biases."""
    torch.manual_seed(seed)
    model = geffnet.create_model(name, pretrained=False, **kwargs)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(0, 0.1)
    return model


def ours(name, state_dict, momentum=0.9):
    """Our network with the peer's weights in it."""
    network_name, origin = PEERS[name]
    kwargs = dict(num_classes=1000, momentum=momentum, dropout=0.0, **weights.ORIGINS[origin])
    graph = nnx.graphdef(network := nnx.eval_shape(lambda: networks.create(network_name, **kwargs, rngs=nnx.Rngs(0))))
    params, batch_stats = weights.convert(state_dict, network)
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
    _, expected_stats = weights.convert(updated, network)
    stats = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
    compare_trees(stats, expected_stats)


def compare_trees(ours, expected, path=""):
    for key, value in expected.items():
        if isinstance(value, dict):
            compare_trees(ours[key], value, f"{path}/{key}")
        else:
            np.testing.assert_allclose(ours[key], value, rtol=1e-4, atol=1e-4, err_msg=f"{path}/{key}")


def test_import_verb_makes_a_workdir_that_holds_the_weights(tmp_path):
    model = peer("tf_mobilenetv3_small_100", num_classes=10)
    file = tmp_path / "tf_small.pth"
    torch.save(model.state_dict(), file)
    workdir = str(tmp_path / "run")
    argv = ["import", "--network=mobilenet_v3_small", f"--weights={file}", f"--workdir={workdir}"]
    assert cli.main(argv) == 0
    config = train.load_config(workdir)
    assert (config.num_classes, config.channels, config.network.padding) == (10, 3, "same")
    from basisnet_jax import checkpoint

    functions = basisnet.functional(basisnet.create(config))
    like = {"ema_params": functions.params, "ema_batch_stats": functions.batch_stats}
    state = checkpoint.restore(checkpoint.manager(workdir), 0, like)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    logits = functions.evaluate(state["ema_params"], state["ema_batch_stats"], jnp.asarray(images)).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert cli.main(argv) == 2  # nothing is overwritten


def test_what_does_not_fit_is_named(tmp_path):
    state_dict = {key: tensor.numpy() for key, tensor in peer("tf_mobilenetv3_small_100").state_dict().items()}
    network = basisnet.create_abstract(weights.static_config("mobilenet_v3_small", state_dict, "tensorflow"))
    with pytest.raises(UserError, match="conv_head.bias"):
        weights.convert({k: v for k, v in state_dict.items() if k != "conv_head.bias"}, network)
    with pytest.raises(UserError, match="extra.weight"):
        weights.convert(state_dict | {"extra.weight": np.zeros(1)}, network)
    with pytest.raises(UserError, match="expected"):
        weights.convert(state_dict | {"conv_head.bias": np.zeros(3, np.float32)}, network)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(UserError, match="no readable weights file"):
        weights.read(str(broken))
