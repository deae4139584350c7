"""Many runs of one config, on this machine or on SLURM, that go on where they were when the sweep was killed.

A sweep file names a config and yields what each run changes in it, as `configs/sweeps/bases_width.py` does:

    CONFIG = "digits"                        # as --config of `basisnet train`: a name or a file, arguments and all
    COMMON = {"config.num_epochs": 12.0}     # of every run; may be left out
    SLURM = {"slurm_partition": "gpu", "timeout_min": 60, "gpus_per_node": 1}  # submitit's names; may be left out

    def sweep():
        for seed in range(3):
            for bases in (1, 4):
                yield {"bases": bases, "seed": seed, "config.ema_decay": 0.99}

A key is what the command line of `basisnet train` has: "bases" is an argument of the config, which derives other fields
from it (--config=digits:bases=4), and "config.ema_decay" a field (--config.ema_decay=0.99). A run is that very command,
in DIR/runs/NAME with a name that follows from what is yielded. Its output, after a line with the command, goes to
`log.txt` there.

A run is finished when its `evaluation.json` is of its last step; then it is never started again. A run that ends
before that is started again for as long as it has come further each time, else it has failed; the next sweep tries it
anew. Each life of a run goes on from its last checkpoint.

`sweep.csv` has a row for each finished run: model (basisnet, static, condconv or dynamic), width, num_bases, seed, the
keys yielded, all of evaluation.json, and wall_s, the seconds of all its lives up to their last output. train_top1 is of
the averaged weights on plain images, as top1 is: `config.train_eval_split`, which is the training split unless the
sweep sets it. What is logged in training would be of augmented images, raw weights and dropout.
"""

import contextlib
import csv
import functools
import hashlib
import json
import os
import pathlib
import re
import runpy
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_collections

from basisnet_jax import models, parsing, plots
from basisnet_jax.data import pipeline
from basisnet_jax.data.pipeline import Dataset
from basisnet_jax.data.source import Source
from basisnet_jax.errors import Unfinished, UserError
from basisnet_jax.sweep import display, launchers
from basisnet_jax.workdir import checkpoint, files, runs


class Variant(NamedTuple):
    """One run: `basisnet train`, followed by `flags` and a --workdir, which is `folder`."""

    name: str
    folder: pathlib.Path
    flags: list[str]
    config: ml_collections.ConfigDict
    data: Dataset
    steps: int
    yielded: dict


def sweep(file: str, workdir: str, cluster: str = "local", jobs: int | None = None) -> None:
    """Runs what is left of the sweep, then writes the plots beside `sweep.csv`.

    Args:
      file: the sweep file.
      workdir: of this sweep, begun or new.
      cluster: "local" or "slurm".
      jobs: how many runs at once; None: as many as cores, devices and memory allow, or as Slurm starts.

    Raises:
      UserError: the file is none, a field is unknown, two runs are the same, `workdir` is of another sweep or in use.
      Unfinished: runs failed, or SIGINT or SIGTERM ended the sweep; the same command goes on.
    """
    if cluster not in launchers.CLUSTERS:
        raise UserError(f"--cluster={cluster!r}, expected one of {', '.join(launchers.CLUSTERS)}")
    jax.config.update("jax_platforms", "cpu")  # nothing is computed here: the devices are the runs'
    common, slurm, yielded = load(file)
    folder = pathlib.Path(os.path.abspath(workdir))
    runs.check_writable(workdir)
    find = functools.cache(Source)  # a folder of images is listed once for all runs
    for overrides in yielded:
        configured(common, overrides)  # all of them are checked before the data of the first are prepared
    all_runs = [make_run(common, overrides, folder / "runs", find) for overrides in yielded]
    check(file, all_runs, folder)
    launcher = launchers.CLUSTERS[cluster](folder, jobs, slurm)
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        with runs.locked(str(folder)):
            try:
                failed = execute(all_runs, launcher, lambda: write_csv(all_runs, folder / "sweep.csv"))
            finally:
                draw(folder)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error}") from error
    if failed:
        raise Unfinished(f"{len(failed)} of {len(all_runs)} runs failed; the same command tries them again")


