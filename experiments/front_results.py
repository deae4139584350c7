"""The tables and the picture of `front`: BasisNet against static networks of as many multiply-adds.

Of the learning rates that a network was trained with, the one that is best on the validation split counts. At equal
multiply-adds means: on the straight lines that join the static networks, against the logarithm of multiply-adds, as in
the picture.
"""

import pathlib
import statistics

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import column, groups, less, millions, number, read_csv, spread, table_of

from basisnet_jax import plots

NAMES = {"fashion_mnist": "Fashion-MNIST", "glyphs": "Letters in unseen fonts"}
TICKS = 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2  # millions of multiply-adds
BASES = "8"  # of the BasisNet in the headline and in the picture
KEYS = ("model", "width", "num_bases", "coefficients.temperature")  # what tells one network from another
Group = list[dict]  # the runs of one network, which differ in their seed


def tables(folder: pathlib.Path) -> dict[str, str]:
    found = {name: chosen(folder / f"{name}.csv") for name in NAMES if (folder / f"{name}.csv").exists()}
    made = {f"front_{name}": front_table(networks) for name, networks in found.items()}
    if found:
        made |= {"headline": headline(found), "controls": controls(found), "early_termination": early(found)}
    return made


def chosen(path: pathlib.Path) -> list[Group]:
    """The runs of each network at its best learning rate, by rising multiply-adds."""
    best = {}
    for group in groups(read_csv(path), *KEYS, "optimizer.learning_rate"):
        key, score = key_of(group), (len(group), statistics.mean(column(group, "validation_top1")))
        if key not in best or score > best[key][0]:  # a rate that lacks seeds does not count
            best[key] = score, group
    return sorted((group for _, group in best.values()), key=lambda group: number(group[0], "madds"))


def key_of(group: Group) -> tuple[str, ...]:
    return tuple(group[0].get(key, "") for key in KEYS)


def find(networks: list[Group], model: str, width: str, num_bases: str, temperature: str = "") -> Group | None:
    key = model, width, num_bases, temperature
    return next((group for group in networks if key_of(group) == key), None)


def above(group: Group, others: list[Group], madds: str = "madds", top1: str = "top1") -> list[float]:
    """Top-1 of each run less that of `others` at its multiply-adds, of its seed: on the line between the two nearest.

    Nothing, unless all runs lie between others of their seed.
    """
    differences = []
    for row in group:
        points = sorted(
            (number(run, madds), number(run, top1)) for other in others for run in other if run["seed"] == row["seed"]
        )
        if len(points) < len(others) or not points[0][0] <= number(row, madds) <= points[-1][0]:
            return []
        costs, found = zip(*points, strict=True)
        differences.append(number(row, top1) - float(np.interp(np.log(number(row, madds)), np.log(costs), found)))
    return differences


def statics(networks: list[Group]) -> list[Group]:
    return [group for group in networks if group[0]["model"] == "static"]


def cascades(networks: list[Group]) -> list[Group]:
    """BasisNets of one basis: preview and specialist share nothing."""
    return [group for group in networks if key_of(group)[0] == "basisnet" and key_of(group)[2] == "1"]


def label_of(group: Group) -> str:
    model, _, num_bases, temperature = key_of(group)
    if model == "static":
        return "static"
    name = {"basisnet": "BasisNet", "condconv": "CondConv", "dynamic": "dynamic convolution"}[model]
    bases = "1 basis" if num_bases == "1" else f"{num_bases} bases"
    return f"{name}, {bases}" + (", constant coefficients" if temperature else "")


def front_table(networks: list[Group]) -> str:
    """Every network against the static one of its width and the static networks of its multiply-adds."""
    lines = []
    for group in networks:
        first, differences = group[0], ["", ""]
        if first["model"] != "static":
            static = find(networks, "static", first["width"], "1")
            differences = [spread(less(group, static), "+") if static else ""]
            differences += [spread(above(group, statics(networks)), "+")]
        cells = [label_of(group), first["width"], millions(first["madds"]), first["optimizer.learning_rate"]]
        cells += [str(len(group)), spread(column(group, "train_top1")), spread(column(group, "top1"))]
        lines.append([*cells, *differences])
    columns = ["network", "width", "MAdds", "rate", "seeds", "training top-1", "test top-1", "to static, equal width"]
    return table_of([*columns, "to static, equal MAdds"], lines)


def headline(found: dict[str, list[Group]]) -> str:
    """BasisNet with eight bases, with and without early termination, against static networks."""
    lines = []
    for name, networks in found.items():
        for group in networks:
            model, width, num_bases, temperature = key_of(group)
            if (model, num_bases, temperature) != ("basisnet", BASES, ""):
                continue
            static = find(networks, "static", width, "1")
            cells = [NAMES[name], width, at_cost(static) if static else "", at_cost(group)]
            lines.append([*cells, spread(above(group, statics(networks)), "+"), at_cost(group, early=True)])
    columns = ["", "width", "static", f"BasisNet, {BASES} bases", "to static, equal MAdds", "with early termination"]
    return table_of(columns, lines)


