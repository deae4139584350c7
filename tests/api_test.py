"""The Python API: models by name, predictions, networks and training loops of one's own."""

import contextlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from basisnet_jax.configs import default, imagenet_basisnet_mv3, imagenet_static
from flax import nnx
from sklearn import metrics

import basisnet_jax as bnj
from basisnet_jax import basis, cli, early_exit, models
from basisnet_jax.data import decoding
from basisnet_jax.distributed import preemption
from basisnet_jax.errors import UserError

SMALL = dict(width=0.1, image_size=32, network__num_stages=2, network__head_features=12)
SMALL |= dict(preview__num_stages=1, preview__head_features=8, preview__width=0.2)


def small(**fields):
    return bnj.create_model("basisnet_mobilenet_v3_small", 3, num_bases=2, **{**SMALL, **fields})


# Models by name.


def test_importing_the_package_imports_nothing_heavy():
    program = "import sys, basisnet_jax as b; assert 'jax' not in sys.modules; b.with_bases; print(dir(b))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(name in ended.stdout for name in bnj.__all__)
    assert [*bnj._PLACES] == bnj.__all__ and all(getattr(bnj, name) for name in bnj.__all__)
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = bnj.create_modle


def test_a_model_by_name_is_that_of_its_config():
    fields = {"network.num_stages": 1, "network.head_features": 12, "preview.num_stages": 1, "num_classes": 7}
    config = imagenet_basisnet_mv3.get_config("bases=3,width=0.25,seed=5")
    config.update_from_flattened_dict({**fields, "dtype": "float32"})
    given = dict(network__num_stages=1, network__head_features=12, preview__num_stages=1)
    model = bnj.create_model("basisnet_mobilenet_v3_large", 7, num_bases=3, width=0.25, seed=5, **given)
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(of)) for of in (model, models.create(config))), strict=True):
        if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(ours, theirs)
    assert model.preprocess.shape == (224, 224, 3) and model.preview_size == 160
    assert bnj.create_model("mobilenet_v2", 7, image_size=64, width=0.1).preprocess.shape == (64, 64, 3)
    smaller = bnj.create_model("basisnet_mobilenet_v2", 7, image_size=112, num_bases=1, width=0.1, **given)
    assert smaller.preview_size == 80
    given |= dict(num_bases=1, preview__image_size=64)
    assert bnj.create_model("basisnet_mobilenet_v2", 7, image_size=112, **given).preview_size == 64
    with pytest.raises(ValueError, match="preview.image_size=113, expected at most config.image_size=112"):
        bnj.create_model("basisnet_mobilenet_v2", 7, image_size=112, preview__image_size=113)


def test_with_bases_chooses_what_configs_choose():
    config = imagenet_static.get_config("width=0.1")
    config.network.num_stages = 3
    network = models.create(config)
    assert default.get_config().basis.layers == basis.LAYERS
    chosen = basis.basis_layers(basis.with_bases(network, 2))
    of_config = basis.basis_layers(basis.with_bases(network, 2, where=basis.matching(basis.LAYERS)))

    class Foreign(nnx.Module):
        def __init__(self):
            self.head, self.other = (nnx.Conv(3, 3, (1, 1), rngs=nnx.Rngs(0)) for _ in range(2))

    assert list(basis.basis_layers(basis.with_bases(Foreign(), 2))) == ["head", "other"]
    assert list(chosen) == list(of_config) and not any("stem" in path or "squeeze" in path for path in chosen)


def test_names_and_fields_that_do_not_exist_are_told():
    assert bnj.list_models("basisnet_*v3*") == ["basisnet_mobilenet_v3_large", "basisnet_mobilenet_v3_small"]
    assert {"mobilenet_v2", "condconv_efficientnet_b0", "dy_mobilenet_v3_large"} < set(bnj.list_models())
    for name, fields, message in (
        ("basisnet_resnet", {}, "model 'basisnet_resnet' is unknown, expected one of basisnet_eff"),
        ("mobilenet_v2", {"network__wdith": 1.0}, "'wdith' is not one of drop_connect"),
        ("mobilenet_v2", {"coefficients__temprature": 1.0}, "no field 'coefficients__temprature'"),
        ("mobilenet_v2", {"foo": 1}, "no field 'foo'"),
        ("mobilenet_v2", {"optimizer__learning_rate": 1.0}, "optimizer__learning_rate is not a field of a model"),
        ("mobilenet_v2", {"mean": (0.5, 0.5)}, "config.mean=.0.5, 0.5., expected one number"),
        ("mobilenet_v2", {"dtype": "float8"}, "config.dtype='float8', expected one of float32, bfloat16"),
        ("mobilenet_v2", {"num_bases": 4}, "bases"),
    ):
        with pytest.raises(ValueError, match=message):
            bnj.create_model(name, 10, **fields)


