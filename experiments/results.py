"""Every table and picture of the studies, from the CSV files in their folders.

    python experiments/results.py [--runs=runs]

puts the tables into the README of each study, between the comments that name them, and draws the pictures. With --runs
it first writes the CSV files anew, from the workdirs of the sweeps in that folder; the studies' READMEs have the
commands that make them. vmapped/collect.py writes those of `front` and `recipe`. A study without CSV files is left out.
"""

import argparse
import pathlib
import runpy
import sys

import front_results
import recipe_results
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import column, less, millions, read_csv, spread, table_of, with_tables, write_runs

from basisnet_jax import plots, sweep
from basisnet_jax.errors import UserError

HERE = pathlib.Path(__file__).parent
SWEEPS = {  # CSV file: the workdir of its sweep, in --runs
    "causes/sweep.csv": "causes",
    "defaults/digits.csv": "defaults/digits",
    "defaults/fashion_mnist.csv": "defaults/fashion_mnist",
    "defaults/glyphs.csv": "defaults/glyphs",
    "defaults/rmsprop.csv": "defaults/rmsprop",
}

RMSPROP_DEFAULTS = "RMSProp, 16 bases"  # of `causes`, with which other runs that have RMSProp are compared
STUDIES = "causes", "defaults", "front", "recipe"
READMES = [*(HERE / study / "README.md" for study in STUDIES), HERE.parent / "README.md"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, help="the folder with the sweeps' workdirs")
    flags = parser.parse_args(argv)
    try:
        if flags.runs:
            collect(flags.runs)
        for readme in READMES:
            readme.write_text(with_tables(readme.read_text(), tables()))
        draw()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def collect(folder: pathlib.Path) -> None:
    """Writes the CSV file of each sweep that `folder` has."""
    found = {file: folder / name / "sweep.csv" for file, name in SWEEPS.items()}
    if not any(path.exists() for path in found.values()):
        raise UserError(f"{folder} holds none of the sweeps {', '.join(SWEEPS.values())}")
    for file, path in found.items():
        if path.exists():
            write_runs(HERE / file, read_csv(path))


def tables() -> dict[str, str]:
    """Markdown by the name that stands in the README."""
    made = {**front_results.tables(HERE / "front"), **recipe_results.tables(HERE / "recipe")}
    if (HERE / "causes" / "sweep.csv").exists():
        made |= {"causes": causes(), "learns": learns()}
    for name in ("digits", "fashion_mnist", "glyphs"):
        if (HERE / "defaults" / f"{name}.csv").exists():
            made[f"defaults_{name}"] = defaults(name)
    if (HERE / "defaults" / "rmsprop.csv").exists() and "defaults_fashion_mnist" in made:
        made["defaults_rmsprop"] = high_rate()
    return made


def draw() -> None:
    front_results.draw(HERE / "front")
    if (HERE / "causes" / "sweep.csv").exists():
        draw_causes(HERE / "causes" / "causes.png")


# What was wrong with the old defaults.


def labelled() -> dict[str, list[dict]]:
    """The runs of each change of `causes`, in the order of the sweep."""
    changes = runpy.run_path(str(HERE / "causes" / "sweep.py"))["CHANGES"]
    rows = {row["run"]: row for row in read_csv(HERE / "causes" / "sweep.csv")}
    seeds = sorted({int(row["seed"]) for row in rows.values()})
    found = {}
    for label, change in changes.items():
        names = [sweep.name_of({**change, "seed": seed}) for seed in seeds]
        if of_label := [rows[name] for name in names if name in rows]:
            found[label] = of_label
    return found


def static_of(label: str, found: dict[str, list[dict]]) -> list[dict]:
    """The static network of a change's setting: "no clipping, static" for "no clipping"; for most, plain "static"."""
    return found.get(f"{label.split(',')[0]}, static", found["static"])


def causes() -> str:
    """Each change: top-1, and its difference to the defaults and to the static network of its optimizer's setting."""
    found, rows = labelled(), []
    for label, group in found.items():
        static = static_of(label, found)
        compared = group[0]["model"] != "static"
        reference = RMSPROP_DEFAULTS if label.startswith("RMSProp") else "defaults"
        rows.append(
            [
                label,
                spread(column(group, "top1")),
                spread(less(group, found[reference]), "+") if compared and reference != label else "",
                spread(less(group, static), "+") if compared else "",
                spread(column(group, "coefficient_information"), digits=1) if compared else "",
            ]
        )
    columns = ["", "test top-1", "to the defaults", "to static, same setting", "what a mixture tells of its image, %"]
    return table_of(columns, rows)


