"""Pictures of results, each drawn from the numbers that stand beside it as JSON or CSV."""

import collections
import statistics
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from scipy import stats

from basisnet_jax.workdir import files

LEVEL = 0.95  # of intervals
NUMBERED, CELLS = 20, 250  # classes, up to which a confusion matrix has numbers and names; its cells a side, at most
FINAL, PREVIEW, CHOSEN = "#1f4e79", "#b8860b", "#c0392b"
COLORS, MARKERS = (FINAL, CHOSEN, PREVIEW, "#2e7d5b", "#6a4c93", "#444444"), "so^D"


def early_termination(report: dict, path: str) -> None:
    """Accuracy against mean multiply-adds as more and more images stop at the preview, the chosen point marked."""
    early = report["early_termination"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_early_termination(axes, early["curve"], early, report["split"])
    axes.set_title("Early termination: what stopping at the preview saves and costs")
    axes.legend(loc="lower right")
    save(figure, path)


def draw_early_termination(axes: Axes, curve: list[dict], chosen: dict | None, split: str) -> None:
    """The curve from "none stops" to "all stop", and the chosen point where there is one, with labels for a legend."""
    cost = [point["mean_madds"] / 1e6 for point in curve]
    top1 = [100 * point["top1"] for point in curve]
    axes.plot(cost, top1, color=FINAL, linewidth=2)
    axes.plot(cost[0], top1[0], "o", color=FINAL, label=f"no image stops: {top1[0]:.1f} % at {cost[0]:.2f}M")
    axes.plot(
        cost[-1], top1[-1], "s", color=PREVIEW, label=f"all stop at the preview: {top1[-1]:.1f} % at {cost[-1]:.2f}M"
    )
    if chosen is not None:
        x, y = chosen["mean_madds"] / 1e6, 100 * chosen["top1"]
        saved = 1 - x / cost[0]
        label = f"chosen: {y:.1f} % at {x:.2f}M, {chosen['share']:.0%} stop, {saved:.0%} saved"
        axes.plot(x, y, "*", color=CHOSEN, markersize=16, label=label)
    axes.set_xlabel("multiply-adds per image, on average (millions)")
    axes.set_ylabel(f"top-1 on the {split} split (%)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)


def confusion(labels: np.ndarray, answers: dict[str, np.ndarray], names: Sequence[str], split: str, path: str) -> None:
    """Which classes are taken for which, a matrix for each of the `answers`, predictions [n] of labels [n]."""
    side = max(3.5, 0.36 * len(names)) if len(names) <= NUMBERED else 6
    figure = Figure(figsize=(side * len(answers) + 1.4, side + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(answers), squeeze=False)[0]
    for i, (axes, (head, predictions)) in enumerate(zip(panels, answers.items(), strict=True)):
        image = draw_confusion(axes, labels, predictions, names)
        axes.set_title(f"{head.replace('_', ' ')}: top-1 {100 * np.mean(labels == predictions):.1f} %", fontsize=11)
        if i:
            axes.set(ylabel="", yticklabels=[])
    figure.colorbar(image, ax=panels, label=f"share of a label's images, {split} split", aspect=30, shrink=0.8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of names in letters that the font lacks
        save(figure, path)


def draw_confusion(axes: Axes, labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> AxesImage:
    """A row for each label, a column for each prediction; with few classes their numbers of images are in it.

    Of many classes, neighbours share a cell, which has the largest share in it: one pair of a thousand stays visible.
    """
    count = len(names)
    block = -(-count // CELLS)
    pairs, images = np.unique(np.stack([labels, predictions]), axis=1, return_counts=True)
    shares, cells = np.zeros(2 * [-(-count // block)]), tuple(pairs // block)
    np.maximum.at(shares, cells, images / np.bincount(labels, minlength=count)[pairs[0]])
    # By the root of the share: most confusions are of a few images.
    ends = (-0.5, count - 0.5)
    image = axes.imshow(
        shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), extent=(*ends, *ends[::-1]), interpolation="none"
    )
    if count <= NUMBERED:
        for (label, prediction), number, share in zip(
            pairs.T, images, images / np.bincount(labels)[pairs[0]], strict=True
        ):
            color = "white" if share > 0.4 else "black"
            axes.text(
                prediction, label, f"{number}", ha="center", va="center", fontsize=7 if count <= 12 else 5, color=color
            )
        short = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
        axes.set_yticks(range(count), short, fontsize=8, parse_math=False)
        axes.set_xticks(
            range(count), short, fontsize=8, rotation=90 if max(map(len, short)) > 2 else 0, parse_math=False
        )
    axes.set_xlabel("prediction" if count <= NUMBERED else "prediction, by its number")
    axes.set_ylabel("label" if count <= NUMBERED else "label, by its number")
    return image


def accuracy_against_madds(rows: list[dict], path: str) -> None:
    """Test accuracy against multiply-adds: each network a point, and the Pareto front of each kind of model.

    Args:
      rows: of a `sweep.csv`.
      path: of the PNG.
    """
    points = averaged(rows)
    figure, axes = _of_sweep(points, "Accuracy against cost")
    for model in sorted({point["model"] for point in points}, key=order):
        i = order(model)
        ours = [point for point in points if point["model"] == model]
        cost, mean, error = ([point[name] for point in ours] for name in ("madds", "mean", "error"))
        cost = [value / 1e6 for value in cost]
        axes.errorbar(
            cost, mean, _bars(mean, error), fmt=MARKERS[i], color=COLORS[i], alpha=0.75, capsize=3, elinewidth=1
        )
        front = pareto(list(zip(cost, mean, strict=True)))
        axes.plot(*zip(*front, strict=True), MARKERS[i] + "-", color=COLORS[i], linewidth=2, label=model)
        for point, x in zip(ours, cost, strict=True):
            text = f"{point['width']:g}" + (f" x {point['num_bases']}" if point["num_bases"] > 1 else "")
            axes.annotate(text, (x, point["mean"]), (4, -11), textcoords="offset points", fontsize=7, color=COLORS[i])
    axes.set_xlabel("multiply-adds per image (millions), preview and mixing counted")
    axes.margins(x=0.1)
    axes.legend(loc="best", title="Pareto front of (width x bases)")
    save(figure, path)


def accuracy_against_bases(rows: list[dict], path: str) -> None:
    """Test accuracy against the number of bases, a line for each width and kind of model; static ones level, dashed.

    Args as above. Without a model that has bases there is nothing to draw, and no file.
    """
    points = averaged(rows)
    widths = sorted({point["width"] for point in points})
    lines = collections.defaultdict(list)
    for point in sorted(points, key=lambda point: (order(point["model"]), point["width"], point["num_bases"])):
        lines[point["model"], point["width"], point["others"]].append(point)
    if all(model == "static" for model, _, _ in lines):
        return
    figure, axes = _of_sweep(points, "Accuracy against the number of bases")
    for i, ((model, width, others), line) in enumerate(lines.items()):
        color = COLORS[widths.index(width) % len(COLORS)]
        label = ", ".join(filter(None, [model, f"width {width:g}", others]))
        bases, mean, error = ([point[name] for point in line] for name in ("num_bases", "mean", "error"))
        if model == "static":
            axes.axhline(mean[0], color=color, linestyle="--", linewidth=1, label=label)
        else:
            bases = [count * 1.01**i for count in bases]  # so that bars do not hide each other
            axes.errorbar(
                bases, mean, _bars(mean, error), fmt=MARKERS[order(model)] + "-", color=color, capsize=3, label=label
            )
    counts = sorted({point["num_bases"] for point in points if point["model"] != "static"})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("bases")
    axes.legend(loc="best", fontsize=8)
    save(figure, path)


def save(figure: Figure, path: str) -> None:
    with files.replacing(path, "wb") as file:
        figure.savefig(file, dpi=120, format="png")


def averaged(rows: list[dict]) -> list[dict]:
    """Each network and setting as one point: mean test accuracy over its seeds, in %, and half of a 95 % interval.

    What the name of a run says besides model, width, bases and seed is the setting, `others`. The interval is
    Student's, and 0 (no bar) for a single seed.
    """
    groups = collections.defaultdict(list)
    for row in rows:
        parts = row["run"].split(",")
        others = ",".join(part for part in parts if part.partition("=")[0] not in ("model", "width", "bases", "seed"))
        key = row["model"], float(row["width"]), int(row["num_bases"]), float(row["madds"]), others
        groups[key].append(100 * float(row["top1"]))
    points = []
    for key, top1 in groups.items():
        point = dict(zip(("model", "width", "num_bases", "madds", "others"), key, strict=True))
        points.append({**point, "mean": statistics.mean(top1), "error": half_interval(top1), "n": len(top1)})
    return points


def half_interval(values: list[float]) -> float:
    """Half of the 95 % interval of their mean, by Student's t; 0 for one value."""
    n = len(values)
    return stats.t.ppf((1 + LEVEL) / 2, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else 0.0


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, accuracy), those that no other one matches at a lower cost, by rising cost."""
    front = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def order(model: str) -> int:
    return ("static", "basisnet", "condconv", "dynamic").index(model)


def _of_sweep(points: list[dict], title: str):
    seeds = {point["n"] for point in points}
    over = f"{min(seeds)} seeds" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds"
    over = f"mean and 95 % interval, {over}" if max(seeds) > 1 else "one seed"
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(f"{title} ({over})", fontsize=11)
    axes.set_ylabel("test top-1 (%)")
    axes.grid(alpha=0.3)
    return figure, axes


def _bars(mean: list[float], error: list[float]) -> list[list[float]]:
    """Lengths below and above: an accuracy ends at 0 and at 100 %, as Student's interval does not."""
    pairs = list(zip(mean, error, strict=True))
    return [[min(bar, middle) for middle, bar in pairs], [min(bar, 100 - middle) for middle, bar in pairs]]
