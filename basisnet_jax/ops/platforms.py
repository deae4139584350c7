"""For which kind of device a program is made: paths of execution are chosen by it, when the program is traced."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_chosen_platform = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """One of cpu, gpu and tpu: `jax.default_backend()`, except inside `paths_for`."""
    return _chosen_platform.get() or jax.default_backend()


@contextlib.contextmanager
def paths_for(platform: str) -> Iterator[None]:
    """Inside this block paths are chosen for this platform: for what is traced here to be compiled for there."""
    token = _chosen_platform.set(platform)
    try:
        yield
    finally:
        _chosen_platform.reset(token)
