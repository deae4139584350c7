"""`basisnet report`: a run, or a sweep of runs, as one HTML page that needs nothing but itself."""

import contextlib
import os
from collections.abc import Callable, Iterator

from basisnet_jax.errors import UserError
from basisnet_jax.report import run, sweep
from basisnet_jax.workdir import files, runs

IMAGES = 2000


def report(
    workdir: str,
    which: str | None = None,
    split: str | None = None,
    images: int | None = None,
    output: str | None = None,
) -> str:
    """Writes the page and returns its path.

    Args:
      workdir: of a run, or of a sweep, which has a `sweep.csv`; the other arguments but `output` are for a run.
      which: a step, "best" (on the validation split), or None for the newest, which evaluation takes too.
      split: whose images are looked at, in TFDS's syntax; None for the config's test split.
      images: the galleries are of the first so many images of the split, the projection shows at most so many; None for
        2000. All other numbers are of all images.
      output: the file to write; None for `workdir`/report.html.

    Raises:
      UserError: there is no such run, checkpoint or split, what is there cannot be read, or the page cannot be written.
    """
    path = output or os.path.join(workdir, "report.html")
    is_sweep = os.path.exists(os.path.join(workdir, "sweep.csv"))
    if not is_sweep:
        runs.load_config(workdir)  # a wrong workdir is told as that, not as one that cannot be written
    of_a_run = {"checkpoint": which, "split": split, "images": images}
    if is_sweep and (given := [name for name, value in of_a_run.items() if value is not None]):
        raise UserError(f"--{given[0]} given with {workdir}, a sweep; expected it with the workdir of one run")
    with reserved(path) as write:
        if is_sweep:
            write(sweep.render(workdir, links_from=os.path.dirname(os.path.abspath(path))))
        else:
            write(run.render(workdir, which, split, IMAGES if images is None else images))
    return path


@contextlib.contextmanager
def reserved(path: str) -> Iterator[Callable[[str], None]]:
    """`write(text)` makes the file, all of it or nothing.

    That it can be written is found out first: evaluation may take long.
    """

    def refused(reason):
        return UserError(f"{path} cannot be written: {reason}; --output=FILE writes elsewhere")

    if os.path.isdir(path):
        raise refused("it is a folder")
    try:
        with files.replacing(path) as file:
            yield file.write
    except OSError as error:
        raise refused(error.strerror) from error
