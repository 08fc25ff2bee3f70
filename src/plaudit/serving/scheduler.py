"""`Scheduler`: one thread that runs the engine of one model, step by step, on whatever sequences wait."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from plaudit.serving.serving_errors import ServingError
from plaudit.serving.step_queue import StepQueue
from plaudit.serving.submission import Outcome, QueuedSequence, Submission
from plaudit.serving.throughput import Throughput

__all__ = ["Engine", "Scheduler", "Step"]

logger = logging.getLogger(__name__)

# After a fault of the device itself every later call in this process fails as well. (torch 2.6 has no type for it.)
_DEVICE_LOST: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()

# What has less time to its deadline than this share of the next step would be late, and is not run.
_SURE_SHARE = 0.8


class Engine(Protocol):
    """An engine such as `plaudit.engine.ScoringEngine`: one call at a time, token ids to columns."""

    @property
    def layout(self) -> str:
        """Layout of its batches, by which the size of a step is counted."""

    @property
    def max_tokens_per_batch(self) -> int:
        """The most tokens of a step. The engine may lower it after running out of memory."""

    @property
    def num_columns(self) -> int:
        """The number C of columns of each sequence."""

    def score_columns(self, sequences: Sequence[Any]) -> NDArray[np.float32]:
        """Return the columns [N, C] of N sequences of token ids: the reward, and what its uncertainty is made of."""


@dataclass(frozen=True)
class Step:
    """A step that ran.

    Attributes:
        sequences: Number of sequences.
        tokens: Their tokens, whole lengths summed.
        distinct_tokens: The same, with shared prefixes counted once.
        seconds: From the choice of the sequences to their rewards, without the time in which another model ran.
        is_full: Whether the step tells how fast the engine is: at least half full, or others had to wait. A single
            short sequence has the fixed cost of a step to itself, which made a queue of long ones look too slow.
    """

    sequences: int
    tokens: int
    distinct_tokens: int
    seconds: float
    is_full: bool = True


class Scheduler:
    """Runs the engine of one model in a thread of its own, in steps that serve several requests at once.

    Methods may be called from any thread, and none of them waits for a step.

    Args:
        engine: The engine. Nobody else may call it.
        on_step: Called after each step, in the engine's thread.
        device_lock: Held while the engine runs, so that models on one device take turns.
        linger: After a step, the seconds to wait for as many submissions as have just ended: clients that send their
            next request at once then run together. No submission waits when the engine has been idle for longer.
        hung_after: Seconds after which a call of the engine counts as hung.

    Attributes:
        state: "running"; "dead" after a fault of the device, a failure of the thread itself or `fail_all`; "stopped"
            after `stop`.
        last_step_finished: `time.monotonic()` after the last step; `None` before that.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_step: Callable[[Step], object] = lambda _: None,
        device_lock: "threading.Lock | None" = None,
        linger: float = 0.002,
        hung_after: float = 300.0,
    ) -> None:
        self.state: Literal["running", "dead", "stopped"] = "running"
        self.last_step_finished: float | None = None
        self._engine, self._on_step, self._num_columns = engine, on_step, engine.num_columns
        self._device_lock = device_lock or threading.Lock()
        self._linger, self._hung_after = linger, hung_after
        self._changed = threading.Condition()  # guards all that follows; never held while the engine runs
        self._queue = StepQueue()
        self._throughput = Throughput()
        self._unfinished: set[Submission] = set()
        self._in_step: set[Submission] = set()
        self._leaves_others = False  # whether the step left sequences in the queue
        self._arrived = self._ended = 0  # submissions since the last step was chosen, and those that it ended
        self._call_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="plaudit-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, sequences: list[NDArray[np.int64]], *, client: str, deadline: float) -> "Future[Outcome]":
        """Queue the sequences of one request. Cancelling the future takes what still waits out of the queue.

        Args:
            sequences: N arrays of one or more token ids.
            client: Name of whoever is charged, such as the hash of a key. Clients have equal shares of the tokens.
            deadline: `time.monotonic()` after which no sequence of it starts.

        Returns:
            A future of the outcome. It fails with a `ServingError` ("late", "model_fault", "draining", "dead").

        Raises:
            ServingError: The scheduler is stopped or dead.
            ValueError: There is no sequence, a sequence is empty, or a token id is not 0 to 2**32 - 1.
        """
        submission, queued = Submission.of(sequences, client, deadline, self._num_columns)
        with self._changed:
            if self.state != "running":
                raise _ended_error(self.state)
            self._queue.add(submission, queued)
            self._unfinished.add(submission)
            self._arrived += 1
            self._changed.notify()
        submission.future.add_done_callback(lambda _: self._forget(submission))
        return submission.future

    def stop(self) -> None:
        """End the thread after the current step, and fail whatever waits for a later one with "draining"."""
        with self._changed:
            if self.state == "running":
                self.state = "stopped"
            waiting = self._unfinished - self._in_step
            self._changed.notify()
        _fail(waiting, _ended_error(self.state))

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end after `stop`, for at most `timeout` seconds; return whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def fail_all(self, message: str) -> None:
        """Fail all submissions with "dead", those of the running step included, and refuse later ones."""
        with self._changed:
            self.state = "dead"
            failed = set(self._unfinished)
            self._changed.notify()
        _fail(failed, ServingError("dead", message))

    @property
    def queued_items(self) -> int:
        """Number of sequences that wait; those of the running step are not among them."""
        return self._queue.items

    @property
    def queued_tokens(self) -> int:
        """Tokens of the sequences that wait, whole lengths summed."""
        return self._queue.tokens

    @property
    def is_hung(self) -> bool:
        """A call of the engine has been running for longer than `hung_after` seconds."""
        started = self._call_started
        return started is not None and time.monotonic() - started > self._hung_after

    def _run(self) -> None:
        try:
            while self.state == "running":
                late, step = self._next_step()
                _fail(late, ServingError("late", "the deadline passed before the request ran", retry_after=1))
                if step:
                    self._run_step(step)
        except BaseException as error:
            logger.critical("the engine's thread has failed: %s", _without_message(error))
            self.fail_all("the engine of this model has stopped")
        _fail(set(self._unfinished), _ended_error(self.state))

    def _next_step(self) -> tuple[list[Submission], list[QueuedSequence]]:
        """Wait for sequences; return the submissions that are too late, and the sequences of the next step."""
        with self._changed:
            while self.state == "running":
                now = time.monotonic()
                limit = self._engine.max_tokens_per_batch
                pause = self._pause(now, limit) if self._queue.items else None
                if pause is not None and pause <= 0:
                    late = self._queue.expire(now + _SURE_SHARE * self._expected_seconds())
                    is_tight = self._queue.is_tight(now, self._throughput.seconds_per_token, limit)
                    step = self._queue.next_step(limit, self._engine.layout, earliest_first=is_tight)
                    self._in_step = {sequence.submission for sequence in step}
                    self._leaves_others = self._queue.items > 0
                    self._arrived = 0
                    return late, step
                self._changed.wait(pause)
            return [], []

    def _expected_seconds(self) -> float:
        """Return how long the next step takes, by the recent ones."""
        return min(self._queue.tokens * self._throughput.seconds_per_token, self._throughput.seconds_per_step)

    def _pause(self, now: float, limit: int) -> float:
        """Return the seconds to wait before the next step, so that clients that were answered can ask again."""
        if self._arrived >= self._ended or self._queue.tokens >= limit or self.last_step_finished is None:
            return 0.0
        return self.last_step_finished + self._linger - now

    def _run_step(self, step: list[QueuedSequence]) -> None:
        started = time.monotonic()
        for submission in self._in_step:
            submission.started = submission.started or started
        elsewhere = self._score(step)
        finished = self.last_step_finished = time.monotonic()
        for submission in self._in_step:
            submission.finish(finished)
        with self._changed:
            self._ended = sum(submission.future.done() for submission in self._in_step)
            self._in_step = set()
        tokens, distinct = sum(map(len, step)), sum(sequence.new_tokens for sequence in step)
        is_full = self._leaves_others or 2 * distinct >= self._engine.max_tokens_per_batch
        if is_full:
            self._throughput.record(tokens, finished - started)
        self._on_step(Step(len(step), tokens, distinct, finished - started - elsewhere, is_full))

    def _score(self, step: list[QueuedSequence]) -> float:
        """Score a step, one by one if it fails together. Return the seconds in which the device was not free."""
        columns, elsewhere = self._call_engine(step)
        if columns is not None:
            for sequence, own in zip(step, columns, strict=True):
                sequence.submission.deliver(sequence.index, own, sequence.new_tokens)
            return elsewhere
        for sequence in step:
            if sequence.submission.future.done():
                continue
            columns, waited = self._call_engine([sequence])
            elsewhere += waited
            if columns is not None:
                sequence.submission.deliver(sequence.index, columns[0], len(sequence))
            else:
                message = f"the model gave no finite reward for a sequence of {len(sequence):,} tokens"
                sequence.submission.fail(ServingError("model_fault", message))
        return elsewhere

    def _call_engine(self, step: list[QueuedSequence]) -> tuple[NDArray[np.float32] | None, float]:
        """Return the columns, or `None` if the engine failed or one is not finite, and the wait for the device."""
        asked = time.monotonic()
        with self._device_lock:
            self._call_started = time.monotonic()
            elsewhere = self._call_started - asked
            try:
                columns = self._engine.score_columns([sequence.ids for sequence in step])
            except Exception as error:
                if isinstance(error, _DEVICE_LOST):
                    raise
                logger.error("a step of %d sequences has failed: %s", len(step), _without_message(error))
                return None, elsewhere
            finally:
                self._call_started = None
        if len(columns) == len(step) and np.isfinite(columns).all():
            return columns, elsewhere
        logger.error("a step of %d sequences has a reward that is not finite", len(step))
        return None, elsewhere

    def _forget(self, submission: Submission) -> None:
        with self._changed:
            self._unfinished.discard(submission)
            self._queue.discard(submission)


def _fail(submissions: "set[Submission] | list[Submission]", error: ServingError) -> None:
    for submission in submissions:
        submission.fail(error)


def _ended_error(state: str) -> ServingError:
    if state == "dead":
        return ServingError("dead", "the engine of this model has stopped")
    return ServingError("draining", "the server is shutting down", retry_after=1)


def _without_message(error: BaseException) -> str:
    """Return the type and the traceback of an exception. Its message may hold what a request asked."""
    return "\n".join([type(error).__name__, *traceback.format_tb(error.__traceback__)])