def at_cost(group: Group, early: bool = False) -> str:
    madds, top1 = ("early_termination_mean_madds", "early_termination_top1") if early else ("madds", "top1")
    return f"{spread(column(group, top1))} at {millions(statistics.mean(column(group, madds)))}"


def controls(found: dict[str, list[Group]]) -> str:
    """What is left of a BasisNet whose coefficients tell nothing of the image."""
    lines = []
    for name, networks in found.items():
        for group in networks:
            model, width, num_bases, temperature = key_of(group)
            if model != "basisnet" or num_bases == "1" or temperature:
                continue
            constant = next((g for g in networks if key_of(g)[:3] == key_of(group)[:3] and key_of(g)[3]), None)
            one = find(networks, "basisnet", width, "1")
            cells = [NAMES[name], width, num_bases, spread(column(group, "top1"))]
            cells += [spread(less(group, group, of, "top1"), "+") for of in ("shuffled_top1", "mean_top1")]
            cells += [spread(less(others, group), "+") if others else "" for others in (constant, one)]
            lines.append([*cells, spread(column(group, "coefficient_information"), digits=1)])
    columns = ["", "width", "bases", "test top-1", "coefficients of another image", "mean coefficients"]
    columns += ["constant in training", "one basis", "what a mixture tells of its image, %"]
    kept = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    return table_of([columns[i] for i in kept], [[line[i] for i in kept] for line in lines])


def early(found: dict[str, list[Group]]) -> str:
    """What the threshold chosen on the validation split saves, with bases and without: one basis is a cascade."""
    lines = []
    for name, networks in found.items():
        for group in networks:
            model, width, num_bases, temperature = key_of(group)
            if model != "basisnet" or temperature:
                continue
            share, madds, top1 = (column(group, f"early_termination_{of}") for of in ("share", "mean_madds", "top1"))
            saved = [1 - mean / number(row, "madds") for mean, row in zip(madds, group, strict=True)]
            change = less(group, group, "early_termination_top1", "top1")
            cells = [NAMES[name], width, num_bases, spread(column(group, "preview_top1")), spread(share, digits=1)]
            cells += [millions(statistics.mean(madds)), spread(saved, digits=1), spread(top1), spread(change, "+")]
            compared = num_bases != "1" and cascades(networks)
            stopped = "early_termination_mean_madds", "early_termination_top1"
            lines.append([*cells, spread(above(group, cascades(networks), *stopped), "+") if compared else ""])
    columns = ["", "width", "bases", "preview", "stop, %", "mean MAdds", "saved, %", "top-1", "change"]
    return table_of([*columns, "to cascades of static networks"], lines)


def draw(folder: pathlib.Path) -> None:
    """Accuracy against multiply-adds: static networks, BasisNet, and where early termination takes it."""
    found = {name: chosen(folder / f"{name}.csv") for name in NAMES if (folder / f"{name}.csv").exists()}
    if not found:
        return
    figure = Figure(figsize=(5.5 * len(found), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {}
    for axes, (name, networks) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        draw_front(axes, networks)
        axes.set_title(f"{NAMES[name]} (mean and 95 % interval)", fontsize=11)
        axes.set_xlabel("multiply-adds per image (millions)")
        axes.set_ylabel("test top-1 (%)")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks([x for x in TICKS if low < x < high], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        labels |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(folder / "front.png", dpi=120)


def draw_front(axes: Axes, networks: list[Group]) -> None:
    basisnets = [group for group in networks if key_of(group)[0] == "basisnet" and not key_of(group)[3]]
    of_bases = [group for group in basisnets if key_of(group)[2] == BASES]
    lines = (
        ("static", statics(networks), "", "o-", plots.FINAL),
        (f"BasisNet, {BASES} bases", of_bases, "", "s-", plots.CHOSEN),
        ("BasisNet, early termination", of_bases, "early_termination_", "*-", plots.PREVIEW),
        ("cascade of static networks, early termination", cascades(networks), "early_termination_", "^--", "#888888"),
    )
    for label, shown, prefix, style, color in lines:
        if shown:
            cost = [
                statistics.mean(column(group, f"{prefix}mean_madds" if prefix else "madds")) / 1e6 for group in shown
            ]
            top1 = [[100 * value for value in column(group, f"{prefix}top1")] for group in shown]
            mean, bars = [statistics.mean(values) for values in top1], [plots.half_interval(values) for values in top1]
            axes.errorbar(cost, mean, bars, fmt=style, color=color, capsize=3, label=label)
