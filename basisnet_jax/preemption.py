"""SIGTERM, which is how clusters announce that a machine is taken away: the run saves its state and ends in peace."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
    """`reached(step)`: whether to save now and stop. To be called after every step, by all processes.

    With several processes JAX spreads the news from the one that got the signal, and all stop after the same step.
    """
    if jax.process_count() > 1:  # JAX has its own handler
        yield multihost_utils.reached_preemption_sync_point
        return
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
