"""The folder that an export goes to: all of it comes into place at once, or nothing."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from basisnet_jax.errors import UserError

FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))  # found in what any library raises


@contextlib.contextmanager
def written(output: str) -> Iterator[pathlib.Path]:
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
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    try:
        yield unfinished
        unfinished.chmod(0o755)
        try:
            os.replace(unfinished, target)
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:
        reason = next((text for text in FULL if text in str(error)), None)
        if reason is None:
            raise
        raise UserError(f"--output={output} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
