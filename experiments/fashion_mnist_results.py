"""Every table and picture of the experiments on Fashion-MNIST, from the CSV files in `fashion_mnist`.

    python experiments/fashion_mnist_results.py [--runs=runs/fashion_mnist]

puts the tables into the two README files, between the comments that name them, and draws the pictures. With --runs it
first writes the CSV files anew, from the sweeps in that folder; experiments/README.md has the commands that make them.

"""

import argparse
import json
import pathlib
import runpy
import statistics
import sys

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import column, groups, millions, number, read_csv, row_of, spread, with_tables, write_csv, write_runs

from basisnet_jax import plots, sweep
from basisnet_jax.errors import UserError

HERE = pathlib.Path(__file__).parent / "fashion_mnist"
READMES = HERE.parent / "README.md", HERE.parents[1] / "README.md"  # the second has the headline
SETTINGS = ("coefficients", "baselines", "recipe")
BASES = "8"  # of the BasisNet that the other experiments change, and whose early termination is drawn


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, help="the folder with the sweeps' workdirs")
    flags = parser.parse_args(argv)
    try:
        if flags.runs:
            collect(flags.runs)
        for path in READMES:
            path.write_text(with_tables(path.read_text(), tables()))
        draw()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def tables() -> dict[str, str]:
    """Markdown by the name of the experiment."""
    return {
        "headline": headline(),
        "bases_width": comparison("bases_width"),
        "bases": bases(),
        **({"longer": comparison("longer")} if (HERE / "longer.csv").exists() else {}),
        "early_termination": early_termination(),
        **{name: settings(name) for name in SETTINGS if (HERE / f"{name}.csv").exists()},
    }


def draw() -> None:
    """The pictures, beside the CSV files."""
    rows = read("bases_width")
    draw_headline(rows, HERE / "headline.png")
    plots.accuracy_against_madds(rows, str(HERE / "bases_width_madds.png"))
    plots.accuracy_against_bases(rows, str(HERE / "bases_width_bases.png"))
    draw_early_termination(HERE / "early_termination.png")
    if (HERE / "longer.csv").exists():
        unchanged = [row for row in read("longer") if not changed("longer", row)]
        plots.accuracy_against_madds(unchanged, str(HERE / "longer.png"))
    for name in SETTINGS:
        if (HERE / f"{name}.csv").exists():
            draw_settings(name, HERE / f"{name}.png")


# The CSV files, from the sweeps.


def collect(folder: pathlib.Path) -> None:
    """Writes the CSV files from `folder`/EXPERIMENT/sweep.csv and, of the curves, the runs' evaluations."""
    main_runs = read_csv(folder / "bases_width" / "sweep.csv")
    write_runs(HERE / "bases_width.csv", main_runs)
    if (folder / "longer" / "sweep.csv").exists():
        write_runs(HERE / "longer.csv", read_csv(folder / "longer" / "sweep.csv"))
    for name in filter(lambda name: (folder / name / "sweep.csv").exists(), SETTINGS):
        # The runs with nothing changed are those of the first experiment.
        new = read_csv(folder / name / "sweep.csv")
        widths = {row["width"] for row in new}
        references = [row for row in main_runs if row["num_bases"] == BASES and row["width"] in widths]
        write_runs(HERE / f"{name}.csv", [*(row | {"run": f"reference,{row['run']}"} for row in references), *new])
    curves = []
    for row in main_runs:
        if row["num_bases"] == BASES:
            found = json.loads((folder / "bases_width" / "runs" / row["run"] / "evaluation.json").read_text())
            for point in found["early_termination"]["curve"]:
                curves.append({"width": row["width"], "seed": row["seed"], **point, "madds": row["madds"]})
    write_csv(HERE / "early_termination_curves.csv", curves)
    write_runs(HERE / "early_termination.csv", [row for row in main_runs if row["model"] == "basisnet"])


def read(name: str) -> list[dict]:
    return read_csv(HERE / f"{name}.csv")


# Tables.


def headline() -> str:
    """The static network, BasisNet and its early termination at each width that has both."""
    rows = read("bases_width")
    lines = ["| width | | MAdds per image | top-1 | to static, equal MAdds |", "|---" * 5 + "|"]
    for group in groups(rows, "model", "width", "num_bases"):
        first = group[0]
        if first["num_bases"] != BASES:
            continue
        static = [row for row in rows if row["model"] == "static" and row["width"] == first["width"]]
        lines.append(row_of(first["width"], "static", millions(static[0]["madds"]), spread(column(static, "top1")), ""))
        gain = spread(at_equal_madds(rows, group), "+")
        cells = ["", f"BasisNet, {BASES} bases", millions(first["madds"]), spread(column(group, "top1"))]
        lines.append(row_of(*cells, gain))
        mean_madds = millions(statistics.mean(column(group, "early_termination_mean_madds")))
        early = spread(column(group, "early_termination_top1"))
        lines.append(row_of("", "with early termination", f"{mean_madds} on average", early, ""))
    return "\n".join(lines)