def learns() -> str:
    """The static network, BasisNet with the defaults and its controls, and with the old defaults."""
    found = labelled()
    basisnet, shown = found["defaults"], []
    lines = {
        "static": found["static"],
        "BasisNet, 4 bases": basisnet,
        "BasisNet, constant coefficients in training and test": found["constant coefficients"],
        "BasisNet with the defaults until 2681f21": found["old"],
    }
    for label, rows in lines.items():
        to_static = spread(less(rows, found["static"]), "+") if label != "static" else ""
        shown.append([label, millions(rows[0]["madds"]), spread(column(rows, "top1")), to_static])
    path = HERE / "causes" / "shuffled.csv"
    if path.exists():
        rows = read_csv(path)
        to_static = spread(less(rows, found["static"], "shuffled_top1", "top1"), "+")
        cells = [millions(basisnet[0]["madds"]), spread(column(rows, "shuffled_top1")), to_static]
        shown.insert(2, ["BasisNet, each test image with the coefficients of another", *cells])
    return table_of(["", "MAdds", "test top-1", "to static"], shown)


def draw_causes(path: pathlib.Path) -> None:
    """Each change's difference to the static network, in points of top-1."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = labelled()
    shown = [(label, rows) for label, rows in found.items() if rows[0]["model"] != "static"][::-1]
    for y, (label, rows) in enumerate(shown):
        points = [100 * value for value in less(rows, static_of(label, found))]
        color = plots.CHOSEN if label == "defaults" else plots.FINAL
        axes.errorbar(sum(points) / len(points), y, xerr=plots.half_interval(points), fmt="s", color=color, capsize=3)
        axes.plot(points, [y] * len(points), ".", color=color, alpha=0.5)
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(shown)), [label for label, _ in shown])
    axes.set_xlabel("test top-1, points above static (mean, 95 % interval, seeds)")
    axes.set_title("glyphs, one epoch: each change against the static network", fontsize=11)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


# Whether the new ones hold.


def defaults(name: str) -> str:
    """A line for each setting, optimizer and rate: the static network, and BasisNet by number of bases less it."""
    rows = read_csv(HERE / "defaults" / f"{name}.csv")
    keys = ("num_epochs", "optimizer.name", "optimizer.learning_rate")
    settings: dict[tuple, list[dict]] = {}
    for row in rows:
        settings.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    numbers = sorted({int(row["num_bases"]) for row in rows if row["model"] == "basisnet"})
    lines = []
    for (epochs, optimizer, rate), group in sorted(settings.items(), key=lambda item: order(item[0])):
        static = [row for row in group if row["model"] == "static"]
        others = [row for row in group if row["model"] == "basisnet"]
        by_bases = [[row for row in others if row["num_bases"] == str(n)] for n in numbers]
        differences = [spread(less(bases, static), "+") for bases in by_bases]
        lines.append([epochs, optimizer, rate, str(len(static)), spread(column(static, "top1")), *differences])
    columns = ["epochs", "optimizer", "rate", "seeds", "static", *(f"{n} bases, to static" for n in numbers)]
    if all(not line[0] for line in lines):
        columns, lines = columns[1:], [line[1:] for line in lines]
    return table_of(columns, lines)


def order(setting: tuple[str, str, str]) -> tuple:
    epochs, optimizer, rate = setting
    return float(epochs or 0), optimizer, float(rate)


TODAY = {"optimizer.clip_norm": 1.0, "optimizer.coefficient_rate": 8.0, "coefficients.temperature": 1.0}
UNCLIPPED, FAST_HEAD = {"optimizer.clip_norm": 0.0}, {"optimizer.coefficient_rate": 80.0}


def changes(row: dict, of=tuple(TODAY)) -> dict[str, float]:
    """What a run has otherwise than today's defaults. A field that its sweep does not vary may be left out."""
    given = {name: float(row[name]) for name in of if row.get(name, "") != ""}
    return {name: value for name, value in given.items() if value != TODAY[name]}


def high_rate() -> str:
    """RMSProp on Fashion-MNIST at the highest rate of the grid: what made BasisNet fail there."""
    rows = [*read_csv(HERE / "defaults" / "rmsprop.csv"), *read_csv(HERE / "defaults" / "fashion_mnist.csv")]
    at_rate = {"num_epochs": "2.0", "optimizer.name": "rmsprop", "optimizer.learning_rate": "0.064"}
    rows = [row for row in rows if all(row[key] == value for key, value in at_rate.items())]
    lines = []
    for label, change in (
        ("before 06df079: no clipping, the head ten times as fast", {**UNCLIPPED, **FAST_HEAD}),
        ("the same with constant coefficients", {**UNCLIPPED, **FAST_HEAD, "coefficients.temperature": 1e6}),
        ("no clipping", UNCLIPPED),
        ("the head ten times as fast", FAST_HEAD),
        ("today's defaults", {}),
    ):
        clipping = {name: value for name, value in change.items() if name in UNCLIPPED}
        static = [row for row in rows if row["model"] == "static" and changes(row, UNCLIPPED) == clipping]
        basisnet = [row for row in rows if row["num_bases"] == "8" and changes(row) == change]
        cells = [spread(column(basisnet, name)) for name in ("top1", "preview_top1")] if basisnet else ["", ""]
        difference = spread(less(basisnet, static), "+") if basisnet else "not run"
        lines.append([label, spread(column(static, "top1")), *cells, difference])
    return table_of(["", "static", "BasisNet, 8 bases", "its preview", "to static"], lines)


if __name__ == "__main__":
    sys.exit(main())
