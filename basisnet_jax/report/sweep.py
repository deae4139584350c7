"""The page of a sweep: what `sweep.csv` says, averaged over seeds and run by run, with the plots beside it."""

import csv
import os
import pathlib
import re
import statistics
import urllib.parse

from basisnet_jax import plots
from basisnet_jax.errors import UserError
from basisnet_jax.report import page
from basisnet_jax.report.page import Html, element, millions, percent

# All other columns are settings: runs that agree in all of these differ in their seed alone.
NO_SETTING = re.compile(
    r"((raw|train|preview|early_termination)_)*"
    r"(top1|top5|loss|balanced_accuracy|majority_top1|majority_class|coefficient_entropy|coefficient_information"
    r"|num_examples|madds|mean_madds|share|threshold|criterion|temperature|chosen_on|step|split|weights"
    r"|run|seed|commit|device|jax|time|wall_\w+)"
)
AVERAGED = ("top1", "madds", "early_termination_top1", "early_termination_mean_madds", "preview_top1", "train_top1")
OF_A_RUN = ("wall_s", "wall_time", "commit", "device")


def render(workdir: str, links_from: str) -> Html:
    """The page, with links from the folder `links_from` to the reports of the runs that have one."""
    columns, rows = read(os.path.join(workdir, "sweep.csv"))
    settings = varied(columns, rows)
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in settings), []).append(row)
    averaged = [name for name in AVERAGED if name in columns]
    by_setting = [
        [*setting, len(members), *(mean_and_interval(name, [row[name] for row in members]) for name in averaged)]
        for setting, members in groups.items()
    ]
    shown = [*settings, *(name for name in ("seed", *averaged, *OF_A_RUN) if name in columns)]
    by_run = [[linked(workdir, row, links_from), *(formatted(name, row[name]) for name in shown)] for row in rows]
    pictures = sorted(pathlib.Path(workdir).glob("*.png"))
    lead = f"{len(rows)} finished runs of {len(groups)} settings."
    every_column = page.table(columns, [[row[name] for name in columns] for row in rows], texts=len(columns))
    return page.document(
        f"Sweep {os.path.basename(os.path.abspath(workdir))}",
        element("p", lead),
        {
            "Plots": page.figures(*map(plot, pictures)) if pictures else None,
            "Mean over seeds": page.table(
                [*map(spelled, settings), "runs", *map(spelled, averaged)],
                by_setting,
                texts=len(settings),
                caption=f"Mean ± half of the {plots.LEVEL:.0%} interval (Student's t) over the runs of a setting; of "
                "one run, its number.",
            ),
            "Runs": page.joined(
                page.table(["", *map(spelled, shown)], by_run, texts=1 + len(settings)),
                page.folded("All columns of sweep.csv", every_column),
            ),
        },
    )


def read(path: str) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a CSV file."""
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = list(reader.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows: no run of the sweep has finished")
    if bad := [i for i, row in enumerate(rows, 1) if None in row or None in row.values()]:
        raise UserError(f"{path}: row {bad[0]} has not as many values as there are columns, {len(columns)}")
    return columns, rows


def varied(columns: list[str], rows: list[dict]) -> list[str]:
    """The settings that not all runs share, each once: `bases` is left out where it only repeats `num_bases`."""
    found: list[str] = []
    for name in columns:
        if NO_SETTING.fullmatch(name) or len({row[name] for row in rows}) == 1:
            continue
        if not any(all(row[name] in ("", row[other]) for row in rows) for other in found):
            found.append(name)
    return found


def mean_and_interval(name: str, texts: list[str]) -> str:
    """ "98.89 % ± 0.41 %": the mean of those values that are numbers, in the form of their column."""
    values = [value for text in texts if (value := number(text)) is not None]
    if not values:
        return ""
    mean = formatted(name, statistics.mean(values))
    if len(values) == 1:
        return mean
    error = plots.half_interval(values)
    return mean if error == 0 else f"{mean} ± {formatted(name, error)}"


def formatted(name: str, value: str | float) -> str:
    """A value as its column has it: fractions in percent, multiply-adds in millions, a commit's first letters."""
    parsed = number(value)
    if name == "commit":
        return value[:8]
    if parsed is None:
        return value
    if name.endswith("top1"):
        return percent(parsed)
    if name.endswith("madds"):
        return millions(parsed)
    return f"{parsed:,.0f} s" if name.startswith("wall_") else f"{parsed:g}"


def number(text: str | float) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def spelled(name: str) -> str:
    words = {"top1": "top-1", "madds": "MAdds", "wall": "time", "s": ""}
    return " ".join(filter(None, (words.get(word, word) for word in name.split("_"))))


def linked(workdir: str, row: dict, links_from: str) -> Html:
    """The run's name, with a link to its report where there is one: in the folder of that name, or in runs/."""
    name = row.get("run") or next(iter(row.values()))
    for folder in ("", "runs"):
        report = os.path.join(workdir, folder, name, "report.html")
        if os.path.isfile(report):
            relative = os.path.relpath(report, links_from)
            return element("a", name, href=urllib.parse.quote(relative), class_="name")
    return element("span", name, class_="name")


def plot(path: pathlib.Path) -> Html:
    name = path.stem.replace("_", " ")
    source = page.data_uri("image/png", path.read_bytes())
    caption = element("figcaption", element("strong", name))
    return element("figure", caption, element("img", src=source, alt=f"Plot {path.name} of the runs below"))
