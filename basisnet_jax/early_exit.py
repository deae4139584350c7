"""Early termination: where the preview is confident, its answer stands and the specialist never runs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NONE_STOPS = 1.1  # No confidence exceeds 1.


def confidence(preview_logits: jax.Array) -> jax.Array:
    """The largest softmax probability, float32: [B, classes] -> [B]. An image stops where it reaches the threshold."""
    return jnp.max(jax.nn.softmax(preview_logits.astype(jnp.float32)), axis=-1)


class Point(NamedTuple):
    """What one threshold gives on a split: fractions in 0..1, multiply-adds per image."""

    threshold: float
    share: float  # of images that stop at the preview
    top1: float
    mean_madds: float


def curve(
    confidence: np.ndarray, preview_correct: np.ndarray, correct: np.ndarray, preview_madds: float, madds: float
) -> list[Point]:
    """The points of every threshold that makes a difference, from "nobody stops" to "all stop".

    Args:
      confidence, preview_correct, correct: [examples]; the last two are 0 or 1 for the preview's and the final answer.
      preview_madds, madds: multiply-adds of an image that stops, and of one that does not.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    # Stopping the first k of this order is what a threshold does, except inside a run of equal confidences.
    ends = np.flatnonzero(np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)) + 1
    stopped = np.concatenate([[0], ends])
    gained = np.concatenate([[0], np.cumsum((preview_correct - correct)[order])])[stopped]
    share = stopped / len(confidence)
    thresholds = np.concatenate([[NONE_STOPS], sorted_confidence[ends - 1]])
    top1 = (np.sum(correct) + gained) / len(confidence)
    mean_madds = share * preview_madds + (1 - share) * madds
    return [Point(*map(float, row)) for row in zip(thresholds, share, top1, mean_madds, strict=True)]


def choose(points: list[Point], max_drop: float) -> float:
    """The threshold that saves most while top-1 falls by at most `max_drop` below that of no early termination."""
    floor = points[0].top1 - max_drop - 1e-9
    return min((point for point in points if point.top1 >= floor), key=lambda point: point.mean_madds).threshold


def at(points: list[Point], threshold: float) -> Point:
    """The point of the curve that any given threshold leads to; its `threshold` field is the given one."""
    reached = [point for point in points if point.threshold >= threshold]
    return (reached[-1] if reached else points[0])._replace(threshold=threshold)


def thin(points: list[Point], most: int = 101) -> list[Point]:
    """At most `most` of the points, evenly spread over the share of images that stop, both ends kept."""
    if len(points) <= most:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, most).round().astype(int)]
