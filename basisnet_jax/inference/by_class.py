"""Results by class: what each class is taken for, and whether a model does better than guessing.

All of it follows from the labels and the predictions of a split's examples, so it is as exact as these.
"""

import csv
import math

import numpy as np

from basisnet_jax.early_exit import Rule
from basisnet_jax.workdir import files

LISTED = 20  # classes; of more the table shows those of the lowest and the highest recall
ENDS = 5  # how many of each
PAIRS = 10  # of classes that are taken for each other, in evaluation.json
ABOUT, HARDLY = 0.05, 0.05  # how near a loss is to log(classes), and top-1 to the baseline, when nothing is learned
HEADS = {"preview": "preview_", "final": "", "early_termination": "early_termination_"}  # what their fields begin with


def answers(rows: dict[str, np.ndarray], rule: Rule | None) -> dict[str, np.ndarray]:
    """The predictions [n] of each head and, with a rule, of both with early termination; `rows` as of evaluation."""
    if "preview_prediction" not in rows:
        return {"final": rows["prediction"]}
    found = {"preview": rows["preview_prediction"], "final": rows["prediction"]}
    if rule is not None:
        stops = rule.stops(rows["confidence"])
        found["early_termination"] = np.where(stops, found["preview"], found["final"])
    return found


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The mean recall of the classes that have images."""
    counts, right = np.bincount(labels), np.bincount(labels, weights=labels == predictions)
    return float(np.mean(right[counts > 0] / counts[counts > 0]))


def describe(labels: np.ndarray, found: dict[str, np.ndarray], names: list[str]) -> dict:
    """What evaluation.json says by class, of labels [n] and the predictions [n] of `answers`.

    "classes": count, precision and recall of each; None is that of a class that is never predicted, or has no images.
    "confused": the pairs of classes that the final answer takes for each other most often.
    """
    if len(labels) and max(labels.max(), *(column.max() for column in found.values())) >= len(names):
        raise ValueError(f"label {labels.max()}, expected one of 0 to {len(names) - 1}")
    counts = np.bincount(labels, minlength=len(names))
    rows = [{"class": name, "count": int(count)} for name, count in zip(names, counts, strict=True)]
    for head, predictions in found.items():
        taken = np.bincount(predictions, minlength=len(names))
        right = np.bincount(labels[labels == predictions], minlength=len(names))
        for i, row in enumerate(rows):
            row[f"{HEADS[head]}precision"] = float(right[i] / taken[i]) if taken[i] else None
            row[f"{HEADS[head]}recall"] = float(right[i] / counts[i]) if counts[i] else None
    wrong = [(pair, number["final"]) for pair, number in pairs(labels, {"final": found["final"]}) if pair[0] != pair[1]]
    wrong.sort(key=lambda of: -of[1])
    return {
        "majority_class": names[counts.argmax()],
        "classes": rows,
        "confused": [
            {"label": names[label], "prediction": names[prediction], "count": count}
            for (label, prediction), count in wrong[:PAIRS]
        ],
    }


def pairs(labels: np.ndarray, found: dict[str, np.ndarray]) -> list[tuple[tuple[int, int], dict[str, int]]]:
    """The confusion matrices as [((label, prediction), {head: images})], in order: all pairs that some image has."""
    numbers: dict[tuple[int, int], dict[str, int]] = {}
    for head, predictions in found.items():
        rows, counts = np.unique(np.stack([labels, predictions], axis=1), axis=0, return_counts=True)
        for (label, prediction), count in zip(rows.tolist(), counts.tolist(), strict=True):
            numbers.setdefault((label, prediction), dict.fromkeys(found, 0))[head] = count
    return sorted(numbers.items())


def write_csv(labels: np.ndarray, found: dict[str, np.ndarray], names: list[str], path: str) -> None:
    """A row for each pair of label and prediction, with how many images each head has of it; only for pairs that occur.

    A thousand classes have a million pairs, of which an evaluation meets a few in a hundred.
    """
    with files.replacing(path, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "prediction", *found])
        for (label, prediction), numbers in pairs(labels, found):
            writer.writerow([names[label], names[prediction], *numbers.values()])


def ends(classes: list[dict]) -> list[dict]:
    """All rows of "classes"; of more than `LISTED` those of the lowest and of the highest final recall."""
    if len(classes) <= LISTED:
        return classes
    ordered = sorted((row for row in classes if row["count"]), key=lambda row: row["recall"])
    return ordered if len(ordered) <= 2 * ENDS else [*ordered[:ENDS], *ordered[-ENDS:]]


def heads(report: dict) -> dict[str, str]:
    """The heads of a report, each with what its fields in "classes" begin with."""
    return {head: prefix for head, prefix in HEADS.items() if f"{prefix}recall" in report["classes"][0]}


def table(report: dict) -> str:
    """Count, precision and recall by class, and the classes that are confused most often."""
    classes, of_heads = report["classes"], heads(report)
    shown = ends(classes)
    width = min(max(len("class"), *(len(row["class"]) for row in shown)), 30)
    lines = [f"{'':{width + 8}}" + "".join(f"{head.replace('_', ' '):>20}" for head in of_heads)]
    lines += [f"{'class':<{width}}  images" + f"{'precision':>12}{'recall':>8}" * len(of_heads)]
    for row in shown:
        numbers = "".join(f"{text(row[f'{p}precision']):>12}{text(row[f'{p}recall']):>8}" for p in of_heads.values())
        lines.append(f"{row['class'][:width]:<{width}}{row['count']:>8}{numbers}")
    if len(shown) < len(classes):
        lines.append(f"These {len(shown)} of {len(classes)} classes have the lowest and the highest final recall.")
    if report["confused"]:
        lines.append("The most frequent errors of the final answer, label and prediction:")
        for of in report["confused"][:ENDS]:
            lines.append(f'{of["count"]:>8}  "{of["label"]}" predicted as "{of["prediction"]}"')
    return "\n".join(lines)


def text(share: float | None) -> str:
    return "-" if share is None else f"{share:.4f}"


def diagnosis(report: dict) -> str | None:
    """In words, which heads have learned nothing, and what to try; None where each has learned something."""
    classes, majority = report["classes"], report["majority_top1"]
    if majority == 1:  # one class in the split: nothing can be told
        return None
    reasons = []
    for head, prefix in heads(report).items():
        if head == "early_termination":
            continue
        top1, loss, guessing = report[f"{prefix}top1"], report[f"{prefix}loss"], math.log(len(classes))
        answered = [row["class"] for row in classes if row[f"{prefix}precision"] is not None]
        if len(answered) == 1:
            reasons.append(f'The {head} answer is "{answered[0]}" for every image.')
        elif top1 <= majority:
            always = f'Always answering "{report["majority_class"]}" gives {majority:.4f}.'
            reasons.append(f"The {head} top-1 is {top1:.4f}. {always}")
        elif abs(loss / guessing - 1) < ABOUT and top1 - majority < HARDLY * (1 - majority):
            reasons.append(f"The {head} loss is {loss:.3f}. Guessing gives log({len(classes)}) = {guessing:.3f}.")
    if not reasons:
        return None
    return "\n".join(
        [
            *reasons,
            "Try another --config.optimizer.learning_rate, a lower one first, or a larger --config.num_epochs.",
            "`basisnet report` shows images with their labels, and whether the loss still falls.",
        ]
    )
