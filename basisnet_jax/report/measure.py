"""The numbers of a run's report: one pass over a split, and what follows from it."""

import itertools
import json
import os
from typing import NamedTuple

import numpy as np

from basisnet_jax import coefficients, early_exit, madds
from basisnet_jax.data.pipeline import Dataset
from basisnet_jax.distributed import partition
from basisnet_jax.early_exit import Point, Rule
from basisnet_jax.errors import UserError
from basisnet_jax.inference import by_class, evaluate
from basisnet_jax.workdir import data_record, files, runs

CALIBRATED = "early_exit.json"  # what a rule says that `basisnet calibrate` found


class Measured(NamedTuple):
    """A run's checkpoint on a split of n images, of which the first m are kept."""

    run: runs.Run
    data: Dataset
    split: str
    classes: list[str]  # names by label
    layers: dict[str, int]  # where each layer's coefficients are among the K vectors, in the order in which layers run
    items: list[madds.Item]
    rule: Rule | None  # when an image stops; None where none was calibrated or evaluated, or there is no preview
    rows: dict[str, np.ndarray]  # of `evaluate.make_per_example`, [n, ...]
    images: np.ndarray  # [m, H, W, C], uint8

    @property
    def has_preview(self) -> bool:
        return "preview_logits" in self.rows


def measure(workdir: str, which: str | None, split: str | None, images: int) -> Measured:
    """Evaluates the averaged weights of a checkpoint on a split (None: of tests), as `basisnet evaluate` does."""
    run = runs.load(workdir, which)
    config = run.config
    data = data_record.opened(workdir)
    split = split or config.test_split
    rule = runs.rule(workdir, run.step, None) if config.model == "basisnet" else None
    mesh = partition.create_mesh(config.eval_batch_size, config.fsdp)
    per_example = evaluate.make_per_example(run.functions, run.preprocess.normalize, mesh, rule, logits=True)
    return Measured(
        run,
        data,
        split,
        runs.load_classes(workdir, config.num_classes),
        in_order(run.model.coefficient_names() if config.model != "static" else [], run.items),
        run.items,
        rule,
        per_example(run.params, run.batch_stats, data.eval_batches(split)),
        first_images(data, split, images),
    )


def in_order(layers: list[str], items: list[madds.Item]) -> dict[str, int]:
    """The layers, or blocks, with their places in the list, by when they run: the count's items are in that order."""
    paths = [item.name.partition("/")[2] + "/" for item in items if item.stage != "preview"]

    def turn(layer):
        return next((i for i, path in enumerate(paths) if path.startswith(f"{layer}/")), 0)

    return {layer: layers.index(layer) for layer in sorted(layers, key=turn)}


