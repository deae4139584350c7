"""The report's drawings, as SVG of about 400 pixels, so that a phone shows the text in them as large as the page's.

Ink and lines have one colour for a light page and one for a dark page.
"""

import functools
import io
import warnings
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from basisnet_jax import plots
from basisnet_jax.report.measure import Bin

WIDTH = 4.2  # inches, of 96 pixels
INK = "#1c2331"
ON_DARK = {INK: "#e4e7ee", plots.FINAL: "#7cb4ea", plots.PREVIEW: "#e3b341", plots.CHOSEN: "#ff7b6d"}
STYLE = {
    "text.parse_math": False,  # names may have dollar signs
    "svg.fonttype": "none",  # the browser has fonts for letters that matplotlib's lacks
    "svg.hashsalt": "basisnet",  # the same drawing is the same text
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.axisbelow": True,
}
# Of the coloured classes: matplotlib's ten colours with mint for grey, which is for the others, and as many shapes.
COLOURS = [*matplotlib.color_sequences["tab10"][:7], "#66c2a5", *matplotlib.color_sequences["tab10"][8:]]
MARKERS = "osD^vP*X<>"
LONGEST = 26  # letters of a name


def drawn(draw: Callable[..., None]) -> Callable[..., str]:
    """`draw(figure, ...)` as a function of the rest that returns the SVG."""

    @functools.wraps(draw)
    def svg(*args, **kwargs):
        file = io.StringIO()
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")
            figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
            figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
            FigureCanvasSVG(figure)
            draw(figure, *args, **kwargs)
            figure.savefig(file, format="svg", dpi=200, metadata={"Date": None})
        return in_both_themes(file.getvalue())

    return svg


def in_both_themes(svg: str) -> str:
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(ON_DARK))
    dark = "".join(f"--c{i}:{colour};" for i, colour in enumerate(ON_DARK.values()))
    for i, colour in enumerate(ON_DARK):
        svg = svg.replace(colour, f"var(--c{i})")
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    start = svg.index("<svg")  # before it stands what a file needs
    end = svg.index(">", start) + 1
    return svg[start:end] + style + svg[end:]


def short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"


@drawn
def learning_curves(figure, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Lines of (step, value) by names such as "final, training": what is before the comma has one colour."""
    axes = figure.add_subplot()
    subjects = list(dict.fromkeys(name.partition(",")[0] for name in lines))
    for name, points in lines.items():
        color = (plots.FINAL, plots.PREVIEW)[subjects.index(name.partition(",")[0])]
        training = name.endswith("training")
        style = {"linestyle": ":", "linewidth": 1.6} if training else {"linewidth": 2}
        marker = "" if training or len(points) > 30 else "o"
        axes.plot(*zip(*points, strict=True), color=color, label=name, marker=marker, markersize=3.5, **style)
    axes.set_xlabel("training step")
    axes.set_xlim(left=0)
    axes.grid()
    axes.legend(loc="best")


@drawn
def early_termination(figure, curve: list[dict], chosen: dict | None, split: str) -> None:
    figure.set_figheight(3.6)
    axes = figure.add_subplot()
    plots.draw_early_termination(axes, curve, chosen, split)
    axes.grid(alpha=STYLE["grid.alpha"])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))


@drawn
def reliability(figure, bins: list[Bin], threshold: float | None) -> None:
    """Above, accuracy against confidence, bin by bin; below, the share of images in each bin."""
    figure.set_figheight(4)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    edges = [bin.low for bin in bins]
    width = [bin.high - bin.low for bin in bins]
    total = sum(bin.count for bin in bins)
    upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="as right as it is sure")
    upper.bar(
        edges, [bin.accuracy for bin in bins], width, align="edge", color=plots.PREVIEW, alpha=0.45, edgecolor=INK
    )
    upper.plot(
        [bin.confidence for bin in bins],
        [bin.accuracy for bin in bins],
        "o",
        color=plots.FINAL,
        markersize=4,
        clip_on=False,
        label="bin: mean confidence, accuracy",
    )
    lower.bar(edges, [bin.count / total for bin in bins], width, align="edge", color=plots.PREVIEW, alpha=0.45)
    if threshold is not None and 0 <= threshold <= 1:
        for axes in (upper, lower):
            axes.axvline(threshold, color=plots.CHOSEN, linewidth=1.5, label=f"threshold {threshold:.3f}")
    upper.set(ylabel="top-1", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="the preview's confidence (its largest probability)", ylabel="images")
    lower.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    upper.grid()
    lower.legend(*upper.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, -0.7))


@drawn
def confusion(figure, labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> None:
    """Labels against predictions, of one head."""
    figure.set_figheight(WIDTH)
    axes = figure.add_subplot()
    image = plots.draw_confusion(axes, labels, predictions, names)
    figure.colorbar(image, ax=axes, location="top", label="share of the label's images", aspect=30, pad=0.02)


@drawn
def class_mixtures(figure, mean_CN: np.ndarray, classes: Sequence[str]) -> None:
    """A layer's mean coefficients, class x basis."""
    figure.set_figheight(0.9 + 0.17 * len(classes))
    axes = figure.add_subplot()
    image = axes.imshow(mean_CN, aspect="auto", interpolation="none", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(classes)), map(short, classes))
    label_bases(axes, mean_CN.shape[1])
    figure.colorbar(image, ax=axes, label="mean coefficient", pad=0.02)


