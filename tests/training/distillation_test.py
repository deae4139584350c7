"""Distillation: the loss against its formula, a teacher in the step and one read from disk, and what is refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from basisnet_jax import models, parsing
from basisnet_jax.basisnet import Outputs
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError
from basisnet_jax.training import distillation, loop, losses
from basisnet_jax.training.step import create_state, make_train_step
from basisnet_jax.workdir import checkpoint, runs


@pytest.fixture(scope="module")
def teacher_config(tiny, data_dir):
    """A static network that sees other images than the student does: larger, RGB, normalised otherwise."""
    config = tiny(model="static", image_size=20, channels=3, data_dir=data_dir, num_epochs=1.0, batch_size=128)
    config.mean, config.stddev = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    return parsing.resolve(config)


@pytest.fixture(scope="module")
def teacher_dir(teacher_config, tmp_path_factory):
    """A workdir with that network, its classifier made decisive."""
    workdir = str(tmp_path_factory.mktemp("teacher") / "run")
    functions = models.functional(models.create(teacher_config))
    params = jax.tree.map(np.asarray, functions.params)
    params["classifier"]["kernel"] = params["classifier"]["kernel"] * 300
    runs.claim(teacher_config, workdir)
    with checkpoint.manager(workdir, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 0, {"ema_params": params, "ema_batch_stats": functions.batch_stats})
    return workdir


@pytest.fixture
def config(tiny, data_dir, teacher_dir):
    config = tiny(data_dir=data_dir, batch_size=64, eval_batch_size=100)
    config.distillation.teacher = teacher_dir
    return config


def test_loss_by_its_formula(tiny):
    rng = np.random.default_rng(0)
    final, preview, teacher = (rng.normal(size=(5, 7)) for _ in range(3))
    labels = np.eye(7)[rng.integers(7, size=5)]
    weight, T = 0.3, 4.0

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)

    def expected(logits):
        hard = -(labels * np.log(softmax(logits))).sum(axis=-1).mean()
        soft = -(softmax(teacher / T) * np.log(softmax(logits / T))).sum(axis=-1).mean()
        return hard, (1 - weight) * hard + weight * T**2 * soft

    outputs = Outputs(jnp.asarray(final), jnp.asarray(preview))
    for heads, taught in (("both", (1, 1)), ("final", (1, 0)), ("preview", (0, 1))):
        fields = tiny().distillation
        fields.update(weight=weight, temperature=T, heads=heads)
        total, parts = losses.joint(outputs, jnp.asarray(labels), softmax(teacher / T), 0.5, fields)
        np.testing.assert_allclose(parts["final_loss"], expected(final)[taught[0]], rtol=1e-5)
        np.testing.assert_allclose(parts["preview_loss"], expected(preview)[taught[1]], rtol=1e-5)
        np.testing.assert_allclose(total, parts["final_loss"] + 0.5 * parts["preview_loss"], rtol=1e-6)


def load(config):
    return distillation.load(config.distillation, config.num_classes, config.channels)


def one_step(config, batch, teacher=None, weights=None):
    """Metrics and gradient (as the change of the parameters) of one step."""
    functions = models.functional(models.create(config))
    tx = optax.scale(-1.0)
    state = create_state(functions.params, functions.batch_stats, tx)
    step = jax.jit(make_train_step(config, functions, tx, teacher=teacher and teacher.logits))
    new, metrics = step(state, batch, jax.random.key(0), weights)
    return metrics, jax.tree.map(lambda a, b: np.asarray(a - b), state.params, new.params)


@pytest.mark.slow
def test_the_teacher_runs_in_the_step_or_is_read_from_disk(config, tmp_path, capsys):
    """Where nothing is augmented both ways teach the same, if the teacher's crop and size are the student's."""
    config.augment.update(shift=0.0, rotation=0.0, zoom=0.0)
    config.distillation.update(temperature=2.0, weight=0.7)
    teacher = load(config)
    batch = next(pipeline.open(config).train_batches())
    metrics, gradient = one_step(config, batch, teacher, teacher.weights)
    plain, other = one_step(config, batch)
    assert "teacher_top1" in metrics and "teacher_top1" not in plain
    assert abs(metrics["loss"] - plain["loss"]) > 0.1
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (gradient, other)), strict=True)) > 1e-3
    # The formula, from outside: what the student's heads would lose against the teacher's distribution.
    logits = teacher.logits(teacher.weights, batch["image"].astype(np.float32))
    direct = runs.load(config.distillation.teacher)
    assert logits.shape == (64, 10) and logits.std() > 0.1 and direct.config.image_size == 20

    # From disk: the images at the teacher's own size, so nearly the same.
    data, cache = pipeline.open(config), str(tmp_path / "cache")
    config.distillation.cache = cache
    batches = distillation.with_stored(data.train_batches(ids=True), data, teacher, cache)
    stored = next(batches)
    assert "1077 images, once" in capsys.readouterr().out
    assert set(stored) == {"image", "label", "teacher"} and stored["teacher"].dtype == np.float16
    np.testing.assert_array_equal(stored["image"], batch["image"])
    assert np.corrcoef(stored["teacher"].ravel(), logits.ravel())[0, 1] > 0.99
    assert np.mean(stored["teacher"].argmax(-1) == logits.argmax(-1)) > 0.9
    from_disk, _ = one_step(config, stored)
    np.testing.assert_allclose(from_disk["loss"], metrics["loss"], rtol=0.02)

    # Another run with another seed and batch size reads the same folder, in any order and from any step.
    config.update(seed=5, batch_size=32)
    data = pipeline.open(config)
    again = distillation.with_stored(data.train_batches(7, ids=True), data, teacher, cache)
    next(again)
    assert "once" not in capsys.readouterr().out and len(os.listdir(tmp_path / "cache")) == 1
    # Another subset of the same split gives each example the prediction it had.
    config.update(train_split="train[500:]", eval_batch_size=64)
    [folder] = [os.path.join(tmp_path / "cache", name) for name in os.listdir(tmp_path / "cache")]
    ids, all_logits = (np.load(os.path.join(folder, f"{name}.npy")) for name in ("ids", "logits"))
    assert len(set(ids.tolist())) == 1077
    part = distillation.compute(pipeline.open(config), teacher)
    rows = {name: row for name, row in zip(ids.tolist(), all_logits, strict=True)}
    assert len(part["ids"]) == 577
    for name, row in zip(part["ids"].tolist(), part["logits"], strict=True):
        np.testing.assert_allclose(row, rows[name], rtol=0.02, atol=0.02)


def config_like(config, **fields):
    config = config.copy_and_resolve_references()
    config.update(fields)
    return config


@pytest.mark.slow
def test_mixed_images_get_mixed_predictions(config):
    """With mixup, what is read from disk is mixed like the labels: a teacher that knows the labels changes nothing."""
    config.update(label_smoothing=0.0)
    config.augment.mixup = 1.0
    config.distillation.update(weight=1.0, temperature=1.0)
    batch = next(pipeline.open(config).train_batches())
    knowing = {**batch, "teacher": (200 * jax.nn.one_hot(batch["label"], 10)).astype(np.float16)}
    np.testing.assert_allclose(one_step(config, knowing)[0]["loss"], one_step(config, batch)[0]["loss"], rtol=1e-5)


@pytest.mark.end_to_end
@pytest.mark.slow
def test_a_run_with_a_teacher(config, tmp_path):
    """Through the trainer, both ways; nothing of the teacher is in the checkpoint."""
    config.update(num_epochs=0.25, batch_size=256, eval_every_epochs=1.0)
    sizes = []
    for cache in ("", str(tmp_path / "cache")):
        config.distillation.cache = cache
        workdir = tmp_path / f"run{len(sizes)}"
        loop.train(parsing.resolve(config), str(workdir))
        row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
        assert 0 <= row["teacher_top1"] <= 1
        run = runs.load(str(workdir))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(run.params)))
    assert sizes[0] == sizes[1]


def test_what_is_refused(config, tmp_path):
    changed = config_like(config)
    changed.distillation.teacher = str(tmp_path)
    with pytest.raises(UserError, match="config.json is missing"):
        load(changed)
    with pytest.raises(UserError, match="has 10 classes, expected 11"):
        load(config_like(config, num_classes=11))
    static = config_like(config, model="static")
    static.distillation.heads = "preview"
    with pytest.raises(UserError, match="config.distillation.heads='preview'.* has no preview"):
        parsing.resolve(static)
    # Before the workdir is claimed.
    config.distillation.weight = -1.0
    with pytest.raises(UserError, match="config.distillation.weight=-1.0, expected a number from 0 to 1"):
        loop.train(parsing.resolve(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
