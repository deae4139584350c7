"""What the benchmarks share: functions that take turns, peak memory, the flags and the output."""

import argparse
import concurrent.futures
import ctypes
import json
import multiprocessing
import pathlib
import re
import time
from collections.abc import Callable

import numpy as np


def flags(description: str) -> argparse.ArgumentParser:
    """The parser of the flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="where the rows go, as JSON")
    parser.add_argument("--quick", action="store_true", help="smaller, to be done in under a minute")
    return parser


def compare(
    name: str,
    ours: Callable,
    reference: Callable,
    turns: int,
    batches: int = 1,
    settle: Callable[[Callable], None] = lambda run: None,
) -> dict[str, float | str]:
    """The row of two functions that take turns, per batch; the first turn, which compiles, does not count.

    A function must not return before its work is done, or `settle(function)`, called before each turn, not before the
    work of the other's turn is. `cpu_ratio` is of processor time, which other programs on the machine disturb less.
    """
    times = {ours: [], reference: []}  # (wall, processor)
    for _ in range(turns + 1):
        for run, of_run in times.items():
            settle(run)
            begin = np.array([time.perf_counter(), time.process_time()])
            run()
            of_run.append(np.array([time.perf_counter(), time.process_time()]) - begin)
    (ours_ms, ours_cpu), (reference_ms, reference_cpu) = (
        1000 * np.median(of_run[1:], axis=0) / batches for of_run in times.values()
    )
    return {
        "name": name,
        "ours_ms": float(ours_ms),
        "reference_ms": float(reference_ms),
        "ratio": float(ours_ms / reference_ms),
        "cpu_ratio": float(ours_cpu / reference_cpu),
    }


def peak_memory(make: Callable[..., Callable], *args) -> int:
    """Bytes that a call of `make(*args)` needs at most above what the process holds at rest: weights and program.

    In a process of its own, on Linux, by the system's high-water mark of resident memory. The first call, which
    compiles, does not count, and what it leaves free is given back to the system.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_peak_memory, make, args).result()


def _peak_memory(make, args):
    run = make(*args)
    run()
    ctypes.CDLL(None).malloc_trim(0)
    at_rest = _resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    run()
    return _resident("VmHWM") - at_rest


def _resident(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """The rows as text; `columns` is {field: format}, such as {"ratio": ".2f"}. What a row lacks stays empty."""
    cells = [["", *columns]]
    cells += [[row["name"], *(format(row[k], f) if k in row else "" for k, f in columns.items())] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *values in cells:
        aligned = (f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True))
        lines.append("  ".join([f"{name:<{widths[0]}}", *aligned]).rstrip())
    return "\n".join(lines)


def write(rows: list[dict], file: str | None) -> None:
    if file:
        pathlib.Path(file).write_text(json.dumps(rows, indent=1) + "\n")
