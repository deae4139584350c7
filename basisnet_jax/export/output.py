"""The folder that an export goes to: all of it comes into place at once, or nothing."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from basisnet_jax.errors import UserError
from basisnet_jax.workdir import files


@contextlib.contextmanager
def output_folder(output: str) -> Iterator[pathlib.Path]:
    """A new folder beside `output` to write into; it gets that name when the block ends well, else it is removed.

    Raises:
      UserError: something is there already, or the folder cannot be written.
    """
    target = pathlib.Path(os.path.realpath(output))
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"--output={output} is there already; nothing was overwritten")
        if os.path.ismount(target):
            raise UserError(f"--output={output} is a mount point, expected a new folder, such as one in it")
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    inside = False
    try:
        with files.replacing_folder(target) as folder:
            inside = True
            yield folder
            inside = False
    except UserError:
        raise
    except Exception as error:
        # What the block raises is told only where the disk is full; else it is no matter of this folder.
        reason = files.full_disk(error) or (error.strerror if isinstance(error, OSError) and not inside else None)
        if reason is None:
            raise
        raise UserError(f"--output={output} cannot be written: {reason}") from error
