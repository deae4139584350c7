"""Every table and picture of the studies, from the CSV files in their folders.

    python experiments/results.py [--runs=runs]

puts the tables into the README of each study, between the comments that name them, and draws the pictures. With --runs
it first writes the CSV files anew, from the workdirs of the sweeps in that folder; the studies' READMEs have the
commands that make them. vmapped/collect.py writes those that it trained. A study without CSV files is left out.
"""

import argparse
import pathlib
import runpy
import sys

import defaults_results
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
    "defaults/high_rates.csv": "defaults/high_rates",
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
    made = {}
    for study in (defaults_results, front_results, recipe_results):
        made |= study.tables(HERE / study.__name__.removesuffix("_results"))
    if (HERE / "causes" / "sweep.csv").exists():
        made |= {"causes": causes(), "learns": learns()}
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


if __name__ == "__main__":
    sys.exit(main())
