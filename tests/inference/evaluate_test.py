"""Evaluation: exact for any batch size, right for few classes, and told in a table."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from basisnet_jax import models, plots, preprocess
from basisnet_jax.data import pipeline
from basisnet_jax.distributed import partition
from basisnet_jax.inference import evaluate
from basisnet_jax.workdir import runs


@pytest.fixture(scope="module")
def config(tiny, data_dir):
    return tiny(data_dir=data_dir)


def per_example(config, eval_batch_size):
    config = config.copy_and_resolve_references()
    config.eval_batch_size = eval_batch_size
    functions = models.functional(models.create(config))
    mesh = partition.create_mesh(eval_batch_size)
    run = evaluate.make_per_example(functions, preprocess.of(config).normalize, mesh)
    return run(functions.params, functions.batch_stats, pipeline.open(config).eval_batches("test"))


@pytest.mark.slow
def test_padded_evaluation_equals_unpadded(config):
    whole, padded = per_example(config, 360), per_example(config, 77)
    assert whole.keys() == padded.keys()
    for name in whole:
        assert len(whole[name]) == 360
        np.testing.assert_allclose(padded[name], whole[name], atol=1e-5)
    summary = evaluate.summarize(padded)
    assert summary["num_examples"] == 360
    assert summary["top1"] == pytest.approx(np.mean(whole["top1"], dtype=np.float64), abs=1e-12)


@pytest.mark.slow
def test_results_by_class_are_exact_whatever_the_batches(config, make_run, tmp_path):
    """By scikit-learn, from what the model itself answers, all images at once."""
    config = config.copy_and_resolve_references()
    config.eval_batch_size = 77
    workdir = make_run(config, tmp_path)
    report = evaluate.evaluate(workdir, threshold=0.5)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    run, whole = runs.load(workdir), config.copy_and_resolve_references()
    whole.eval_batch_size = 360
    [batch] = list(pipeline.open(whole).eval_batches("test"))
    outputs = run.functions.evaluate(run.params, run.batch_stats, run.preprocess.normalize(batch["image"]))
    labels, preview, final = batch["label"], *(np.argmax(x, -1) for x in (outputs.preview_logits, outputs.logits))
    stops = np.asarray(jax.nn.softmax(outputs.preview_logits)).max(-1) >= 0.5
    early = np.where(stops, preview, final)
    assert 0 < stops.mean() < 1
    with open(tmp_path / "confusion.csv", newline="") as file:
        pairs = list(csv.DictReader(file))
    for head, prefix, answers in (
        ("preview", "preview_", preview),
        ("final", "", final),
        ("early_termination", "", early),
    ):
        of = report["early_termination"] if head == "early_termination" else report
        assert of[f"{prefix}top1"] == pytest.approx(metrics.accuracy_score(labels, answers))
        balanced = metrics.balanced_accuracy_score(labels, answers)
        assert of[f"{prefix}balanced_accuracy"] == pytest.approx(balanced)
        matrix = metrics.confusion_matrix(labels, answers)
        told = np.zeros_like(matrix)
        for pair in pairs:
            told[int(pair["label"]), int(pair["prediction"])] = pair[head]
        np.testing.assert_array_equal(told, matrix)
    table = evaluate.table(report)
    assert "majority baseline" in table and f"{report['balanced_accuracy']:.4f}" in table
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_and_few_classes():
    logits = jnp.array([[3.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
    rows = evaluate._head(logits, jax.nn.one_hot(jnp.array([1, 1]), 3), jnp.array([1, 1]), "preview_")
    np.testing.assert_array_equal(rows["preview_top1"], [0, 1])
    np.testing.assert_array_equal(rows["preview_top5"], [1, 1])
    np.testing.assert_allclose(rows["preview_loss"], -jax.nn.log_softmax(logits)[:, 1], rtol=1e-6)
    wide = jnp.arange(7.0)[None]
    for label, within in ((6, 1), (2, 1), (1, 0)):
        row = evaluate._head(wide, jax.nn.one_hot(jnp.array([label]), 7), jnp.array([label]), "")
        assert row["top5"][0] == within


def test_normalization_is_that_of_the_config(config):
    images = np.full((1, 2, 2, 1), 255, np.uint8)
    np.testing.assert_allclose(preprocess.of(config).normalize(images), (1 - 0.3) / 0.35, rtol=1e-6)


REPORT = {
    "split": "test",
    "num_examples": 360,
    "step": 7,
    "top1": 0.99,
    "top5": 1.0,
    "loss": 0.1,
    "madds": 2e6,
    "preview_top1": 0.9,
    "preview_top5": 1.0,
    "preview_loss": 0.4,
    "preview_madds": 1e5,
    "early_termination": {
        "threshold": 0.8,
        "share": 0.5,
        "top1": 0.985,
        "mean_madds": 1.05e6,
        "chosen_on": "validation",
        "curve": [{"mean_madds": 2e6, "top1": 0.99}, {"mean_madds": 1.05e6, "top1": 0.985}],
    },
}


def test_table_names_every_number():
    table = evaluate.table(REPORT)
    for number in ("0.9900", "0.9000", "0.9850", "2.00M", "0.10M", "1.05M", "50%", "0.800", "360 images", "step 7"):
        assert number in table
    static = {name: value for name, value in REPORT.items() if name != "early_termination"}
    assert "preview" not in evaluate.table(static)


def test_picture_is_drawn(tmp_path):
    path = tmp_path / "curve.png"
    plots.early_termination(REPORT, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
