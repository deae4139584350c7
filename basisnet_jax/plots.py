"""Pictures of results, each drawn from the numbers that stand beside it as JSON or CSV."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FINAL, PREVIEW, CHOSEN = "#1f4e79", "#b8860b", "#c0392b"


def early_termination(report: dict, path: str) -> None:
    """Accuracy against mean multiply-adds as more and more images stop at the preview, the chosen point marked."""
    early = report["early_termination"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_early_termination(axes, early["curve"], early, report["split"])
    axes.set_title("Early termination: what stopping at the preview saves and costs")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


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
