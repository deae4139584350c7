"""Labels for image files. Inference really stops: the specialist runs only where the preview is not confident."""

import contextlib
import csv
import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from basisnet_jax import export as exports
from basisnet_jax.data import files, folder
from basisnet_jax.early_exit import Answers, Rule
from basisnet_jax.errors import UserError, one_line
from basisnet_jax.inference import predictions
from basisnet_jax.inference.predictions import Prediction
from basisnet_jax.preprocess import Preprocess
from basisnet_jax.workdir import runs

BATCH_SIZE = 64  # images, where there are so many
FIELDS = ("file", "label", "confidence", "stage", "madds")


def predict_files(
    workdir: str | None,
    inputs: list[str],
    which: str | None = None,
    threshold: float | None = None,
    *,
    export: str | None = None,
    form: str = "table",
    top: int | None = None,
) -> None:
    """Prints file, label, confidence, the stage that answered and the multiply-adds spent, in the order of the inputs.

    The stage is "preview" where its confidence reaches the threshold, else "specialist"; a model without a preview
    answers as "network". The confidence is the label's probability.

    Args:
      workdir: of a run, trained or imported.
      inputs: image files of any kind that a folder of training images may hold; folders, for all such files in them, by
        name; or "-", for the files and folders that stdin lists, one a line.
      which: a step, "best" (on the validation split), or None for the newest.
      threshold: at which the preview's confidence, its largest probability, ends inference. None takes the rule that
        `basisnet calibrate` found for this step or, where it never ran, the one that evaluated it.
      export: a folder that `basisnet export` wrote, whose files answer in place of a run's model; workdir is None then,
        and a threshold is one of the criterion that was exported.
      form: "table", "json" (an object a line) or "csv". Bytes of a file's name that are no UTF-8 become \\udcXX.
      top: how many of the best classes are told with their probabilities, where there are so many; None: none but the
        best. A JSON object then has "top", a list of {"label", "probability"}; CSV has columns of its own for each.

    Raises:
      UserError: there are no images, no such run or checkpoint; or, after all others were answered and each of them was
        named on stderr, some files cannot be read.
    """
    paths = files.list_files(inputs)
    if not paths:
        raise UserError(
            "no images given, expected basisnet predict --workdir=DIR with files, folders or - for a list on stdin"
        )
    if export is not None:
        seen, names, costs, answers = of_export(export, threshold)
    else:
        run = runs.load(workdir, which)
        names, seen = runs.load_classes(workdir, run.config.num_classes), run.preprocess
        rule = runs.rule(workdir, run.step, threshold)
        if rule is None and run.config.model == "basisnet":
            print(
                f"basisnet: no threshold is known for step {run.step}: no image stops at the preview", file=sys.stderr
            )
        rule = rule or Rule()
        size, costs = min(BATCH_SIZE, len(paths)), predictions.costs_of(run.model, seen.shape)

        def answers(batches):
            return predictions.answers(run.model, batches, rule, size, predictions.normalizer(seen))

    top = min(top or 0, len(names))
    show = printer(form, max(len(one_line(path)) for path in ("file", *paths)), top)
    waiting, unread = deque(), 0  # paths that were read and have no answer yet; how many could not be read

    def batches():
        nonlocal unread
        images = []
        for path, image in reads:
            if isinstance(image, Exception):
                print(f"basisnet: {one_line(folder.unreadable(path, image))}", file=sys.stderr)
                unread += 1
                continue
            waiting.append(path)
            images.append(image)
            if len(images) == BATCH_SIZE:
                yield np.stack(images)
                images = []
        if images:
            yield np.stack(images)

    # Whatever ends this, such as a closed pipe, first ends the threads that read.
    with contextlib.closing(files.read(seen, paths)) as reads:
        for logits, stopped in answers(batches()):
            for row in rows(logits, predictions.prediction(logits, stopped, costs, names), names, top):
                show({"file": waiting.popleft(), **row})
    if unread:
        raise UserError(f"{unread} of {len(paths)} files could not be read")


def of_export(directory: str, threshold: float | None) -> tuple[Preprocess, list[str], dict[str, int], Callable]:
    """What the export sees of an image, the names of the classes, its costs, and its answers for batches."""
    exported = exports.load(directory)
    rule = exported.rule if threshold is None else exported.rule._replace(threshold=threshold)

    def answers(batches: Iterable[np.ndarray]) -> Iterator[Answers]:
        return exported.answers(itertools.chain.from_iterable(batches), rule)

    return exported.preprocess, exported.manifest["classes"], exported.costs, answers


def rows(logits: np.ndarray, found: Prediction, names: list[str], top: int) -> Iterator[dict]:
    """What is told of each image of a batch besides its file; with `top` its best classes too, by their logits."""
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    for i, label in enumerate(found.labels):
        probabilities = found.probabilities[i]
        row = (found.names[i], float(probabilities[label]), str(found.stage[i]), int(found.madds[i]))
        told = {"top": [{"label": names[k], "probability": float(probabilities[k])} for k in best[i]]} if top else {}
        yield dict(zip(FIELDS[1:], row, strict=True)) | told


def printer(form: str, width: int, top: int) -> Callable[[dict], None]:
    """`show(row)` prints one answer, with its `top` classes; what stands above all answers is printed now."""
    if form == "json":
        return lambda row: print(json.dumps(row), flush=True)
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([*FIELDS, *(f"{name}_{k}" for k in range(1, top + 1) for name in ("label", "probability"))])

        def write(row):
            best = (cell for of in row.get("top", []) for cell in of.values())
            file = row["file"].encode("utf-8", "backslashreplace").decode()
            writer.writerow([file, *(row[field] for field in FIELDS[1:]), *best])

        return write

    def show(row):
        numbers = f"{row['confidence']:>10.4f}  {row['stage']:<10}  {row['madds'] / 1e6:>7.2f}M"
        best = (f"{of['label']} {of['probability']:.4f}" for of in row.get("top", []))
        print(f"{one_line(row['file']):<{width}}  {numbers}  {', '.join(best) or row['label']}", flush=True)

    print(f"{'file':<{width}}  confidence  {'stage':<10}  {'MAdds':>8}  label{', probability' if top else ''}")
    return show
