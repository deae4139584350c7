"""What the tables of all studies share: CSV files, means with intervals, Markdown between comments.

Means are over seeds, with 95 % intervals by Student's t. A difference is taken seed by seed, then averaged.
"""

import csv
import pathlib
import statistics

from basisnet_jax import plots
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import files

FIRST = ("run", "model", "width", "num_bases", "seed", "num_epochs", "madds", "train_top1", "top1", "preview_top1")
FIRST += ("preview_madds",)
LAST = (
    "validation_top1",
    "shuffled_top1",
    "mean_top1",
    "raw_top1",
    "loss",
    "preview_loss",
    "coefficient_entropy",
    "coefficient_information",
)
LAST += ("early_termination_threshold", "early_termination_share", "early_termination_top1")
LAST += ("early_termination_mean_madds", "step", "commit", "device", "time", "wall_s")


def read_csv(path: pathlib.Path) -> list[dict]:
    if not path.exists():
        raise UserError(f"{path} does not exist; run the sweep first")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: pathlib.Path, rows: list[dict]) -> None:
    with files.replacing(str(path), newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_runs(path: pathlib.Path, rows: list[dict]) -> None:
    """The rows of a sweep with those columns that the studies keep: `FIRST`, the config fields that vary, `LAST`."""
    varied = [column for row in rows for column in row if "." in column]
    columns = [name for name in dict.fromkeys([*FIRST, *varied, *LAST]) if any(row.get(name, "") != "" for row in rows)]
    write_csv(path, [{column: row.get(column, "") for column in columns} for row in rows])


def with_tables(text: str, tables: dict[str, str]) -> str:
    """The text with each table that it has anew, between the comment that names it and the next that says "end"."""
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- {name}: by results.py -->\n")
        if found:
            text = f"{before}{found}\n{table}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def groups(rows: list[dict], *keys: str) -> list[list[dict]]:
    """The rows that differ in their seed alone, as lists, in the order of the file."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    return list(found.values())


def number(row: dict, name: str) -> float:
    return float(row[name])


def column(rows: list[dict], name: str) -> list[float]:
    """The numbers of a column; none where the cells are empty."""
    return [float(row[name]) for row in rows if row[name] != ""]


def less(rows: list[dict], others: list[dict], name: str = "top1", of_others: str | None = None) -> list[float]:
    """A column of the rows less one (None: the same) of the others, seed by seed; seeds of one side are left out."""
    there = {row["seed"]: number(row, of_others or name) for row in others}
    if len(there) < len(others):
        raise ValueError(f"two runs of one seed among {[row['run'] for row in others]}: which is meant?")
    return [number(row, name) - there[row["seed"]] for row in rows if row["seed"] in there]


def spread(values: list[float], sign: str = "", digits: int = 2) -> str:
    """Fractions as a percentage, "86.44 ± 0.31": the mean, and half of its 95 % interval if there are several."""
    if not values:
        return ""
    percent = [100 * value for value in values]
    interval = f" ± {plots.half_interval(percent):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(percent):{sign}.{digits}f}{interval}"


def millions(madds: str | float) -> str:
    return f"{float(madds) / 1e6:.3f}M"


def row_of(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table_of(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join([row_of(*columns), "|---" * len(columns) + "|", *(row_of(*row) for row in rows)])
