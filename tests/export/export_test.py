"""Exports: every format, run as its user would run it, answers as JAX does, and keeps the two stages apart."""

import importlib
import importlib.util
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import basisnet_jax
from basisnet_jax import basis, cli, early_exit, export, models, preprocess
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError
from basisnet_jax.export import onnx, stages, verify
from basisnet_jax.export.stages import folded as fold
from basisnet_jax.networks import batch_norm
from basisnet_jax.training import initial_weights
from basisnet_jax.workdir import runs

OPTIONAL = ("tflite", "onnx") if importlib.util.find_spec("onnxruntime") else ()
needs_extra = pytest.mark.skipif(not OPTIONAL, reason="these formats need the extra export")
FORMATS = [
    pytest.param("tflite", marks=needs_extra),
    pytest.param("onnx", marks=needs_extra),
    "saved_model",
    "stablehlo",
    "safetensors",
]
STEP = 3  # of the fixture `make_run`


@pytest.fixture(scope="module")
def config(tiny, data_dir):
    return tiny(data_dir=data_dir)


@pytest.fixture(scope="module")
def images(config):
    return next(pipeline.open(config).eval_batches("test"))["image"][:24]


@pytest.fixture(scope="module")
def workdir(make_run, config, tmp_path_factory):
    """A run that stops half of its images."""
    path = make_run(config, tmp_path_factory.mktemp("basisnet"))
    set_rule(path, next(pipeline.open(config).eval_batches("validation"))["image"])
    return path


def answers(run, images):
    return jax.jit(run.functions.evaluate)(run.params, run.batch_stats, run.preprocess.normalize(images))


