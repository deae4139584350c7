"""The tables of `defaults`: BasisNet against its static network in the grid, and at the highest rates of it."""

import pathlib
import runpy

from tables import column, less, read_csv, spread, table_of

from basisnet_jax import sweep

GRID = "digits", "glyphs", "fashion_mnist"


def tables(folder: pathlib.Path) -> dict[str, str]:
    made = {f"defaults_{name}": grid(folder, name) for name in GRID if (folder / f"{name}.csv").exists()}
    if (folder / "rmsprop.csv").exists() and "defaults_fashion_mnist" in made:
        made["defaults_rmsprop"] = rmsprop(folder)
    if (folder / "high_rates.csv").exists():
        made["defaults_high_rates"] = high_rates(folder)
    return made


def grid(folder: pathlib.Path, name: str) -> str:
    """A line for each setting, optimizer and rate: the static network, and BasisNet by number of bases less it."""
    rows = read_csv(folder / f"{name}.csv")
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


def rmsprop(folder: pathlib.Path) -> str:
    """RMSProp on Fashion-MNIST at the highest rate of the grid: what made BasisNet fail there."""
    rows = [*read_csv(folder / "rmsprop.csv"), *read_csv(folder / "fashion_mnist.csv")]
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


def high_rates(folder: pathlib.Path) -> str:
    """By optimizer and variant: BasisNet less its static network, with more seeds than the grid has."""
    names = runpy.run_path(str(folder / "high_rates.py"))
    rows = {row["run"]: row for row in read_csv(folder / "high_rates.csv")}

    def runs(run: dict) -> list[dict]:
        found = (sweep.name_of({**run, "seed": seed}) for seed in range(names["SEEDS"]))
        return [rows[name] for name in found if name in rows]

    statics = [runs({"model": "static", **setting}) for setting in names["SETTINGS"].values()]
    lines = [["static network", *(spread(column(static, "top1")) for static in statics)]]
    for label, variant in names["VARIANTS"].items():
        basisnets = [runs({"model": "basisnet", **setting, **variant}) for setting in names["SETTINGS"].values()]
        differences = (less(*pair) for pair in zip(basisnets, statics, strict=True))
        lines.append([f"BasisNet, {label}", *(spread(difference, "+") for difference in differences)])
    rates = (f"{name}, {setting['config.optimizer.learning_rate']}" for name, setting in names["SETTINGS"].items())
    return table_of(["", *rates], lines)