def load(file: str) -> tuple[dict, dict, list[dict]]:
    """(CONFIG and COMMON as one dict, SLURM, what `sweep()` yields) of a sweep file."""
    if not os.path.isfile(file):
        raise UserError(f"sweep file {file!r} does not exist")
    try:
        names = runpy.run_path(file)
        yielded = list(names["sweep"]()) if callable(names.get("sweep")) else []
    except Exception as error:  # whatever the user's code raises
        raise UserError(parsing.located(error, file)) from None
    if not callable(names.get("sweep")) or not isinstance(names.get("CONFIG"), str):
        raise UserError(
            f"{file} is not a sweep file: expected CONFIG, the name or file of a config, and a generator sweep()"
        )
    if not yielded:
        raise UserError(f"{file}: sweep() yields no run")
    common, slurm = names.get("COMMON", {}), names.get("SLURM", {})
    for given in (common, slurm, *yielded):
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise UserError(f"{file}: {given!r}, expected a dict of overrides such as {{'config.seed': 1}}")
    return {"CONFIG": names["CONFIG"], **common}, slurm, yielded


def configured(common: dict, yielded: dict) -> tuple[list[str], ml_collections.ConfigDict]:
    """The flags of what is yielded, and the config, every field in its range."""
    overrides = {key: value for key, value in {**common, **yielded}.items() if key != "CONFIG"}
    path, _, arg = common["CONFIG"].partition(":")
    arguments = [f"{key}={value}" for key, value in overrides.items() if not key.startswith("config.")]
    argument = ",".join(filter(None, [arg, *arguments]))
    flags = [f"--config={path}:{argument}" if argument else f"--config={path}"]
    flags += [f"--{key}={value}" for key, value in overrides.items() if key.startswith("config.")]
    try:
        config = parsing.resolve(parsing.read_config(flags))
        models.check_preview(config)
        if not config.train_eval_split:
            config.train_eval_split = config.train_split
            flags.append(f"--config.train_eval_split={config.train_split}")
        return flags, config
    except UserError as error:
        raise UserError(f"run {yielded}: {error}") from None


def make_run(common: dict, yielded: dict, folder: pathlib.Path, find: Callable[..., Source] = Source) -> Variant:
    """The run of what is yielded; the data it needs are prepared, once and before any run wants them."""
    flags, config = configured(common, yielded)
    try:
        source = find(config.dataset, config.data_dir, config.bad_images)
        config = source.completed(config)
        data = pipeline.open(config, source)
        steps, _ = pipeline.lengths(config, data)
    except UserError as error:
        raise UserError(f"run {yielded}: {error}") from None
    name = name_of(yielded)
    return Variant(name, folder / name, flags, config, data, steps, yielded)


def name_of(yielded: dict) -> str:
    """`bases=4,seed=0`: a folder's name. Where characters or length forbid it, with a digest of all but the seed."""
    parts = [f"{key.removeprefix('config.')}={value}" for key, value in yielded.items()]
    whole = ",".join(parts) or "base"
    if re.fullmatch(r"[\w.,=+-]{,120}", whole):
        return whole
    seeds = [part for part in parts if part.startswith("seed=")]
    setting = ",".join(part for part in parts if part not in seeds)
    short = f"{setting[:120]}-{hashlib.sha256(setting.encode()).hexdigest()[:8]}"
    return re.sub(r"[^\w.,=+-]", "_", ",".join([short, *seeds]))


def check(file: str, all_runs: list[Variant], folder: pathlib.Path) -> None:
    """Refuses runs that are the same, and a workdir with other runs in it than these."""
    names, configs = set(), {}
    for run in all_runs:
        config = json.dumps(run.config.to_dict(), sort_keys=True)
        if run.name in names or config in configs:
            raise UserError(f"{file} yields the same run twice: {configs.get(config, run.name)} and {run.name}")
        names.add(run.name)
        configs[config] = run.name
    if (folder / "config.json").exists():
        raise UserError(f"workdir {folder} is that of a single run; use another --workdir")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if others := sorted(set(os.listdir(folder / "runs")) - names):
            more = f" and {len(others) - 1} more" if others[1:] else ""
            raise UserError(
                f"workdir {folder} holds another sweep: {file} does not yield its run {others[0]}{more}; "
                "use another --workdir"
            )
    for run in all_runs:
        runs.check(run.config, str(run.folder))


