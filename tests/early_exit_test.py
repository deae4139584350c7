"""The early-termination curve against the definition: who stops, who is right, what it costs."""

import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax import early_exit

PREVIEW, FULL = 10.0, 100.0


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