def comparison(name: str) -> str:
    """Each network, mean over seeds, against the static one of its width and of its multiply-adds.

    What an experiment changes is compared with the same network unchanged as well.
    """
    rows = [row | {"changed": changed(name, row)} for row in read(name)]
    columns = ["model", "width", "bases", "MAdds", "training top-1", "top-1", "to static, equal width"]
    columns += ["to static, equal MAdds", "static, equal MAdds"]
    columns += ["to unchanged"] * any(row["changed"] for row in rows)
    lines = [row_of(*columns), "|---" * len(columns) + "|"]
    for group in groups(rows, "model", "width", "num_bases", "changed"):
        first, differences = group[0], [""] * (len(columns) - 6)
        if first["model"] != "static":
            static = [value for row in group if (value := static_at(rows, row)) is not None]
            plain = less(rows, group, model="static", num_bases="1", changed=())
            differences = [spread(plain, "+"), spread(at_equal_madds(rows, group), "+"), spread(static)]
            differences += [spread(less(rows, group, changed=()), "+") if first["changed"] else ""]
        label = ", ".join([first["model"], *first["changed"]])
        cells = [label, first["width"], first["num_bases"], millions(first["madds"])]
        cells += [spread(column(group, "train_top1")), spread(column(group, "top1")), *differences]
        lines.append(row_of(*cells[: len(columns)]))
    return "\n".join(lines)


def less(rows: list[dict], group: list[dict], **other: str | tuple) -> list[float]:
    """Top-1 of each row less that of the run of its width and seed that differs from it as `other` says."""

    def key(row):
        return tuple(row[name] for name in ("model", "width", "num_bases", "changed", "seed"))

    top1 = {key(row): number(row, "top1") for row in rows}
    return [number(row, "top1") - top1[key(row | other)] for row in group]


def changed(name: str, row: dict) -> tuple[str, ...]:
    """The labels of those of the experiment's changes that the row's run has."""
    changes = runpy.run_path(str(HERE / f"{name}.py")).get("CHANGES", {})
    return tuple(label for label, change in changes.items() if sweep.name_of(change) in row["run"])


def bases() -> str:
    """What more than one basis adds, over all widths: each run less that with one basis, of its width and seed."""
    rows = [row for row in read("bases_width") if row["model"] == "basisnet"]
    one = {(row["width"], row["seed"]): number(row, "top1") for row in rows if row["num_bases"] == "1"}
    lines = ["| bases | runs | top-1, to one basis |", "|---" * 3 + "|"]
    for group in groups(rows, "num_bases"):
        pairs = [(number(row, "top1"), one.get((row["width"], row["seed"]))) for row in group]
        differences = [top1 - reference for top1, reference in pairs if reference is not None]
        if group[0]["num_bases"] != "1":
            lines.append(row_of(group[0]["num_bases"], str(len(differences)), spread(differences, "+")))
    return "\n".join(lines)


def at_equal_madds(rows: list[dict], group: list[dict]) -> list[float]:
    """Top-1 of each row less what the static network of its seed has at its multiply-adds, where that is known."""
    return [number(row, "top1") - static for row in group if (static := static_at(rows, row)) is not None]


def static_at(rows: list[dict], row: dict) -> float | None:
    """Top-1 of the static network of the row's seed at its multiply-adds: on the line between the two nearest widths.

    None beyond the last of them.
    """
    points = sorted(
        (number(other, "madds"), number(other, "top1"))
        for other in rows
        if other["model"] == "static" and other["seed"] == row["seed"]
    )
    if not points or number(row, "madds") > points[-1][0]:
        return None
    return float(np.interp(number(row, "madds"), *zip(*points, strict=True)))


def early_termination() -> str:
    lines = ["| width | bases | MAdds | preview | top-1 | stop | mean MAdds | saved | change of top-1 |"]
    lines.append("|---" * 9 + "|")
    for group in groups(read("early_termination"), "width", "num_bases"):
        first = group[0]
        share, mean_madds, top1 = (
            column(group, f"early_termination_{name}") for name in ("share", "mean_madds", "top1")
        )
        saved = [1 - mean / number(first, "madds") for mean in mean_madds]
        change = [early - number(row, "top1") for early, row in zip(top1, group, strict=True)]
        cells = [first["width"], first["num_bases"], millions(first["madds"]), spread(column(group, "preview_top1"))]
        cells += [spread(column(group, "top1")), spread(share, digits=1), millions(statistics.mean(mean_madds))]
        lines.append(row_of(*cells, spread(saved, digits=1), spread(change, "+")))
    return "\n".join(lines)