# Predictions.


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("shape", "channels", "size", "crop"),
    [((30, 40, 3), 3, 16, 0.875), ((20, 17, 1), 3, 32, 1.0), ((64, 50, 3), 1, 24, 0.7), ((33, 33, 3), 3, 33, 1.0)],
)
def test_images_are_prepared_as_the_pipeline_does(method, shape, channels, size, crop):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    seen = bnj.Preprocess(size, channels, method, crop)
    feature = tfds.features.Image(shape=(None, None, shape[-1]))
    expected = decoding.centre(seen, feature, tf.io.encode_png(image)).numpy().astype(int)
    difference = np.abs(seen(image).astype(int) - expected)
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.005  # a half is rounded otherwise
    with pytest.raises(ValueError, match="an image of float32"):
        seen(image.astype(np.float32))


@pytest.mark.slow
def test_a_run_read_back_predicts_what_the_command_does(tiny, data_dir, make_run, tmp_path, capsys):
    workdir = make_run(tiny(data_dir=data_dir, eval_crop=0.8), tmp_path / "run")
    (tmp_path / "run" / "classes.json").write_text(json.dumps([f"digit {i}" for i in range(10)]))
    random = np.random.default_rng(0)
    images = [
        random.integers(0, 256, (h, w, 1), np.uint8) for h, w in ((16, 16), (30, 20), (9, 40), (16, 16), (50, 50))
    ]
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(image).numpy())
    model = bnj.load(workdir)
    confidences = model.predict(images).probabilities.max(axis=1)
    for threshold in (None, 0.0, float(np.median(confidences))):
        flags = [f"--workdir={workdir}", "--json"] + [f"--threshold={threshold}"] * (threshold is not None)
        assert cli.main(["predict", *flags, *(str(tmp_path / f"{i}.png") for i in range(5))]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        found = model.predict(images, threshold=threshold, batch_size=2)
        assert found.names == [row["label"] for row in rows] == [f"digit {label}" for label in found.labels]
        assert found.stage.tolist() == [row["stage"] for row in rows]
        assert found.madds.tolist() == [row["madds"] for row in rows]
        np.testing.assert_allclose(found.probabilities.max(axis=1), [row["confidence"] for row in rows], atol=2e-3)
        np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)

    flags = [f"--workdir={workdir}", "--format=stablehlo", "--threshold=0.3", f"--output={tmp_path / 'export'}"]
    assert cli.main(["export", *flags, f"--images={tmp_path}"]) == 0
    exported = bnj.load(tmp_path / "export")
    ours, theirs = model.predict(images, threshold=0.3), exported.predict(images)
    assert ours.names == theirs.names and ours.madds.tolist() == theirs.madds.tolist()
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)


@pytest.mark.slow
def test_places_that_hold_no_model(tmp_path, tiny, make_run):
    with pytest.raises(UserError, match="neither config.json nor model.json"):
        bnj.load(tmp_path)
    workdir = make_run(tiny(model="static"), tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        bnj.load(workdir, checkpoint=7)
    assert bnj.load(workdir, checkpoint=3).predict(np.zeros((1, 16, 16, 1), np.uint8)).stage.tolist() == ["network"]
    grey = bnj.create_model("mobilenet_v2", 3, channels=1, width=0.1, image_size=32)
    assert len(grey.preprocess.mean) == 1 and grey.predict(np.zeros((2, 9, 9, 1), np.uint8)).labels.shape == (2,)
    with pytest.raises(ValueError, match=r"images of \(9, 1\) each"):
        grey.predict(np.zeros((9, 9, 1), np.uint8))
    with pytest.raises(ValueError, match="no images given"):
        bnj.predict(bnj.load(workdir), [])


def test_a_second_prediction_compiles_nothing():
    model = small()
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    first = model.predict(images, threshold=0.0)
    hits = early_exit._programs.cache_info().hits
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.1, params))
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", None)
        second = model.predict(images, threshold=0.0)
    assert early_exit._programs.cache_info().hits == hits + 1
    assert np.abs(first.probabilities - second.probabilities).max() > 1e-3  # by the weights of now


