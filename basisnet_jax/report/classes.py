"""The report's section on classes: how well each is recognised, and which are confused."""

from basisnet_jax.inference import by_class
from basisnet_jax.report import figures, page
from basisnet_jax.report.measure import Measured
from basisnet_jax.report.page import Html, element, percent

PAIRED = "A row is a label, a column a prediction. Colours are shares of the label's images. The diagonal is right."


def section(measured: Measured, report: dict) -> Html:
    """`report`: as evaluation.json has it, of these images."""
    labels, names = measured.rows["label"], measured.classes
    heads, classes = by_class.heads(report), report["classes"]
    header = ["class", "images", *(f"{spelled(head)}, {of}" for head in heads for of in ("precision", "recall"))]

    def row(of):
        shares = (of[f"{prefix}{name}"] for prefix in heads.values() for name in ("precision", "recall"))
        return [of["class"], f"{of['count']:,}", *("-" if share is None else percent(share, 1) for share in shares)]

    shown = by_class.ends(classes)
    caption = "Precision: right answers among the predictions of a class. Recall: among the images of a class."
    if len(shown) < len(classes):
        caption += f" These {len(shown)} of {len(classes):,} classes have the lowest and the highest final recall."
    drawings = [
        page.picture(
            figures.confusion(labels, predictions, names),
            f"Confusion matrix: {spelled(head)}",
            PAIRED,
            f"Labels against predictions, {percent((labels == predictions).mean())} on the diagonal.",
        )
        for head, predictions in by_class.answers(measured.rows, measured.rule).items()
    ]
    if report["confused"]:
        rows = [[of["label"], of["prediction"], f"{of['count']:,}"] for of in report["confused"]]
        caption_of_pairs = "The most frequent errors of the final answer."
        drawings.append(page.table(("label", "prediction", "images"), rows, texts=2, caption=caption_of_pairs))
    all_rows = None
    if len(shown) < len(classes):
        all_rows = page.folded(f"All {len(classes):,} classes", page.table(header, [*map(row, classes)]))
    return page.joined(
        page.table(header, [*map(row, shown)], caption=caption),
        all_rows,
        page.figures(*drawings),
    )


def warning(report: dict) -> Html | None:
    """What is said where a head has learned nothing."""
    text = by_class.diagnosis(report)
    return element("p", text.replace("\n", " "), class_="note") if text else None


def spelled(head: str) -> str:
    return head.replace("_", " ")
