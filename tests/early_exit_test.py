"""Early termination: the curve against the definition (who stops, who is right, what it costs), and two-stage inference
against both stages run on everything."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from basisnet_jax import basisnet, early_exit, models

PREVIEW, FULL = 10.0, 100.0


def test_confidence_by_definition():
    logits = np.random.default_rng(0).normal(size=(50, 7)) * 4
    logits[0] = 3.0  # all classes equal: no criterion is surer of one
    logits[1, 2:4] = 60.0  # two classes equal, the others impossible
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    first, second = np.sort(probabilities)[:, :-3:-1].T
    entropy = -(probabilities * np.log(probabilities)).sum(axis=-1) / np.log(7)
    expected = {"max_softmax": first, "margin": first - second, "entropy": 1 - entropy}
    assert set(expected) == set(early_exit.CRITERIA)
    for criterion, values in expected.items():
        np.testing.assert_allclose(early_exit.confidence(jnp.asarray(logits), criterion), values, atol=1e-5)
    with pytest.raises(ValueError, match="criterion 'max'"):
        early_exit.confidence(jnp.asarray(logits), "max")


@pytest.fixture
def examples():
    random = np.random.default_rng(0)
    confidence = np.round(random.uniform(0.1, 1.0, 200), 2)  # rounded: many are equal
    preview = (random.uniform(size=200) < confidence).astype(float)
    final = (random.uniform(size=200) < 0.9).astype(float)
    return confidence, preview, final


def by_definition(examples, threshold):
    confidence, preview, final = examples
    stops = confidence >= threshold
    share = stops.mean()
    return share, np.where(stops, preview, final).mean(), share * PREVIEW + (1 - share) * FULL


def test_every_point_follows_from_its_threshold(examples):
    points = early_exit.curve(*examples, PREVIEW, FULL)
    assert len(points) == len(set(examples[0])) + 1
    for point in points:
        np.testing.assert_allclose(point[1:], by_definition(examples, point.threshold))
    assert (points[0].share, points[-1].share) == (0.0, 1.0)
    assert (points[0].mean_madds, points[-1].mean_madds) == (FULL, PREVIEW)


@pytest.mark.parametrize("threshold", [0.0, 0.3333, 0.5, 0.77, 1.0, 1.5])
def test_any_threshold_is_found_on_the_curve(examples, threshold):
    point = early_exit.at(early_exit.curve(*examples, PREVIEW, FULL), threshold)
    assert point.threshold == threshold
    np.testing.assert_allclose(point[1:], by_definition(examples, threshold))


def test_the_chosen_threshold_saves_most_within_the_drop(examples):
    points = early_exit.curve(*examples, PREVIEW, FULL)
    for max_drop in (0.0, 0.02, 1.0):
        chosen = early_exit.at(points, early_exit.choose(points, max_drop))
        assert chosen.top1 >= points[0].top1 - max_drop - 1e-9
        cheaper = [point for point in points if point.mean_madds < chosen.mean_madds]
        assert all(point.top1 < points[0].top1 - max_drop for point in cheaper)
    assert early_exit.at(points, early_exit.choose(points, 1.0)).share == 1.0


def test_a_hopeless_preview_stops_nobody():
    points = early_exit.curve(np.array([0.9, 0.8]), np.zeros(2), np.ones(2), PREVIEW, FULL)
    assert early_exit.at(points, early_exit.choose(points, 0.0)).share == 0.0


def test_confidence_is_the_largest_probability():
    logits = jnp.log(jnp.array([[0.2, 0.7, 0.1], [0.4, 0.3, 0.3]], jnp.float32))
    np.testing.assert_allclose(early_exit.confidence(logits), [0.7, 0.4], rtol=1e-5)
    assert early_exit.confidence(logits.astype(jnp.bfloat16)).dtype == jnp.float32


def test_thinning_keeps_both_ends(examples):
    points = early_exit.curve(*examples, PREVIEW, FULL)
    thinned = early_exit.thin(points, 11)
    assert len(thinned) == 11
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert early_exit.thin(points, 1000) == points


SIZE = 8  # of a batch: the specialist's sizes are 1..8


@pytest.fixture(scope="module")
def model(tiny):
    """A BasisNet whose stages and images are of different opinions."""
    model = models.create(tiny())
    model.eval()
    random = np.random.default_rng(2)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + random.normal(0, 0.6, leaf.shape).astype(leaf.dtype), params))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (5 * SIZE, 16, 16, 1), np.uint8)


def prepare(images):
    return images.astype(jnp.float32) / 100 - 1


@pytest.fixture(scope="module")
def both(model, images):
    """(preview logits, final logits) of all images, each stage run on everything."""
    outputs = nnx.jit(lambda model, images: model(prepare(images)))(model, images)
    return np.asarray(outputs.preview_logits), np.asarray(outputs.logits)


def chosen_afterwards(both, rule):
    preview, final = both
    stopped = np.asarray(rule.confidence(preview)) >= rule.threshold
    return np.where(stopped[:, None], preview / rule.temperature, final), stopped


def between(both, stopping, **fields):
    """The rule by which so many of the images stop."""
    rule = early_exit.Rule(**fields)
    confidences = np.sort(rule.confidence(both[0]))[::-1]
    return rule._replace(threshold=float(confidences[stopping - 1 : stopping + 1].mean()))


@pytest.mark.slow
@pytest.mark.parametrize("criterion", early_exit.CRITERIA)
def test_two_stages_answer_as_if_both_had_run_on_everything(model, images, both, criterion):
    rule = between(both, 19, criterion=criterion, temperature=1.7)
    expected, stops = chosen_afterwards(both, rule)
    assert stops.sum() == 19 and np.abs(both[0] - both[1]).max(-1).min() > 0.01
    two_stage = early_exit.TwoStage(model, rule, SIZE, prepare)
    sizes = (SIZE, 3, SIZE, SIZE, 1, SIZE, 4)  # of the batches, 40 in all: some are padded for the preview too
    batches = np.split(images, np.cumsum(sizes)[:-1])
    answers = list(two_stage.stream(iter(batches)))
    assert [len(answer.logits) for answer in answers] == list(sizes)
    for results in (answers, map(two_stage, batches), map(two_stage.single, images)):
        logits, stopped = map(np.concatenate, zip(*results, strict=True))
        np.testing.assert_array_equal(stopped, stops)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def traced(monkeypatch):
    """The number of images in every trace of the specialist: what is compiled."""
    sizes = []
    stage = basisnet.BasisNet.specialist_stage
    early_exit._programs.cache_clear()  # what another test has compiled
    monkeypatch.setattr(basisnet.BasisNet, "specialist_stage", lambda *args: sizes.append(len(args[1])) or stage(*args))
    return sizes


@pytest.mark.slow
def test_any_number_of_undecided_images_compiles_nothing_anew(model, images, both, traced):
    two_stage = early_exit.TwoStage(model, early_exit.Rule(), 16, prepare)
    assert two_stage.sizes == [2, 4, 6, 8, 10, 12, 14, 16]
    sure = np.sort(two_stage.rule.confidence(both[0])[:16])[::-1]
    # Between two confidences: the program of another batch size may round them otherwise.
    thresholds = [early_exit.NONE_STOPS, *(sure[:-1] + sure[1:]) / 2, 0.0]
    for stopping, threshold in enumerate(thresholds):  # of the first 16 images, as many stop
        two_stage.rule = early_exit.Rule(float(threshold))
        expected, stops = chosen_afterwards([logits[:16] for logits in both], two_stage.rule)
        answers = two_stage(images[:16])
        assert answers.stopped.sum() == stops.sum() == stopping
        np.testing.assert_allclose(answers.logits, expected, rtol=1e-4, atol=1e-5)
    assert sorted(traced) == two_stage.sizes


def test_where_all_stop_the_specialist_never_runs(model, images, both, traced):
    two_stage = early_exit.TwoStage(model, early_exit.Rule(0.0), SIZE, prepare)
    answers = [*two_stage.stream(np.split(images, 5)), two_stage.single(images[0])]
    assert traced == [] and all(answer.stopped.all() for answer in answers)
    np.testing.assert_allclose(answers[-1].logits, both[0][:1], rtol=1e-4, atol=1e-5)


def test_undecided_images_of_several_batches_share_full_runs(model, images, both, traced):
    """And no batch waits for ever: of an endless stream only `PATIENCE` batches more are drawn."""
    rule = between(both, 5 * SIZE - 2 * SIZE)
    two_stage = early_exit.TwoStage(model, rule, SIZE, prepare)
    assert len(list(two_stage.stream(np.split(images, 5)))) == 5
    assert traced == [SIZE]
    _, stopped = chosen_afterwards(both, rule)
    surest, least_sure = images[stopped][:1], images[~stopped][:1]
    drawn = itertools.count()
    endless = (least_sure if next(drawn) == 0 else surest for _ in itertools.count())
    np.testing.assert_array_equal(next(two_stage.stream(endless)).stopped, [False])
    assert next(drawn) <= early_exit.PATIENCE + 3


def test_a_batch_too_large_is_refused(model, images):
    with pytest.raises(ValueError, match="a batch of 9, expected at most 8"):
        early_exit.TwoStage(model, early_exit.Rule(), SIZE, prepare)(images[:9])


TWO_DEVICES = """
import jax, numpy as np
from conftest import tiny_config
from basisnet_jax import early_exit, models
model = models.create(tiny_config())
model.eval()
images = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype(np.float32)
two_stage = early_exit.TwoStage(model, early_exit.Rule(), 4)
np.testing.assert_allclose(two_stage(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(two_stage.single(images[1]).logits, model(images).logits[1:2], rtol=1e-4, atol=1e-5)
logits, _, coefficients = two_stage._preview(images)
final = two_stage._specialist(images, np.asarray(coefficients))
assert [logits.devices(), final.devices()] == [{device} for device in jax.devices()]
"""


@pytest.mark.slow
def test_two_devices_share_the_stages():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", TWO_DEVICES]
    subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=True, timeout=120)
