"""Labels for image files. Inference really stops: the specialist runs only where the preview is not confident."""

import json
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np
from flax import nnx

from basisnet_jax import early_exit, evaluate, madds, models, runs
from basisnet_jax.basisnet import BasisNet
from basisnet_jax.data import folder, pipeline
from basisnet_jax.errors import UserError


def predict(
    workdir: str, paths: list[str], which: str | None = None, threshold: float | None = None, *, as_json: bool = False
) -> None:
    """Prints one line for every image file: a row of a table, or an object {file, label, confidence, stage, madds}.

    Args:
      workdir: of a run, trained or imported.
      paths: image files of any kind that a folder of training images may hold.
      which: a step, "best" (on the validation split), or None for the newest.
      threshold: at which the preview's confidence ends inference; None takes the one that evaluated this step.

    Raises:
      UserError: there are no paths, no such run or checkpoint; or, after all others were answered and each of them was
        named on stderr, some files cannot be read.
    """
    if not paths:
        raise UserError("no images given, expected basisnet predict --workdir=DIR IMAGE...")
    run = runs.load(workdir, which)
    names = runs.load_classes(workdir, run.config.num_classes)
    answer = make_answer(run, evaluated_threshold(workdir, run.step) if threshold is None else threshold)
    width = max(map(len, ("file", *paths)))
    if not as_json:
        print(f"{'file':<{width}}  confidence  {'stage':<10}  {'MAdds':>8}  label")
    unread = 0
    for path in paths:
        try:
            image = pipeline.evaluation_image(run.config, folder.encode(pathlib.Path(path)))
        except UserError:
            raise
        except Exception as error:  # whatever Pillow or TensorFlow makes of a broken file
            print(f"basisnet: {folder.unreadable(path, error)}", file=sys.stderr)
            unread += 1
            continue
        label, confidence, stage, cost = answer(image)
        if as_json:
            row = {"file": path, "label": names[label], "confidence": confidence, "stage": stage, "madds": cost}
            print(json.dumps(row), flush=True)
        else:
            row = f"{path:<{width}}  {confidence:>10.4f}  {stage:<10}  {cost / 1e6:>7.2f}M  {names[label]}"
            print(row, flush=True)
    if unread:
        raise UserError(f"{unread} of {len(paths)} files could not be read")


def make_answer(run: runs.Run, threshold: float) -> Callable[[np.ndarray], tuple[int, float, str, int]]:
    """`answer(image)`: label, confidence, stage that answered and multiply-adds spent, for uint8 [H, W, C].

    The stage is "preview" where its confidence reaches the threshold, else "specialist"; a model without a preview
    answers as "network".
    """
    config, model = run.config, run.model
    items = madds.count(models.create_abstract(config), evaluate.image_shape(config))

    def best(logits):
        return logits.argmax(-1)[0], early_exit.confidence(logits)[0]

    @nnx.jit
    def first(model, images):
        images = evaluate.normalize(images, config)
        if isinstance(model, BasisNet):
            logits, coefficients = model.preview_stage(images)
            return best(logits), coefficients
        outputs = model(images)
        return best(getattr(outputs, "logits", outputs)), None

    @nnx.jit
    def second(model, images, coefficients):
        return best(model.specialist_stage(evaluate.normalize(images, config), coefficients))

    def answer(image):
        (label, confidence), coefficients = first(model, image[None])
        stage, cost = "preview", madds.preview_only(items)
        if coefficients is None:
            stage, cost = "network", madds.total(items)
        elif float(confidence) < threshold:
            label, confidence = second(model, image[None], coefficients)
            stage, cost = "specialist", madds.total(items)
        return int(label), float(confidence), stage, cost

    return answer


def evaluated_threshold(workdir: str, step: int) -> float:
    """The threshold in `evaluation.json` if that is of this step; without one no image stops at the preview."""
    path = os.path.join(workdir, "evaluation.json")
    if not os.path.exists(path):
        return early_exit.NONE_STOPS
    try:
        with open(path) as file:
            report = json.load(file)
        if report["step"] != step or "early_termination" not in report:
            return early_exit.NONE_STOPS
        return float(report["early_termination"]["threshold"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