# Networks of one's own.


class Words(nnx.Module):
    """A 1-D network whose layers are not defined in the order of their names, with keywords."""

    def __init__(self, rngs):
        self.z = nnx.Conv(4, 6, (3,), rngs=rngs)
        self.b = nnx.Linear(6, 8, rngs=rngs)
        self.dropout_ = nnx.Dropout(0.5)
        self.a = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        x = nnx.relu(self.b(nnx.relu(self.z(x)).mean(axis=1)))
        return self.a(self.dropout_(x, rngs=rngs))


class Video(nnx.Module):
    def __init__(self, rngs, softmax=False):
        self.conv = nnx.Conv(2, 5, (2, 3, 3), rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)
        self.softmax = softmax

    def __call__(self, x):
        y = self.head(nnx.relu(self.conv(x)).mean(axis=(1, 2, 3)))
        return nnx.softmax(y) if self.softmax else y


class Channels(nnx.Module):
    """Of [B, C, H, W]."""

    def __init__(self, rngs):
        self.conv, self.head = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x.transpose(0, 2, 3, 1))).mean(axis=(1, 2)))


def own(network, preview=None, **options):
    rngs = nnx.Rngs(0)
    return bnj.BasisNet(bnj.with_bases(network(rngs), 2), (preview or network)(rngs), rngs=rngs, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape", "options"),
    [
        (Words, (4, 9, 4), {}),
        (Video, (4, 3, 8, 8, 2), {"view": lambda x: x[:, :, ::2, ::2]}),
        (Channels, (4, 3, 8, 8), {"view": lambda x: x[..., ::2, ::2], "shared": True}),
    ],
)
def test_any_network_is_a_specialist_and_a_preview(network, shape, options):
    model = own(network, **options)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    keywords = {"rngs": nnx.Rngs(1)} if network is Words else {}
    model.train()
    outputs = model(x, **keywords)
    assert outputs.logits.shape == outputs.preview_logits.shape == (4, 3)
    assert outputs.coefficients.shape == (4, 1, 2)
    model.eval()
    preview = network(nnx.Rngs(0))
    _, state = nnx.split(preview)
    nnx.update(preview, jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(nnx.state(model.preview))))
    preview.eval()
    seen = options["view"](x) if "view" in options else x
    np.testing.assert_allclose(model(x).preview_logits, preview(seen), rtol=1e-5)
    found = bnj.predict(model, x, threshold=0.0)
    assert set(found.stage) == {"preview"}
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(preview(seen)), rtol=1e-4)
    batch = {"image": x, "label": np.arange(4) % 3}
    before = float(bnj.loss(model(x), batch["label"]))
    if network is Words:  # its dropout wants `rngs`
        return
    report = bnj.fit(model, lambda first_step: iter(lambda: batch, None), 20, learning_rate=0.03, validation=[batch])
    assert report["loss"] + report["preview_loss"] < before and report["early_termination"]["threshold"]


def test_a_preview_that_cannot_be_split_is_told():
    with pytest.raises(ValueError, match="its output is not the preview's"):
        own(Video, lambda rngs: Video(rngs, softmax=True))(np.zeros((1, 3, 8, 8, 2), np.float32))
    with pytest.raises(ValueError, match=r"has the linear layers \['b', 'a'\], expected head"):
        own(Words, classifier="head")
    assert own(Words, classifier="b").coefficient_head.in_features == 6
    with pytest.raises(TypeError, match="neither preview nor specialist takes the keyword 'training'"):
        own(Video)(np.zeros((1, 3, 8, 8, 2), np.float32), training=True)
    with pytest.raises(ValueError, match="preview_size=4 and a view given"):
        own(Video, preview_size=4, view=lambda x: x)


# Training loops.


def examples(n=48, shape=(32, 32, 3)):
    random = np.random.default_rng(0)
    labels = np.arange(n) % 3
    images = random.integers(0, 100, (n, *shape)) + 60 * labels[:, None, None, None]
    return {"image": images.astype(np.uint8), "label": labels}


