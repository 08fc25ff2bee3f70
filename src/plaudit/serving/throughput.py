"""`Throughput`: how fast an engine has run of late."""

import math
import threading

__all__ = ["Throughput"]

_REMEMBERED_SECONDS = 10.0  # of running, over which the speed is averaged


class Throughput:
    """The seconds that a token takes, over recent steps. Time between steps does not count: a pause changes nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # steps of several models are recorded by their own threads
        self._steps, self._tokens, self._seconds = 0.0, 0.0, 0.0

    def record(self, tokens: int, seconds: float) -> None:
        """Note a step: its tokens, whole lengths summed, and the seconds that it ran."""
        forgotten = -math.expm1(-seconds / _REMEMBERED_SECONDS)  # share of the past, and of a long step its beginning
        weight = forgotten * _REMEMBERED_SECONDS / seconds if seconds else 1.0
        with self._lock:
            self._steps += weight - forgotten * self._steps
            self._tokens += weight * tokens - forgotten * self._tokens
            self._seconds += weight * seconds - forgotten * self._seconds

    @property
    def seconds_per_token(self) -> float:
        """Seconds for a token, whole lengths summed; 0 before any step was recorded."""
        with self._lock:
            return self._seconds / self._tokens if self._tokens else 0.0

    @property
    def seconds_per_step(self) -> float:
        """Seconds of a step; 0 before any step was recorded."""
        with self._lock:
            return self._seconds / self._steps if self._steps else 0.0