def first_images(data: Dataset, split: str, most: int) -> np.ndarray:
    """At most so many images, uint8 [m, H, W, C], in the order in which evaluation sees them."""
    batches = itertools.islice(data.eval_batches(split), -(-most // data.eval_batch_size))
    return np.concatenate([batch["image"][batch["mask"].astype(bool)] for batch in batches])[:most]


def read_log(workdir: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{split: {metric: [(step, value), ...]}} of `metrics.jsonl`; empty where there is none, as of imported weights."""
    path = os.path.join(workdir, "metrics.jsonl")
    log: dict[str, dict[str, list]] = {}
    try:
        with files.reading(path) as file:
            lines = [line for line in file if line.endswith("\n")]  # the last may be about to be written
        for line in lines:
            row = json.loads(line)
            of_split = log.setdefault(row.pop("split"), {})
            step = row.pop("step")
            for name, value in row.items():
                of_split.setdefault(name, []).append((step, value))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return log


def stopping_curve(measured: Measured) -> tuple[list[Point], Point | None]:
    """What every threshold gives, from "none stops" to "all stop", and that of the rule; nothing without a preview."""
    if not measured.has_preview:
        return [], None
    rows, items = measured.rows, measured.items
    costs = madds.preview_only(items), madds.total(items)
    points = early_exit.curve(rows["confidence"], rows["preview_top1"], rows["top1"], *costs)
    return points, early_exit.at(points, measured.rule.threshold) if measured.rule else None


def by_class_of(measured: Measured) -> dict:
    """What evaluation.json says of these images: accuracy of each head and by class; with a rule, of both."""
    rows, costs = measured.rows, (madds.preview_only(measured.items), madds.total(measured.items))
    found = evaluate.summarize(rows)
    found |= by_class.describe(rows["label"], by_class.answers(rows, measured.rule), measured.classes)
    if measured.rule:
        found["early_termination"] = evaluate.early_termination(rows, costs, measured.rule)
    return found


def origin(rule: Rule) -> str:
    """Where the threshold comes from."""
    known = {CALIBRATED: "calibrated", "given": "given to the evaluation"}
    return known.get(rule.chosen_on, f"chosen by the evaluation on the {rule.chosen_on} split")


class Bin(NamedTuple):
    """Images whose confidence is in low..high: how many, how sure and how right they are on average."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[Bin]:
    """The bins of equal width that have images, of confidences in 0..1 and answers that are right (1) or not (0)."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        Bin(
            i / bins, (i + 1) / bins, int(inside.sum()), float(confidence[inside].mean()), float(correct[inside].mean())
        )
        for i in range(bins)
        if (inside := places == i).any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """The expected calibration error: how far confidence is from accuracy, on average over images (Guo et al. 2017)."""
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / sum(b.count for b in bins)


def preview_confidence(measured: Measured) -> np.ndarray:
    """The preview's largest probability at the rule's temperature, [n], whatever the rule's criterion."""
    scaled = (measured.rule or Rule()).scaled(measured.rows["preview_logits"])
    return np.asarray(early_exit.confidence(scaled))


def class_means(coefficients_BKN: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Mean coefficients [K, N] of every class that has images."""
    return {int(label): coefficients_BKN[labels == label].mean(axis=0) for label in np.unique(labels)}


def most_particular(means: dict[int, np.ndarray], most: int) -> list[int]:
    """The classes, in order, whose mean coefficients are farthest from the mean over all classes."""
    centre = np.mean(list(means.values()), axis=0)
    by_distance = sorted(means, key=lambda label: -np.sum((means[label] - centre) ** 2))
    return sorted(by_distance[:most])


def entropy_by_layer(coefficients_BKN: np.ndarray) -> np.ndarray:
    """[K]: mean entropy of each layer's mixtures as a share of log N."""
    layers = range(coefficients_BKN.shape[1])
    return np.array([float(coefficients.entropy(coefficients_BKN[:, k : k + 1])) for k in layers])


def principal_components(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, d] to the coordinates [n, 2] of most variance, and the share of all variance along each."""
    centred = points - points.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # a [d, d] problem, however many points there are
    order = np.argsort(-variances)[:2]
    return centred @ axes[:, order], variances[order] / max(variances.sum(), np.finfo(float).tiny)


class Gallery(NamedTuple):
    title: str
    caption: str
    count: int  # of all such images among those kept
    rows: np.ndarray  # of those that are shown


def galleries(measured: Measured, most: int) -> list[Gallery]:
    """Among the images kept: who stopped and who needed the specialist, right and wrong; without a preview, the last.

    Each class has its turn with the image that shows the point best, then with its second best, and so on.
    """
    rows = {name: column[: len(measured.images)] for name, column in measured.rows.items()}
    right = rows["top1"] > 0
    found = []

    def add(title, caption, chosen, score):
        rows_ = by_turns(np.flatnonzero(chosen), score, rows["label"], most)
        found.append(Gallery(title, caption, int(np.sum(chosen)), rows_))

    if not measured.has_preview:
        add("Right", "The surest right answers of each class.", right, rows["probability"])
        add("Wrong", "The surest wrong answers of each class.", ~right, rows["probability"])
        return found
    stops = (measured.rule or Rule()).stops(rows["confidence"])
    preview_right, sure = rows["preview_top1"] > 0, rows["confidence"]
    if measured.rule:
        add("Stopped early, right", "The preview reaches the threshold and is right.", stops & preview_right, sure)
        add("Stopped early, wrong", "The preview reaches the threshold and is wrong.", stops & ~preview_right, sure)
    needed = "The preview is below the threshold, and the specialist is right. First those that the preview gets wrong."
    add("Needed the specialist, right", needed, ~stops & right, ~preview_right - sure)
    failed = "The preview is below the threshold, and the specialist is wrong. First the surest errors."
    add("Needed the specialist, wrong", failed, ~stops & ~right, rows["probability"])
    return found


def by_turns(chosen: np.ndarray, score: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows `chosen`: the one of the highest score of each class, then the second of each, ..."""
    ordered = chosen[np.argsort(-score[chosen], kind="stable")]
    turns = np.empty(len(ordered), int)
    for label in np.unique(labels[ordered]):
        of_class = labels[ordered] == label
        turns[of_class] = np.arange(of_class.sum())
    return ordered[np.argsort(turns, kind="stable")][:most]
