"""The report's sections on the two stages: what stopping at the preview saves and costs, and which images stop."""

import shlex

import numpy as np

from basisnet_jax import early_exit
from basisnet_jax.early_exit import Point
from basisnet_jax.report import figures, measure, page
from basisnet_jax.report.measure import Measured
from basisnet_jax.report.page import Html, element, millions, percent

GALLERY = 20  # images


def section(workdir: str, measured: Measured, curve: list[Point], chosen: Point | None) -> Html | None:
    """The curve, with the chosen point where there is one, and the reliability diagram; None without a preview."""
    if not measured.has_preview:
        return None
    rule, first, last = measured.rule, curve[0], curve[-1]
    if chosen:
        text = (
            f"An image stops where the preview's confidence ({rule.criterion}) is at least {rule.threshold:.4f}, "
            f"{measure.origin(rule)}. Of the {len(measured.rows['top1']):,} images of the {measured.split} split "
            f"{percent(chosen.share, 1)} stop. {millions(chosen.mean_madds)} multiply-adds are spent on average, not "
            f"{millions(first.mean_madds)}, and top-1 is {percent(chosen.top1)}, not {percent(first.top1)}."
        )
        star = f"; the star is the chosen point, {percent(chosen.top1)} at {millions(chosen.mean_madds)}"
    else:
        text, star = "No threshold has been chosen yet.", ""
    hint = None
    if not chosen or rule.chosen_on != measure.CALIBRATED:
        command = (
            f"basisnet calibrate {shlex.quote(f'--workdir={workdir}')} --max_drop={measured.run.config.max_drop:g}"
        )
        hint = page.joined(" Calibration chooses it for a limit, with 95 % intervals: ", element("code", command))
    drawing = figures.early_termination(
        [point._asdict() for point in early_exit.thin(curve)], chosen and chosen._asdict(), measured.split
    )
    saving = page.picture(
        drawing,
        "Cost and accuracy",
        "From right to left more images stop at the preview: as long as the curve is flat, that costs nothing.",
        f"Top-1 against mean multiply-adds, from {percent(first.top1)} at {millions(first.mean_madds)}, none stopping, "
        f"to {percent(last.top1)} at {millions(last.mean_madds)}, all stopping{star}.",
    )
    return page.joined(element("p", text, hint), page.figures(saving, reliability(measured)))


def reliability(measured: Measured) -> Html:
    """How far the preview's probabilities are from how often it is right."""
    rule, right = measured.rule, measured.rows["preview_top1"]
    confidence = measure.preview_confidence(measured)
    bins = measure.reliability(confidence, right)
    caption = (
        "Where a bar ends on the dashed line, the preview is right as often as its confidence says. "
        f"Its mean confidence is {percent(confidence.mean(dtype=float), 1)}. "
        f"Its top-1 is {percent(right.mean(dtype=float), 1)}. "
        f"The expected calibration error is {percent(measure.calibration_error(bins), 1)}."
    )
    if rule and rule.temperature != 1:
        caption += f" The fitted temperature, {rule.temperature:.3f}, is in these numbers."
    listed = (f"{percent(b.accuracy, 0)} of {b.count} at {b.low:.1f} to {b.high:.1f}" for b in bins)
    on_axis = rule.threshold if rule and rule.criterion == early_exit.CRITERIA[0] else None
    title, alt = "Reliability of the preview", f"Top-1 by confidence: {', '.join(listed)}."
    return page.picture(figures.reliability(bins, on_axis), title, caption, alt)


def galleries(measured: Measured) -> Html:
    """Images that show what the stages make of them."""
    rows, names = measured.rows, measured.classes
    stops = measured.rule.stops(rows["confidence"]) if measured.rule else np.zeros(len(rows["top1"]), bool)
    preview = measure.preview_confidence(measured) if measured.has_preview else None

    def answers(i):
        """Who takes image i for what, and how probable that is to them."""
        if measured.has_preview:
            yield f"preview: {names[rows['preview_logits'][i].argmax()]}, {percent(preview[i], 0)}"
        if not stops[i]:
            stage = "specialist: " if measured.has_preview else ""
            yield f"{stage}{names[rows['prediction'][i]]}, {percent(rows['probability'][i], 0)}"

    def shown(i):
        name = names[rows["label"][i]]
        image = element("img", src=page.thumbnail(measured.images[i]), alt=f"Image {i} of the split, of class {name}")
        text = element("figcaption", element("strong", name), *(element("span", line) for line in answers(i)))
        return element("li", element("figure", image, text))

    lead = (
        f"Among the first {len(measured.images):,} images of the {measured.split} split; each class has its turn. In "
        "bold the label, below it the prediction and its probability."
    )
    found = [
        page.joined(
            element("h3", f"{gallery.title}: {gallery.count:,}"),
            page.joined(element("p", gallery.caption), element("ul", *map(shown, gallery.rows), class_="gallery"))
            if gallery.count
            else None,
        )
        for gallery in measure.galleries(measured, GALLERY)
    ]
    return page.joined(element("p", lead), *found)
