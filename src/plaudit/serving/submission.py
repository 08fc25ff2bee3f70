"""`Submission`: sequences that one request hands to the scheduler, and the future that gets their rewards."""

import contextlib
import itertools
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plaudit.serving.serving_errors import ServingError

__all__ = ["Outcome", "QueuedSequence", "Submission"]

_numbers = itertools.count()  # the order of arrival of all sequences


@dataclass(frozen=True)
class Outcome:
    """The rewards of a submission of N sequences, and what the model says of its uncertainty.

    Attributes:
        columns: Columns [N, C] in the order of the sequences: the reward, and those of the model's uncertainty.
        distinct_tokens: Tokens that ran for this submission; a shared prefix counts for the sequence that brought it
            into the step.
        started: `time.monotonic()` before the first step that had one of the sequences.
        finished: `time.monotonic()` after the last one.
    """

    columns: NDArray[np.float32]
    distinct_tokens: int
    started: float
    finished: float

    @property
    def rewards(self) -> NDArray[np.float32]:
        """Rewards [N], the first of the columns."""
        return self.columns[:, 0]


@dataclass(eq=False, slots=True)
class QueuedSequence:
    """One sequence of a submission.

    Attributes:
        submission: The submission.
        index: Position among the sequences of the submission.
        ids: Token ids, uint32.
        order: Sort key by which sequences with a common prefix are neighbours; unique.
        is_waiting: The sequence is in no step yet.
        new_tokens: Tokens that the step runs for it, set when a step takes it.
    """

    submission: "Submission"
    index: int
    ids: NDArray[np.uint32]
    order: tuple[bytes, int]
    is_waiting: bool = True
    new_tokens: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(eq=False, slots=True)
class Submission:
    """N sequences of one client; ends once, with all rewards or with an error.

    Attributes:
        client: Name of whoever is charged.
        deadline: `time.monotonic()` after which no sequence of it starts.
        columns: Columns [N, C], filled in by the steps.
        future: The future that the caller waits for. It stays pending until the end, so that it can be cancelled.
        waiting: Number of sequences in the queue, kept by the queue.
        waiting_tokens: Their tokens, whole lengths, kept by the queue.
        is_discarded: The sequences in the queue are not to run, kept by the queue.
        missing: Number of rewards that are still to come.
        distinct_tokens: As in the outcome, so far.
        started: As in the outcome; 0 before the first step.
    """

    client: str
    deadline: float
    columns: NDArray[np.float32]
    future: "Future[Outcome]" = field(default_factory=Future)
    waiting: int = 0
    waiting_tokens: int = 0
    is_discarded: bool = False
    missing: int = 0
    distinct_tokens: int = 0
    started: float = 0.0

    @classmethod
    def of(
        cls, sequences: Sequence[NDArray[np.int64]], client: str, deadline: float, num_columns: int = 1
    ) -> tuple["Submission", list[QueuedSequence]]:
        """Return a submission and its sequences, sorted so that common prefixes are neighbours.

        Args:
            sequences: N arrays of one or more token ids, each 0 to 2**32 - 1.
            client: Name of whoever is charged.
            deadline: `time.monotonic()` after which no sequence of it starts.
            num_columns: The number C of columns of each sequence.

        Raises:
            ValueError: There is no sequence, a sequence is empty, or a token id is outside the range.
        """
        if not sequences or any(len(ids) == 0 for ids in sequences):
            raise ValueError("expected one or more sequences of one or more token ids each")
        if any(int(ids.min()) < 0 or int(ids.max()) >= 2**32 for ids in sequences):
            raise ValueError("expected token ids of 0 to 2**32 - 1")
        columns = np.zeros((len(sequences), num_columns), dtype=np.float32)
        submission = cls(client, deadline, columns, missing=len(sequences))
        # Four big-endian bytes a token: the order of the bytes is the order of the ids, in half the memory of int64.
        keys = [ids.astype(">u4").tobytes() for ids in sequences]
        queued = [
            QueuedSequence(submission, index, np.frombuffer(keys[index], dtype=">u4"), (keys[index], next(_numbers)))
            for index in sorted(range(len(keys)), key=keys.__getitem__)
        ]
        return submission, queued

    def deliver(self, index: int, columns: NDArray[np.float32], new_tokens: int) -> None:
        """Note the columns [C] of one sequence."""
        self.columns[index] = columns
        self.distinct_tokens += new_tokens
        self.missing -= 1

    def finish(self, now: float) -> None:
        """Hand the rewards over if none is missing; do nothing if the submission has ended already."""
        if not self.missing:
            outcome = Outcome(self.columns, self.distinct_tokens, self.started, now)
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(outcome)

    def fail(self, error: ServingError) -> None:
        """End with an error; do nothing if the submission has ended already."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)
