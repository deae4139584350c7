"""Early termination: where the preview is confident, its answer stands and the specialist never runs.

A `Rule` says where that is, `curve` and `choose` what a threshold gives, and `TwoStage` is the inference that skips
the work.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import basis, calling
from basisnet_jax.basisnet import BasisNet

CRITERIA = ("max_softmax", "margin", "entropy")
NONE_STOPS = 1.1  # No confidence exceeds 1.
PATIENCE = 8  # batches that are previewed, at most, before the first of them has all its answers


def confidence(logits: jax.Array, criterion: str = "max_softmax") -> jax.Array:
    """How sure a head is, float32 in 0..1: [B, classes] -> [B]. An image stops where it reaches the threshold.

    max_softmax: the largest probability; margin: the largest less the second; entropy: 1 - entropy / log(classes).
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    if criterion == "max_softmax":
        return jnp.max(probabilities, axis=-1)
    if criterion == "margin":
        others = jnp.arange(probabilities.shape[-1]) != jnp.argmax(probabilities, axis=-1, keepdims=True)
        return jnp.max(probabilities, axis=-1) - jnp.max(jnp.where(others, probabilities, 0), axis=-1)
    if criterion == "entropy":
        return 1 - jnp.sum(jax.scipy.special.entr(probabilities), axis=-1) / np.log(probabilities.shape[-1])
    raise ValueError(f"criterion {criterion!r}, expected one of {', '.join(CRITERIA)}")


class Rule(NamedTuple):
    """An image stops where the confidence of its preview's logits, divided by `temperature`, reaches `threshold`."""

    threshold: float = NONE_STOPS
    criterion: str = "max_softmax"
    temperature: float = 1.0
    chosen_on: str = "given"  # what the threshold comes from

    def scaled(self, preview_logits: jax.Array) -> jax.Array:
        """Float32 logits whose softmax are the preview's probabilities: those of the temperature."""
        return preview_logits.astype(jnp.float32) / self.temperature

    def confidence(self, preview_logits: jax.Array) -> jax.Array:
        return confidence(self.scaled(preview_logits), self.criterion)

    def stops(self, confidence: np.ndarray) -> np.ndarray:
        """Where an image stops: float [B] -> bool [B]. In double precision, as the thresholds of `curve` are."""
        return np.asarray(confidence, np.float64) >= self.threshold


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


def within(points: list[Point], target_madds: float) -> float:
    """The threshold whose mean multiply-adds come nearest to `target_madds`, at least the preview's, from below."""
    affordable = [point for point in points if point.mean_madds <= target_madds * (1 + 1e-9)]
    return max(affordable, key=lambda point: point.mean_madds).threshold


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


class Answers(NamedTuple):
    """What two-stage inference makes of n images."""

    logits: np.ndarray  # [n, classes], float32: the specialist's; of an image that stopped, the preview's, `scaled`
    stopped: np.ndarray  # [n], bool


