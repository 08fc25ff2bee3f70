"""Signals during training: stop at the end of the step, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopRequest"]

# A launcher passes on a signal that its processes may have been sent as well: that is not a second request.
_SAME_REQUEST = 2.0  # seconds


class StopRequest:
    """Waits for a signal; the first asks to stop after the step, one that comes seconds later ends the process.

    Attributes:
        signal: The number of the signal that came, 0 while there is none. Processes may see it at different steps.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    @contextmanager
    def listening(self, signals: Sequence[int]) -> Iterator[None]:
        """Take over those signals that nobody else handles; Python lets only the main thread do so."""
        self.signal, self._process = 0, os.getpid()
        free = (signal.SIG_DFL, signal.default_int_handler)
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.getsignal(each) for each in signals if signal.getsignal(each) in free}
        for each in self._previous:
            signal.signal(each, self._receive)
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker: Ctrl-C is its parent's matter, and an end is an end
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        elif self.signal and time.monotonic() - self._since > _SAME_REQUEST:
            self._give_back()
            signal.raise_signal(number)
        elif not self.signal:
            self.signal, self._since = number, time.monotonic()
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            text = f"\n{name}: stopping after this step, with a checkpoint; a second {name} stops at once.\n"
            os.write(2, text.encode())  # `print` may be what the signal has interrupted