def settings(name: str) -> str:
    lines = ["| | width | MAdds | training top-1 | top-1 | preview | to BasisNet |", "|---" * 7 + "|"]
    for label, group in labelled(name).items():
        first, preview = group[0], ""
        if first["preview_top1"]:
            preview = spread(column(group, "preview_top1"))
        change = spread([row["difference"] for row in group], "+")
        cells = [label, first["width"], millions(first["madds"]), spread(column(group, "train_top1"))]
        lines.append(row_of(*cells, spread(column(group, "top1")), preview, change))
    return "\n".join(lines)


def labelled(name: str) -> dict[str, list[dict]]:
    """The rows of an experiment by what was changed, each with its `difference` to the unchanged run of its seed."""
    rows, script = read(name), runpy.run_path(str(HERE / f"{name}.py"))
    reference = {(row["width"], row["seed"]): row for row in rows if row["run"].startswith("reference")}
    found = {}
    for row in rows:
        row["difference"] = number(row, "top1") - number(reference[row["width"], row["seed"]], "top1")
        found.setdefault(label_of(row, script["CHANGES"]), []).append(row)
    return found


def label_of(row: dict, changes: dict[str, dict]) -> str:
    names = {sweep.name_of({**change, "seed": int(row["seed"])}): label for label, change in changes.items()}
    return names.get(row["run"], "BasisNet")


# Pictures.


def draw_headline(rows: list[dict], path: pathlib.Path) -> None:
    """The static network and BasisNet at each width, and where early termination takes BasisNet."""
    figure, axes = new_figure("Fashion-MNIST: accuracy against cost (mean and 95 % interval)")
    lines = (
        ("static network", "1", "static", "", "o"),
        (f"BasisNet, {BASES} bases", BASES, "basisnet", "", "s"),
        ("with early termination", BASES, "basisnet", "early_termination_", "*"),
    )
    for color, (label, bases, model, prefix, marker) in zip(plots.COLORS, lines, strict=False):
        cost = f"{prefix}mean_madds" if prefix else "madds"
        found = groups([row for row in rows if row["model"] == model and row["num_bases"] == bases], "width")
        points = [(statistics.mean(column(group, cost)) / 1e6, column(group, f"{prefix}top1")) for group in found]
        x, top1 = zip(*[(x, [100 * value for value in values]) for x, values in sorted(points)], strict=True)
        bars = [plots.half_interval(values) for values in top1]
        mean = [statistics.mean(values) for values in top1]
        axes.errorbar(x, mean, bars, fmt=f"{marker}-", color=color, capsize=3, label=label)
    axes.set_xlabel("multiply-adds per image (millions), preview and mixing counted")
    axes.set_ylabel("test top-1 (%)")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def draw_early_termination(path: pathlib.Path) -> None:
    """Each width's curves, one a seed, of accuracy given up against multiply-adds saved, and the chosen points."""
    figure, axes = new_figure("What early termination saves, and what it costs")
    chosen, curves = read("early_termination"), read_csv(HERE / "early_termination_curves.csv")
    for color, points in zip(plots.COLORS, groups(curves, "width"), strict=False):
        for i, curve in enumerate(groups(points, "seed")):
            whole, top1 = number(curve[0], "madds"), number(curve[0], "top1")  # it begins where none stops
            saved = [100 * (1 - number(point, "mean_madds") / whole) for point in curve]
            change = [100 * (number(point, "top1") - top1) for point in curve]
            axes.plot(saved, change, color=color, linewidth=1, label=None if i else f"width {curve[0]['width']}")
        for row in chosen:
            if row["width"] == points[0]["width"] and row["num_bases"] == BASES:
                x = 100 * (1 - number(row, "early_termination_mean_madds") / number(row, "madds"))
                y = 100 * (number(row, "early_termination_top1") - number(row, "top1"))
                axes.plot(x, y, "*", color=color, markersize=11)
    axes.axhline(-0.3, color="#888888", linewidth=1, linestyle=":")
    axes.set_xlabel("multiply-adds saved (%); stars: thresholds chosen on the validation split")
    axes.set_ylabel("change of test top-1 (points)")
    axes.set_ylim(-2, 0.5)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def draw_settings(name: str, path: pathlib.Path) -> None:
    """Each setting's difference to the unchanged BasisNet, in points of top-1."""
    figure, axes = new_figure(f"{name.capitalize()}: difference to BasisNet (mean and 95 % interval)")
    found = [(label, rows) for label, rows in reversed(labelled(name).items()) if label != "BasisNet"]
    for y, (_, rows) in enumerate(found):
        points = [100 * row["difference"] for row in rows]
        mean, bar = statistics.mean(points), plots.half_interval(points)
        axes.errorbar(mean, y, xerr=bar, fmt="s", color=plots.FINAL, capsize=3)
        axes.plot(points, [y] * len(points), ".", color=plots.FINAL, alpha=0.5)
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(found)), [label for label, _ in found])
    axes.set_ylim(-0.5, len(found) - 0.5)
    axes.set_xlabel("test top-1 (points), seed by seed")
    figure.savefig(path, dpi=120)


def new_figure(title: str):
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    return figure, axes


if __name__ == "__main__":
    sys.exit(main())