def execute(all_runs: list[Variant], launcher, save) -> dict[str, str]:
    """Runs what is not finished, calls `save` as each run ends well, and returns {name of a failed run: why}."""
    waiting = [run for run in all_runs if report(run) is None]
    reached = {run.name: checkpoint.newest(str(run.folder)) or 0 for run in waiting}
    # Runs may have outlived a killed sweep; how far they had come when they began is not known.
    outlived = launcher.alive(waiting)
    active = {run.name: run for run in waiting if run.name in outlived}
    waiting = [run for run in waiting if run.name not in active]
    reached |= dict.fromkeys(active, -1)
    failed: dict[str, str] = {}
    save()
    with signals() as received, display.shown(all_runs, len(waiting) + len(active)) as screen:
        try:
            while waiting or active:
                alive = launcher.alive(active.values())
                for run in [run for name, run in active.items() if name not in alive]:
                    del active[run.name]
                    step = checkpoint.newest(str(run.folder)) or 0
                    if found := report(run):
                        save()
                        screen.finished(run, found)
                    elif step > reached[run.name]:
                        reached[run.name] = step
                        waiting.insert(0, run)
                    else:
                        failed[run.name] = launcher.reason(run) or last_line(run)
                        screen.failed(run, failed[run.name])
                if received:
                    break
                while waiting and launcher.has_room(active.values()):
                    run = waiting.pop(0)
                    launcher.start(run)
                    active[run.name] = run
                screen.update(active.values(), waiting, failed)
                time.sleep(launcher.poll_s)
        finally:
            if active:
                screen.note(f"stopping {len(active)} runs, which save first; again to kill them")
                launcher.stop(active.values(), received)
                save()
    if received:
        done = sum(report(run) is not None for run in all_runs)
        raise Unfinished(f"stopped with {done} of {len(all_runs)} runs finished; the same command goes on from there")
    return failed


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """What has come of SIGINT and SIGTERM: a list that grows. (No threading.Event: its lock may be held already.)"""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def report(run: Variant) -> dict | None:
    """The evaluation of a finished run."""
    try:
        found = json.loads((run.folder / "evaluation.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{run.folder}/evaluation.json cannot be read: {error}") from None
    return found if found["step"] == run.steps else None


def last_line(run: Variant) -> str:
    """What a run said last."""
    lines = (run.folder / "log.txt").read_text(errors="replace").split(launchers.PROMPT)[-1].splitlines()[1:]
    return next((line.strip() for line in reversed(lines) if line.strip()), "ended without a word")


def write_csv(all_runs: list[Variant], path: pathlib.Path) -> None:
    """All of the table or nothing: one row for each finished run."""
    keys = list(dict.fromkeys(key for run in all_runs for key in run.yielded))
    rows = [row(run, found, keys) for run in all_runs if (found := report(run))]
    if not rows:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with files.replacing(str(path), newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def row(run: Variant, found: dict, keys: list[str]) -> dict:
    """A finished run as the columns of the table."""
    config = run.config
    width = config.network.get("width")  # of a network of one's own none, or anything
    baseline = "dynamic" if config.routing.hidden else "condconv"
    found = {name: value for name, value in found.items() if name != "provenance"} | found["provenance"]
    # Lists are the curve and what is told by class: no columns.
    flat = runs.flat(found).items()
    metrics = {name.replace(".", "_"): value for name, value in flat if not isinstance(value, list)}
    first = {
        "run": run.name,
        "model": baseline if config.model == "routed" else config.model,
        "width": width if isinstance(width, int | float) else 1.0,
        "num_bases": 1 if config.model == "static" else config.basis.num_bases,
        "seed": config.seed,
        "madds": found["madds"],
        "train_top1": metrics["train_top1"],
        "top1": found["top1"],
        "preview_top1": found.get("preview_top1", ""),
    }
    # Of a field, what the run had, yielded or not; a config's argument cannot be told from its config.
    fields = {f"config.{name}": value for name, value in runs.flat(config.to_dict()).items()}
    varied = {key.removeprefix("config."): fields.get(key, run.yielded.get(key, "")) for key in keys}
    return {**first, **varied, **metrics, "wall_s": launchers.wall_seconds(run.folder), **first}


def draw(folder: pathlib.Path) -> None:
    """The plots of `sweep.csv`, if a run has finished."""
    if (folder / "sweep.csv").exists():
        with open(folder / "sweep.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        plots.accuracy_against_madds(rows, str(folder / "accuracy_madds.png"))
        plots.accuracy_against_bases(rows, str(folder / "accuracy_bases.png"))
