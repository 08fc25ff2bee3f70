"""SIGTERM and Ctrl-C end a command in the same way, each with its own exit code."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Terminated", "exit_code", "sigterm_as_interrupt"]


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code that a shell gives to a program which the signal of an interrupt ended."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def sigterm_as_interrupt() -> Iterator[list[int]]:
    """Raise `Terminated` at SIGTERM, so that what Ctrl-C cleans up and prints is cleaned up and printed then too.

    Yields:
        The signals so far. Python drops an exception that is raised in a finaliser, which garbage collection may run at
        any time, so a long loop looks here as well.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        received.append(number)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # Python sets signal handlers in no other thread
        yield received
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
