"""SIGTERM, which is how clusters announce that a machine is taken away, and Ctrl-C: the run saves and ends in peace."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from basisnet_jax import interrupts


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
    """`reached(step)`: whether to save now and stop. To be called after every step, by all processes.

    With several processes JAX spreads the news from the one that got the signal, and all stop after the same step.
    """
    if jax.process_count() > 1:  # JAX has its own handler of SIGTERM
        # All stop at the call after the last one that any of them has made. JAX counts from 0: by the steps of a run
        # that goes on, that call would never come if the signal does before the first.
        calls = itertools.count(1)
        with interrupts.turned(signal.SIGINT, signal.SIGTERM):
            yield lambda step: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    with interrupts.noted() as received:
        yield lambda step: bool(received)
