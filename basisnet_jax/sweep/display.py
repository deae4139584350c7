"""What a sweep tells while it lasts: a line for each run that ends; on a terminal, a live table of those that run."""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Collection, Iterator


@contextlib.contextmanager
def shown(all_runs: list, left: int) -> Iterator["Display"]:
    display = Display(all_runs, left)
    try:
        yield display
    finally:
        display.clear()


class Display:
    """The table is drawn below the lines and, for each new line, taken away and drawn again."""

    def __init__(self, all_runs: list, left: int):
        self.total, self.done = len(all_runs), len(all_runs) - left
        self.width = min(max(len(run.name) for run in all_runs), 60)
        self.started = time.monotonic()
        self.steps = {run.name: step_of(run) for run in all_runs}
        self.first_steps = dict(self.steps)
        self.drawn: list[str] = []
        if self.done:
            print(f"{self.done} of {self.total} runs had finished before")

    def finished(self, run, found: dict) -> None:
        self.done += 1
        self.steps[run.name] = run.steps
        self.note(
            f"[{self.done}/{self.total}] {run.name:<{self.width}}  top-1 {found['top1']:.4f}  "
            f"{found['madds'] / 1e6:.2f}M multiply-adds"
        )

    def failed(self, run, why: str) -> None:
        self.note(f"FAILED {run.name}: {why} ({run.folder}/log.txt)")

    def note(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        print(line, flush=True)

    def update(self, active: Collection, waiting: list, failed: Collection) -> None:
        """Draws the table anew, where there is a terminal and something has changed."""
        if not sys.stdout.isatty():
            return
        columns, rows = shutil.get_terminal_size()
        lines = []
        for run in active:
            self.steps[run.name] = step = step_of(run)
            bar = "=" * round(20 * step / run.steps)
            lines.append(f"  {run.name:<{self.width}}  [{bar:<20}] step {step} of {run.steps}")
        if len(lines) > rows - 3:
            lines[rows - 4 :] = [f"  and {len(lines) - rows + 4} more"]
        counts = f"{self.done} of {self.total} finished, {len(active)} running, {len(waiting)} waiting"
        counts += f", {len(failed)} failed" if failed else ""
        lines.append(f"{counts}; {duration(time.monotonic() - self.started)}, {self.eta([*active, *waiting])} left")
        lines = [line[: columns - 1] for line in lines]
        if lines != self.drawn:
            self.clear()
            print("\n".join(lines), flush=True)
            self.drawn = lines

    def eta(self, left: list) -> str:
        """By the steps made since this sweep began, all runs' steps taken to last equally long."""
        made = sum(self.steps[name] - first for name, first in self.first_steps.items())
        remaining = sum(run.steps - self.steps[run.name] for run in left)
        return duration((time.monotonic() - self.started) * remaining / made) if made > 0 else "unknown time"

    def clear(self) -> None:
        if self.drawn:
            print(f"\x1b[{len(self.drawn)}A\x1b[J", end="", flush=True)
            self.drawn = []


def step_of(run) -> int:
    """The last step that a run has logged; 0 if none."""
    try:
        with open(run.folder / "metrics.jsonl", "rb") as file:
            file.seek(max(file.seek(0, 2) - 10_000, 0))
            lines = [line for line in file.read().split(b"\n")[:-1] if line.endswith(b"}")]
        return json.loads(lines[-1])["step"] if lines else 0
    except FileNotFoundError:
        return 0


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