class TwoStage:
    """Inference whose specialist runs only where the preview is not sure.

    Its answers are those of running both stages on everything and choosing afterwards. The preview always runs on
    `batch_size` images, the specialist on one of eight sizes up to that: their number compiles nothing anew. Of two or
    more devices the preview has the first and the specialist the second, as on the paper's two processors.

    Args:
      model: in evaluation mode; its weights are those of now.
      rule: when an image stops.
      batch_size: of images, the most that are given at once.
      prepare: images [B, H, W, C] as given to images as the model takes them, on the device.
    """

    def __init__(
        self, model: BasisNet, rule: Rule, batch_size: int, prepare: Callable[[jax.Array], jax.Array] = lambda x: x
    ):
        self.rule, self.batch_size = rule, batch_size
        self.sizes = sorted({-(-batch_size * eighths // 8) for eighths in range(1, 9)})
        graph, state = nnx.split(model)
        leaves, tree = jax.tree.flatten(state)
        first, *others = jax.local_devices()
        second = others[0] if others else first
        of_device = {device: jax.device_put(leaves, device) for device in (first, second)}
        preview, *of_specialist = _programs(graph, tree, rule._replace(threshold=NONE_STOPS), prepare)
        self._preview = functools.partial(preview, of_device[first])
        self._specialist, self._synthesized = (
            functools.partial(program, of_device[second]) for program in of_specialist
        )

    def __call__(self, images: np.ndarray) -> Answers:
        """The answers for one batch [n, H, W, C] of at most `batch_size` images."""
        return next(self.stream([images]))

    def single(self, image: np.ndarray) -> Answers:
        """The answer (n = 1) for one image [H, W, C]: its kernels are mixed, and a plain network runs with them."""
        *results, coefficients = self._preview(image[None])
        logits, stopped = np.asarray(results[0]), self.rule.stops(results[1])
        if not stopped[0]:
            logits = np.asarray(self._synthesized(image[None], np.asarray(coefficients)))
        return Answers(logits, stopped)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[Answers]:
        """The answers for every batch, in order: the form for throughput.

        The next batch's preview runs, or waits on the device, while the specialist works. Undecided images of
        successive batches share full runs of the specialist, so that next to none of it is padding; for that a batch
        waits for at most `PATIENCE` others. The arrays given must stay as they are until then.
        """
        pool: deque[tuple[np.ndarray, ...]] = deque()  # of undecided images: where to put logits, image, coefficients
        running: deque[tuple[list[np.ndarray], jax.Array]] = deque()  # where to put the logits on their way
        started: deque[tuple[int, Answers]] = deque()  # batches that lack answers: how many undecided up to their end
        undecided = decided = 0

        def start():
            places, *inputs = zip(*(pool.popleft() for _ in range(min(len(pool), self.batch_size))), strict=True)
            size = next(size for size in self.sizes if size >= len(places))
            running.append((places, self._specialist(*(padded(np.stack(rows), size) for rows in inputs))))

        def finish():
            places, logits = running.popleft()
            for place, row in zip(places, np.asarray(logits), strict=False):  # the places end where padding begins
                place[:] = row
            return len(places)

        previewed = ((images, self._preview(padded(images, self.batch_size))) for images in batches)
        for (images, outputs), _ in itertools.pairwise(itertools.chain(previewed, [None])):  # the next one is started
            logits, sure, coefficients = (np.array(output)[: len(images)] for output in outputs)
            stopped = self.rule.stops(sure)
            pool.extend((logits[row], images[row], coefficients[row]) for row in np.flatnonzero(~stopped))
            undecided += np.sum(~stopped)
            started.append((undecided, Answers(logits, stopped)))
            impatient = len(started) > PATIENCE
            while len(pool) >= self.batch_size or (pool and impatient):
                start()
            while len(running) > 1 or (running and impatient):
                decided += finish()
            while started and started[0][0] <= decided:
                yield started.popleft()[1]
        while pool:
            start()
        while running:
            finish()
        yield from (answers for _, answers in started)


@functools.lru_cache(maxsize=16)  # so that the same model with other weights compiles nothing anew
def _programs(graph, tree, rule: Rule, prepare: Callable) -> list[Callable]:
    """The jitted `(weights, *inputs)` of preview, specialist and, of one image, its synthesized network."""

    def preview(model, images):
        logits, coefficients = model.preview_stage(prepare(images))
        return rule.scaled(logits), rule.confidence(logits), coefficients

    def specialist(model, images, coefficients):
        return model.specialist_stage(prepare(images), coefficients).astype(jnp.float32)

    def synthesized(model, image, coefficients):
        plain = basis.synthesize(model.specialist, coefficients[0])
        return plain(prepare(image), **calling.in_mode(plain, True)).astype(jnp.float32)

    def compiled(stage):
        # The weights are an argument: as constants, every one of the programs would hold them.
        return jax.jit(lambda leaves, *args: stage(nnx.merge(graph, tree.unflatten(leaves), copy=True), *args))

    return [compiled(stage) for stage in (preview, specialist, synthesized)]


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """[n, ...] with zeros behind it: [size, ...]."""
    if len(rows) > size:
        raise ValueError(f"a batch of {len(rows)}, expected at most {size}")
    return rows if len(rows) == size else np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))