def set_rule(workdir, images, **rule):
    """Makes the threshold that at which half of these images stop."""
    run, rule = runs.load(workdir), early_exit.Rule(**rule)
    outputs = answers(run, images)
    rule = rule._replace(threshold=float(np.median(rule.confidence(outputs.preview_logits))))
    report = {"step": STEP, "early_termination": rule._asdict()}
    pathlib.Path(workdir, "evaluation.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """`exported(format, *flags)`: the folder of an export, each made once."""
    folders = {}

    def make(*flags):
        if flags not in folders:
            folder = tmp_path_factory.mktemp("export") / "new"
            assert cli.main(["export", f"--workdir={workdir}", f"--output={folder}", *flags]) == 0
            folders[flags] = folder
        return folders[flags]

    return make


def manifest_of(folder):
    return json.loads((folder / "model.json").read_text())


@pytest.fixture(scope="module")
def files(images, tmp_path_factory):
    """The images as files."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def predict(capsys):
    def run(*argv, code=0):
        capsys.readouterr()  # what was printed on the way
        assert cli.main(["predict", "--json", *map(str, argv)]) == code
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_answers_as_jax_does(format, exported, workdir, files, predict):
    expected, _ = predict(f"--workdir={workdir}", files)
    rows, _ = predict(f"--export={exported(f'--format={format}')}", files)
    assert len({row["label"] for row in expected}) > 2 and len({row["stage"] for row in expected}) == 2
    for row, like in zip(rows, expected, strict=True):
        assert row | {"confidence": 0} == like | {"confidence": 0}
        assert row["confidence"] == pytest.approx(like["confidence"], rel=1e-3)
    stops, _ = predict(f"--export={exported(f'--format={format}')}", "--threshold=0", files)
    assert {row["stage"] for row in stops} == {"preview"}


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Explicitly requested dtype:UserWarning")  # by jax2onnx, of which a user sees nothing
@pytest.mark.parametrize("rule", [{"criterion": "margin", "temperature": 1.5}, {"criterion": "entropy"}])
def test_other_criteria_and_paddings(rule, make_run, tiny, files, images, tmp_path, predict):
    symmetric = {"network.padding": "symmetric", "preview.padding": "symmetric", "coefficients.shared": True}
    workdir = make_run(tiny(**symmetric), tmp_path / "run")
    set_rule(workdir, images[:-1], **rule)
    expected, _ = predict(f"--workdir={workdir}", files)
    assert len({row["stage"] for row in expected}) == 2
    for format in ("saved_model", "stablehlo", *OPTIONAL):
        flags = [f"--workdir={workdir}", f"--format={format}", f"--output={tmp_path / format}", f"--images={files}"]
        assert cli.main(["export", *flags]) == 0
        rows, _ = predict(f"--export={tmp_path / format}", files)
        for row, like in zip(rows, expected, strict=True):
            assert row | {"confidence": 0} == like | {"confidence": 0}
            assert row["confidence"] == pytest.approx(like["confidence"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_what_model_json_says(format, exported, workdir, config):
    manifest = manifest_of(exported(f"--format={format}"))
    report = json.loads(pathlib.Path(workdir, "evaluation.json").read_text())
    assert manifest["early_exit"]["threshold"] == report["early_termination"]["threshold"]
    assert manifest["classes"] == [str(label) for label in range(10)]
    assert manifest["preprocessing"] == {"image_size": 16, "channels": 1, "resize": config.resize, "eval_crop": 1.0}
    assert list(manifest["stages"]) == ["preview", "specialist"]
    assert manifest["stages"]["specialist"]["inputs"]["images"] == {"shape": [16, 16, 1], "dtype": "uint8"}
    found = manifest["verification"]
    assert found["num_images"] == 360 and 0.3 < found["stopped"] < 0.7
    assert found["same_labels"] >= 359 and abs(found["top1"] - found["top1_jax"]) <= 1 / 360 + 1e-9
    assert all(0 <= difference < 1e-4 for difference in found["largest_difference"].values())
    assert all(time > 0 for time in found["latency_ms"].values()) and sum(found["bytes"].values()) > 10_000


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot keep threads on a core")
def test_latencies_are_of_one_core():
    cores, allowed = os.sched_getaffinity(0), []
    verify.latencies({"network": lambda image: allowed.append(os.sched_getaffinity(0))}, {}, np.zeros(1))
    assert all(len(some) == 1 for some in allowed) and len(allowed) == verify.CALLS
    assert os.sched_getaffinity(0) == cores


@pytest.fixture(scope="module")
def large(make_run, tiny, data_dir, tmp_path_factory):
    """A run of a larger network."""
    more = {"basis.num_bases": 34, "preview.head_features": 512, "network.head_features": 512}
    return make_run(tiny(data_dir=data_dir, **more), tmp_path_factory.mktemp("large"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.slow
def test_no_weight_is_stored_twice(format, workdir, large, exported, tmp_path):
    """A file grows by four bytes for each further parameter of either stage."""
    flags = [f"--workdir={large}", f"--format={format}", "--threshold=0.5", f"--output={tmp_path / 'new'}"]
    assert cli.main(["export", *flags]) == 0
    folders = tmp_path / "new", exported(f"--format={format}")
    more, less = (sum(manifest_of(folder)["verification"]["bytes"].values()) for folder in folders)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(runs.load(path).params)) for path in (large, workdir)]
    assert 4 * (counts[0] - counts[1]) == pytest.approx(more - less, rel=0.03)


@needs_extra
@pytest.mark.slow
def test_smaller_weights_cost_accuracy_that_is_measured(make_run, tiny, data_dir, tmp_path, capsys):
    """With few bases too, and the sizes of all precisions are told."""
    more = {"basis.num_bases": 4, "network.head_features": 512}
    workdir = make_run(tiny(data_dir=data_dir, **more), tmp_path / "run")
    found = {}
    for precision in ("float32", "float16", "int8"):
        flags = [f"--precision={precision}", "--threshold=0.5", f"--output={tmp_path / precision}"]
        assert cli.main(["export", f"--workdir={workdir}", "--format=tflite", *flags]) == 0
        printed = capsys.readouterr().out
        assert "the median of 20 calls on one core" in printed
        manifest = manifest_of(tmp_path / precision)
        assert manifest["precision"] == precision and 0 < manifest["verification"]["top1"] < 1
        found[precision] = manifest["verification"]
        computed = manifest["weight_bytes"]
        assert all(f"{name} {size / 2**20:.2f} MiB" in printed for name, size in computed.items())
        assert list(computed) == ["float32", "float16", "int8"]
    sizes, differences = (
        [of(verification) for verification in found.values()]
        for of in (lambda v: v["bytes"]["model.tflite"], lambda v: max(v["largest_difference"].values()))
    )
    # What is no weight, the graph, is the same in all files, but for the scales.
    graph = [size - weights for size, weights in zip(sizes, computed.values(), strict=True)]
    assert np.ptp(graph) < 0.1 * computed["float16"]
    assert differences[0] < 1e-4 < differences[1] < 1e-2 and differences[1] < differences[2] < 0.2


@pytest.mark.slow
def test_bases_that_are_stored_for_one_scale_are_the_same(config, images):
    """Each output channel has the largest magnitude 1, of which int8 is a fixed fraction."""
    model, seen, rule = models.create(config), preprocess.of(config), early_exit.Rule()
    model.eval()
    plain, scaled = (stages.of(model, seen, rule, "hwio", one_scale=one) for one in (False, True))
    outputs = plain[0](images[:1])
    for one, other in zip(plain, scaled, strict=True):
        given = [images[:1], outputs["coefficients"]][: len(one.inputs)]
        np.testing.assert_allclose(one(*given)["logits"], other(*given)["logits"], rtol=1e-4, atol=1e-5)
    layer = next(iter(basis.basis_layers(model).values()))
    kernels = np.array(layer.layer.kernel[...])
    kernels[..., 0] *= 100  # as of a batch norm that is folded
    layer.layer.kernel.set_value(kernels)
    mixed = stages.MixedConv(layer, "hwio", True)
    stored = np.asarray(mixed.layer.kernel[...]).reshape(kernels.shape)
    np.testing.assert_allclose(np.abs(stored).max(axis=(0, 1, 2, 3)), 1, rtol=1e-6)
    rounded = np.round(stored * 127) / 127 * np.asarray(mixed.scale[...])
    np.testing.assert_allclose(rounded[..., 1:], kernels[..., 1:], atol=0.51 / 127 * np.abs(kernels[..., 1:]).max())


@needs_extra
@pytest.mark.slow
def test_the_onnx_model_skips_the_specialist(exported, images, tmp_path):
    """By onnxruntime's own profile of what ran."""
    import onnxruntime

    folder = exported("--format=onnx")
    apart = export.load(str(folder)).functions
    for threshold, stopped in ((0.0, True), (1.1, False)):
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / f"{stopped}")
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        feed = {"images": images[:1], "threshold": np.float32([threshold])}
        logits, says = session.run(["logits", "stopped"], feed)
        assert says == [stopped]
        preview = apart["preview"](images[:1])
        final = preview if stopped else apart["specialist"](images[:1], preview["coefficients"])
        np.testing.assert_allclose(logits, final["logits"], rtol=1e-4, atol=1e-5)
        events = json.loads(pathlib.Path(session.end_profiling()).read_text())
        ran = [event["name"] for event in events if event["name"].startswith("specialist/")]
        assert bool(ran) != stopped
    [stated] = {entry.version for entry in _onnx(folder).opset_import if not entry.domain}
    assert stated == onnx.OPSET == manifest_of(folder)["opset"]


def _onnx(folder):
    import onnx as library

    return library.load(folder / "model.onnx", load_external_data=False)


@pytest.mark.parametrize("format", ["saved_model", "stablehlo", "safetensors"])
def test_any_number_of_images(format, exported, images):
    functions = export.load(str(exported(f"--format={format}"))).functions
    together = functions["preview"](images[:5])
    for i in range(5):
        alone = functions["preview"](images[i : i + 1])
        np.testing.assert_allclose(together["logits"][i], alone["logits"][0], rtol=1e-4, atol=1e-4)
    final = functions["specialist"](images[:5], np.asarray(together["coefficients"]))
    assert final["logits"].shape == (5, 10)


@pytest.mark.slow
def test_safetensors_load_back_as_the_model(exported, workdir, images):
    folder = exported("--format=safetensors")
    model, run = basisnet_jax.load(str(folder)), runs.load(workdir)
    found = nnx.jit(lambda model, images: model(run.preprocess.normalize(images)).logits)(model, images)
    np.testing.assert_allclose(found, answers(run, images).logits, rtol=1e-5, atol=1e-5)  # as XLA fuses them
    arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    assert "params/preview/classifier/kernel" in arrays


@pytest.mark.parametrize("model", ["static", "routed", "routed by layer"])
@pytest.mark.slow
def test_models_of_one_stage(model, make_run, tiny, data_dir, files, tmp_path, predict):
    layers = r"stages/.*/(expand|depthwise|project)/conv"
    config = tiny(**{"data_dir": data_dir, "model": model.split()[0], "basis.layers": layers})
    if model == "routed by layer":
        config.routing.units = layers
    workdir = make_run(config, tmp_path / "run")
    expected, _ = predict(f"--workdir={workdir}", files)
    for format in ("stablehlo", *OPTIONAL):
        flags = [f"--workdir={workdir}", f"--format={format}", f"--output={tmp_path / format}", f"--images={files}"]
        assert cli.main(["export", *flags]) == 0
        rows, _ = predict(f"--export={tmp_path / format}", files)
        assert [row | {"confidence": 0} for row in rows] == [row | {"confidence": 0} for row in expected]
        assert manifest_of(tmp_path / format)["verification"]["top1"] is None  # these images have no labels


@pytest.mark.slow
def test_folding_batch_norm_changes_nothing(config, images):
    model = models.create(config)
    model.eval()
    random = np.random.default_rng(0)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, batch_norm.BatchNorm):
            for variable, low in ((module.mean, -0.5), (module.var, 0.5), (module.scale, 0.5), (module.bias, -0.5)):
                variable.set_value(random.uniform(low, low + 1, variable.shape).astype(np.float32))
    given = preprocess.of(config).normalize(images)
    expected = model(given)
    folded = fold(model)
    assert not [module for _, module in nnx.iter_modules(folded) if isinstance(module, batch_norm.BatchNorm)]
    for found, like in zip(folded(given), expected, strict=True):
        np.testing.assert_allclose(found, like, rtol=1e-4, atol=1e-4)
    assert np.abs(model(given).logits - expected.logits).max() == 0  # the model given is as it was


@pytest.mark.slow
def test_the_specialist_of_an_image_is_a_plain_network(workdir, files, images, tmp_path, predict, capsys):
    image = files / "05.png"
    flags = ["--format=specialist", f"--image={image}", f"--output={tmp_path / 'one'}"]
    assert cli.main(["export", f"--workdir={workdir}", *flags]) == 0
    assert "mobilenet_v3_small" in capsys.readouterr().out
    plain, run = runs.load(str(tmp_path / "one")), runs.load(workdir)
    expected, found = answers(run, images[5:6]).logits, answers(plain, images[5:6]).logits
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(found, answers(run, images[6:7]).logits)


@pytest.mark.slow
def test_the_specialist_of_a_class_is_that_of_its_mean_coefficients(workdir, config, tmp_path):
    flags = [f"--workdir={workdir}", "--format=specialist", f"--output={tmp_path / 'class'}"]
    assert cli.main(["export", *flags, "--class=7"]) == 0
    run = runs.load(workdir)
    batch = next(pipeline.open(config).eval_batches("validation"))
    outputs = answers(run, batch["image"])
    mean = np.asarray(outputs.coefficients)[batch["label"] == 7].mean(axis=0)
    expected = nnx.to_pure_dict(nnx.state(basis.synthesize(run.model.specialist, mean), nnx.Param))
    assert np.ptp(np.asarray(outputs.coefficients), axis=0).max() > 0.1  # that of any other images is another

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    jax.tree.map(same, runs.load(str(tmp_path / "class")).params, expected)
    static = config.copy_and_resolve_references()
    static.update({"model": "static", "init_from": str(tmp_path / "class")})
    started = initial_weights.initialized(static, models.functional(models.create(static)))
    jax.tree.map(same, started.params, expected)


def test_an_export_that_differs_too_much_is_not_written(workdir, tmp_path, capsys):
    flags = [f"--workdir={workdir}", "--format=stablehlo", "--tolerance=1e-12", f"--output={tmp_path / 'new'}"]
    assert cli.main(["export", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "more than the tolerance of 1e-12" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(workdir, exported, capsys):
    folder = exported("--format=stablehlo")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for format in ("--format=stablehlo", "--format=safetensors"):
        assert cli.main(["export", f"--workdir={workdir}", format, f"--output={folder}"]) == 2
        assert f"{folder} is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not [path for path in folder.parent.iterdir() if path != folder]


def damaged(folder, tmp_path):
    """Copies of an export, each damaged in its own way, and what the line about it names."""

    def copy(name):
        return pathlib.Path(shutil.copytree(folder, tmp_path / name))

    def rewritten(name, change):
        path = copy(name)
        manifest = manifest_of(path)
        change(manifest)
        (path / "model.json").write_text(json.dumps(manifest))
        return path

    flipped = copy("flipped") / "preview.stablehlo"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing = copy("missing") / "specialist.stablehlo"
    missing.unlink()
    (garbled := copy("garbled") / "model.json").write_text("{")
    empty = tmp_path / "empty"
    empty.mkdir()
    yield flipped.parent, "preview.stablehlo is not what was exported"
    yield missing.parent, "specialist.stablehlo is not what was exported"
    yield garbled.parent, "model.json cannot be read"
    yield empty, "model.json is missing"
    yield tmp_path / "nowhere", "model.json is missing"
    yield rewritten("format", lambda manifest: manifest.update(format="pickle")), "'pickle'"
    yield rewritten("field", lambda manifest: manifest.pop("classes")), "classes"
    yield rewritten("number", lambda manifest: manifest["early_exit"].update(threshold="high")), "high"
    yield rewritten("rule", lambda manifest: manifest["early_exit"].update(patience=1)), "patience"
    yield rewritten("list", lambda manifest: manifest.update(files=[])), "model.json cannot be read"
    yield rewritten("names", lambda manifest: manifest.update(classes="0123456789")), "classes"
    yield rewritten("stages", lambda manifest: manifest.update(stages={})), "stages []"
    yield rewritten("size", lambda manifest: manifest["preprocessing"].update(image_size=8)), "another shape"
    yield rewritten("crop", lambda manifest: manifest["preprocessing"].update(eval_crop=5)), "preprocessing"
    yield rewritten("nan", lambda manifest: manifest["early_exit"].update(threshold=float("nan"))), "early_exit"
    yield rewritten("madds", lambda manifest: manifest["stages"]["preview"].update(madds="few")), "model.json cannot"
    yield rewritten("other", lambda manifest: manifest.update(format="safetensors")), "cannot be read as safetensors"


def test_damaged_exports(exported, files, predict, tmp_path):
    for folder, named in damaged(exported("--format=stablehlo"), tmp_path):
        rows, err = predict(f"--export={folder}", files, code=2)
        assert rows == [] and err.count("\n") == 1 and named in err, err


def test_weights_of_another_network(exported, files, predict, tmp_path):
    folder = exported("--format=safetensors")
    for field, value in (("num_classes", 3), ("basis", {"num_bases": 4}), ("model", "static"), ("network", 5)):
        other = tmp_path / field
        shutil.copytree(folder, other)
        manifest = manifest_of(other)
        config = manifest["config"]
        config[field] = config[field] | value if isinstance(value, dict) else value
        (other / "model.json").write_text(json.dumps(manifest))
        rows, err = predict(f"--export={other}", files, code=2)
        assert rows == [] and err.count("\n") == 1 and str(other) in err, err
        with pytest.raises(UserError, match=str(other)):
            basisnet_jax.load(str(other))


@pytest.mark.slow
def test_a_full_disk_and_odd_outputs(workdir, small_disk, capsys):
    disk = small_disk("16k")
    for format in ("stablehlo", "safetensors", "saved_model"):
        assert cli.main(["export", f"--workdir={workdir}", f"--format={format}", f"--output={disk / 'new'}"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "No space left on device" in err, err
    for output, named in ((disk, "is a mount point"), ("/", "is there already")):
        assert cli.main(["export", f"--workdir={workdir}", "--format=stablehlo", f"--output={output}"]) == 2
        assert named in capsys.readouterr().err
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--format=pickle"], "--format='pickle', expected one of tflite"),
        (["--format=onnx", "--precision=int8"], "--precision='int8', expected float32 for onnx"),
        (["--format=tflite", "--precision=int4"], "'int4', expected one of float32, float16, int8"),
        (["--format=stablehlo", "--tolerance=small"], "--tolerance='small', expected a number"),
        (["--format=stablehlo", "--threshold=high"], "--threshold='high', expected a number"),
        (["--format=stablehlo", "--checkpoint=4"], "no checkpoint of step 4"),
        (["--format=stablehlo", "--checkpoint=newest"], 'expected a step or "best"'),
        (["--format=stablehlo", "--images=nowhere.png"], "nowhere.png is not a readable image"),
        (["--format=stablehlo", "--images=EMPTY"], "a folder without images"),
        (["--format=stablehlo", "--images="], "names no image"),
        (["--format=stablehlo", "--image=a.png"], "--image has no meaning for --format=stablehlo"),
        (["--format=specialist"], "expected --image=FILE or --class=NAME"),
        (["--format=specialist", "--image=nowhere.png"], "nowhere.png is not a readable image"),
        (["--format=specialist", "--class=seven"], "'seven' is no name in classes.json"),
        (["--format=specialist", "--class=10"], "no label below 10"),
        (["--format=specialist", "--class=1", "--tolerance=1"], "--tolerance has no meaning"),
        (["--format=stablehlo", "--workdir=/nowhere"], "/nowhere is not a workdir"),
        (["--format=stablehlo", "--output=/proc/new"], "--output=/proc/new cannot be written"),
        (["--format=specialist", "--class=1", "--output=/proc/new"], "/proc/new cannot be written"),
    ],
)
def test_mistakes(flags, named, workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = [flag.replace("EMPTY", str(tmp_path / "empty")) for flag in flags]
    assert cli.main(["export", f"--workdir={workdir}", f"--output={tmp_path / 'new'}", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and named in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_without_a_calibration(make_run, tiny, tmp_path, capsys):
    workdir = make_run(tiny(), tmp_path / "run")
    assert cli.main(["export", f"--workdir={workdir}", "--format=stablehlo", f"--output={tmp_path / 'new'}"]) == 2
    assert f"run `basisnet calibrate --workdir={workdir} --checkpoint=3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["a.png"], "--workdir=DIR or --export=DIR is missing"),
        (["--workdir=a", "--export=b", "a.png"], "--workdir and --export given"),
        (["--export=b", "--checkpoint=3", "a.png"], "--checkpoint given with --export"),
        (["--export=", "a.png"], "model.json is missing"),
    ],
)
def test_where_predict_takes_the_model_from(argv, named, predict):
    rows, err = predict(*argv, code=2)
    assert rows == [] and err.count("\n") == 1 and named in err


def test_without_the_extra(workdir, tmp_path, capsys, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for format in ("onnx", "tflite"):
        assert cli.main(["export", f"--workdir={workdir}", f"--format={format}", f"--output={tmp_path / 'new'}"]) == 2
        assert "pip install 'basisnet_jax[export]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