@pytest.mark.slow
def test_a_loop_of_ones_own():
    model, data = small(), examples()
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss_fn(model):
            return bnj.loss(model(model.preprocess.normalize(images)), labels)

        loss, gradient = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, gradient)
        return loss

    model.train()
    losses = [float(step(model, optimizer, data["image"], data["label"])) for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def batches_from(step):
    data = examples()
    while True:
        rows = np.random.default_rng(step).permutation(48)[:16]
        yield {name: column[rows] for name, column in data.items()}
        step += 1


@pytest.mark.end_to_end
@pytest.mark.slow
def test_fit_goes_on_as_if_it_had_not_stopped(tmp_path):
    held_out = [examples(20), examples(7)]
    options = dict(validation=held_out, learning_rate=0.01, validate_every=4, log_every=2)
    whole, parts = small(), small()
    report = bnj.fit(whole, batches_from, 8, workdir=tmp_path / "whole", warmup_steps=2, **options)
    with pytest.MonkeyPatch.context() as patch:  # a signal after step 4
        patch.setattr(preemption, "watched", lambda: contextlib.nullcontext(lambda step: step == 4))
        with pytest.raises(UserError, match="stopped after step 4 of 8"):
            bnj.fit(parts, batches_from, 8, workdir=tmp_path / "parts", warmup_steps=2, **options)
    resumed = bnj.fit(parts, batches_from, 8, workdir=tmp_path / "parts", warmup_steps=2, **options)
    for one, other in zip(*(jax.tree.leaves(nnx.state(model, nnx.Param)) for model in (whole, parts)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert resumed == report == json.loads((tmp_path / "parts" / "evaluation.json").read_text())
    assert report["num_examples"] == 27 and report["step"] == 8 and 0 < report["top1"] <= 1
    labels, images = (np.concatenate([batch[name] for batch in held_out]) for name in ("label", "image"))
    answers = whole.predict(images, threshold=1.1).labels  # by both stages
    assert report["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, answers))
    recalls = metrics.recall_score(labels, answers, average=None, labels=np.unique(labels))
    assert [row["recall"] for row in report["classes"] if row["count"]] == pytest.approx(recalls)
    assert all((tmp_path / "parts" / name).exists() for name in ("confusion.csv", "confusion.png"))
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [8]  # not where it was stopped
    found = whole.predict(examples(20)["image"])
    assert whole.rule.threshold == report["early_termination"]["threshold"] and len(found.names) == 20
    again = bnj.load(tmp_path / "whole")
    np.testing.assert_array_equal(again.predict(examples(20)["image"]).probabilities, found.probabilities)
    assert again.rule.threshold == whole.rule.threshold
    with pytest.raises(UserError, match="belongs to another config"):
        bnj.fit(small(width=0.2), batches_from, 8, workdir=tmp_path / "whole")
    # Done: evaluated anew, nothing trained.
    assert bnj.fit(parts, batches_from, 8, workdir=tmp_path / "parts", warmup_steps=2, **options) == report


@pytest.mark.slow
def test_fit_takes_iterables_and_refuses_what_is_no_batch():
    model = small()
    data = examples(16)
    report = bnj.fit(model, [data, data], 3, log_every=1)
    assert {"loss", "top1", "preview_top1"} <= report.keys()
    with pytest.raises(ValueError, match="the batches ended before the last step"):
        bnj.fit(model, iter([data]), 3)
    with pytest.raises(ValueError, match="no batches given"):
        bnj.fit(model, [], 3)
    for wrong, message in (
        ([(1, 2)], "a batch of tuple"),
        ([{"image": data["image"]}], r"a batch of \['image'\]"),
        ([{**data, "label": data["label"] + 0.5}], "of float64, expected integers"),
        ([{**data, "label": data["label"] + 1}], "label 3, expected one of 0 to 2"),
        ([{**data, "label": data["label"] - 1}], "label -1, expected one of 0 to 2"),
        ([{**data, "image": data["image"][:, :16]}], r"images \(16, 32, 3\), expected \(32, 32, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bnj.fit(model, wrong, 3)
    with pytest.raises(ValueError, match="validation is an iterator"):
        bnj.fit(model, [data], 3, validation=iter([data]))
    del model.preprocess
    with pytest.raises(ValueError, match="no `preprocess`"):
        bnj.fit(model, [data], 3)