@drawn
def by_layer(figure, usage_KN: np.ndarray, entropy_K: np.ndarray, layers: Sequence[str], least: float) -> None:
    """On the left how much each layer uses each basis, on the right how even its mixtures are."""
    figure.set_figheight(1.1 + 0.17 * len(layers))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    norm = colors.TwoSlopeNorm(vcenter=1, vmin=0, vmax=max(2, usage_KN.max()))
    image = left.imshow(usage_KN, aspect="auto", interpolation="none", cmap="RdBu_r", norm=norm)
    for k, n in np.argwhere(usage_KN < least):
        left.plot(n, k, "x", color="white", markersize=5)
    left.set_yticks(range(len(layers)), map(short, layers), fontsize=8)
    label_bases(left, usage_KN.shape[1])
    figure.colorbar(image, ax=left, location="top", label="usage (1: an even share)", aspect=30, pad=0.02)
    right.barh(range(len(layers)), entropy_K, color=plots.FINAL, height=0.7)
    right.set(xlim=(0, 1), xlabel="entropy")
    right.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    right.tick_params(axis="y", length=0)
    right.grid(axis="x")


def label_bases(axes, count: int) -> None:
    step = -(-count // 8)  # so that numbers of two digits have room
    axes.set_xticks(range(0, count, step))
    axes.set_xlabel("basis")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)


@drawn
def projection(figure, xy: np.ndarray, explained: np.ndarray, groups: list[tuple[str, np.ndarray]]) -> None:
    """Images as points [n, 2]; `groups` are at most ten coloured classes, by name and rows; the others are grey."""
    figure.set_figheight(4.4)
    axes = figure.add_subplot()
    others = np.setdiff1d(np.arange(len(xy)), np.concatenate([rows for _, rows in groups]))
    axes.scatter(*xy[others].T, s=5, color="#8a8f99", alpha=0.4, linewidth=0, rasterized=True)
    for (name, rows), colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
        style = {"marker": marker, "color": colour}
        axes.scatter(*xy[rows].T, s=13, alpha=0.75, linewidth=0, rasterized=True, **style)
        axes.scatter([], [], s=24, label=short(name), linewidth=0, **style)
    axes.set_xlabel(f"first component: {explained[0]:.0%} of the variance")
    axes.set_ylabel(f"second component: {explained[1]:.0%}")
    axes.set(xticks=[], yticks=[])
    columns = 5 if max(len(name) for name, _ in groups) <= 6 else 2
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=columns, handletextpad=0.2, columnspacing=1)
