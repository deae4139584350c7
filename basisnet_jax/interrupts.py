"""SIGINT, which is Ctrl-C, and SIGTERM: the first ends a command in order, the second at once.

Python runs a handler in the main thread between two of its own instructions: never while XLA compiles, which can take
minutes. So a thread, which the system's own handler wakes, watches as well.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator

SIGNALS = signal.SIGINT, signal.SIGTERM
GRACE_S = 3.0  # after which a command that has not come to its handler is ended where it is

_received: list[int] = []  # since `handled` began; appending is all that a handler may do
_noted: list[int] = []


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by a signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def interrupt(number: int, frame) -> None:
    """The handler of all verbs."""
    _received.append(number)
    raise Interrupted(number)


def note(number: int, frame) -> None:
    """The handler of what ends by itself when a signal has come."""
    _noted.append(number)


def told(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"


def code(number: int) -> int:
    """The exit code, as of a shell."""
    return 128 + number


def end(number: int, words: str = "") -> None:
    """Ends the process where it is: no library's threads are waited for, nor what they have in hand torn down."""
    if words:
        os.write(2, f"basisnet: {words}\n".encode())
    os._exit(code(number))


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While a verb runs, a signal raises `Interrupted`, and a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    _received.clear()
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, args=[reader], daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        os.close(writer)
        thread.join()
        os.close(reader)
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(reader: int) -> None:
    """Reads the numbers of signals until the pipe is closed, and ends the process at the second one."""
    first = None
    while True:
        waits = first is not None and signal.getsignal(first) is interrupt and not _received
        if not select.select([reader], [], [], GRACE_S if waits else None)[0]:
            if not _received:
                end(first, told(first))
            continue
        if not (read := os.read(reader, 1)):
            return
        number = read[0]
        handler = signal.getsignal(number) if number in SIGNALS else None
        if handler not in (interrupt, note):  # a sweep has its own: it ends its runs
            continue
        if first is not None:
            end(number)
        first = number
        if handler is note:
            name = signal.Signals(number).name
            words = "the run saves after this step and stops; a second signal ends it at once"
            os.write(2, f"basisnet: {name}: {words}\n".encode())


@contextlib.contextmanager
def turned(number: int, into: int) -> Iterator[None]:
    """A signal that a command would get is sent to it as another one, whose handler is not Python's."""
    if signal.getsignal(number) is not interrupt:
        yield
        return
    signal.signal(number, lambda *_: os.kill(os.getpid(), into))
    try:
        yield
    finally:
        signal.signal(number, interrupt)


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """The signals that have come: a list that grows, in place of an exception.

    Called by a program that is no command, only SIGTERM: what its SIGINT does is that program's business.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    _noted.clear()
    numbers = SIGNALS if signal.getsignal(signal.SIGINT) is interrupt else (signal.SIGTERM,)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield _noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
