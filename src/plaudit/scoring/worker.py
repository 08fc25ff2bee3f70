"""Chunks of rows scored with one reward model, in this process or in one of a cluster."""

import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from plaudit.data.reader import Chunk, Row, Unreadable
from plaudit.data.render import render
from plaudit.errors import DataError
from plaudit.scoring.reward_columns import RewardColumns, ScorableRow, parse_row, row_with_rewards
from plaudit.scoring.reward_model import RewardModel

__all__ = ["ScoredChunk", "ScoringConfig", "Worker"]

# Scored before any row, so that the engine chooses the same layout of batches in each process and after each start.
# Their common prefix is long enough to be shared.
_STORY = "The ferry leaves the harbour at nine, and the captain counts the passengers one by one. " * 4
_PROBES = [_STORY + end for end in ("Nobody is late.", "Two are late, and wave from the pier.", "")]


@dataclass(frozen=True)
class ScoringConfig:
    """The options of a scoring job: on machines of one kind they decide its output to the last bit.

    Attributes:
        model: Folder or hub id of the reward model.
        device: Where the model runs; `None` for the device of an earlier start, else the executor's default.
        threads: torch's threads on the CPU, whose number decides the last bits of sums; `None` for that of an earlier
            start, else torch's default.
        normalize: Subtract the mean and divide by the standard deviation saved with the model.
        columns: The columns to score and to write.
        skip_bad_rows: Set rows that cannot be scored aside instead of stopping at the first one.
        chunk_rows: Rows of a chunk, which share batches with each other and with no other row.
        model_options: More options of `RewardModel.from_pretrained`.
    """

    model: str
    device: str | None = None
    threads: int | None = None
    normalize: bool = False
    columns: RewardColumns = field(default_factory=RewardColumns)
    skip_bad_rows: bool = False
    chunk_rows: int = 512
    model_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredChunk:
    """The result of scoring one chunk of rows.

    Attributes:
        number: Index of the chunk in the source, from 0.
        rows: Its rows with their rewards, in order.
        rejected: The rows that could not be scored, each as `row` (its index in the source), `reason` and `content`.
        tokens: Tokens that were scored; the prompt of a group counts once for each completion.
        truncated: Number of sequences that were too long and were truncated.
        fraction_read: The fraction of the source that had been read at the end of the chunk, if that is known.
        worker: The machine and the process that scored the chunk.
    """

    number: int
    rows: list[Row]
    rejected: list[Row]
    tokens: int
    truncated: int
    fraction_read: float | None
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")


class Worker:
    """A reward model that scores chunks.

    Args:
        config: The options, the same in all workers of a job, with device and threads chosen.

    Raises:
        ModelError: The model cannot be loaded.
        ConfigError: The model cannot be used with these options.
    """

    def __init__(self, config: ScoringConfig) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._config = config
        self.reward_model = RewardModel.from_pretrained(config.model, device=config.device, **config.model_options)
        self._scale = self.reward_model.normalization() if config.normalize else None
        ids = render(self.reward_model.tokenizer, _PROBES)
        self.reward_model.engine.score([each[: self.reward_model.max_length] for each in ids])

    def score(self, chunk: Chunk, on_batch: Callable[[float], object] = lambda _: None) -> ScoredChunk:
        """Score the rows of a chunk.

        Unless `skip_bad_rows`, a chunk with a row that cannot be scored comes back without rows and tokens; the model
        does not run if that row is malformed.

        Args:
            chunk: The rows.
            on_batch: Called after each batch with the fraction of the chunk's sequences that are scored.

        Raises:
            ConfigError: A column of rewards has the name of a column that a row has.
        """
        rejected: list[Row] = []
        truncated_before = self.reward_model.truncated
        scorable, ids = self._tokenize(list(self._parse(chunk, rejected)), rejected)
        if rejected and not self._config.skip_bad_rows:
            return ScoredChunk(chunk.number, [], rejected, 0, 0, chunk.fraction_read)
        rewards, rows = iter(self._rewards(ids, on_batch)), []
        for row in scorable:
            own = [next(rewards) for _ in row.sequences]
            if all(map(math.isfinite, own)):
                rows.append(row_with_rewards(row, own, self._config.columns))
            else:
                reason = f"row {row.number}: expected finite rewards, got {own}. Try --dtype float32."
                rejected.append(_rejection(row.number, row.row, reason))
        rejected.sort(key=lambda each: each["row"])
        tokens, truncated = sum(map(len, ids)), self.reward_model.truncated - truncated_before
        return ScoredChunk(chunk.number, rows, rejected, tokens, truncated, chunk.fraction_read)

    def _parse(self, chunk: Chunk, rejected: list[Row]) -> Iterator[ScorableRow]:
        for number, row in enumerate(chunk.rows, chunk.first):
            try:
                yield parse_row(row, number, self._config.columns)
            except DataError as error:
                rejected.append(_rejection(number, row, str(error)))

    def _tokenize(self, rows: list[ScorableRow], rejected: list[Row]) -> tuple[list[ScorableRow], list[list[int]]]:
        """Return the rows that can be tokenised and their token ids; after an error, try each row alone to find it."""
        sequences = [sequence for row in rows for sequence in row.sequences]
        names = [name for row in rows for name in row.names]
        options = [row.template_options for row in rows for _ in row.sequences]
        try:
            return rows, self.reward_model.token_ids(sequences, options, names)
        except DataError as error:
            if len(rows) == 1:
                rejected.append(_rejection(rows[0].number, rows[0].row, str(error)))
                return [], []
        parts = [self._tokenize([row], rejected) for row in rows]
        return [row for kept, _ in parts for row in kept], [each for _, ids in parts for each in ids]

    def _rewards(self, ids: list[list[int]], on_batch: Callable[[float], object]) -> list[float]:
        scored = 0

        def count(sequences: int) -> None:
            nonlocal scored
            scored += sequences
            on_batch(scored / len(ids))

        rewards = self.reward_model.engine.score(ids, count)
        if self._scale is not None:
            rewards = (rewards - self._scale[0]) / self._scale[1]
        return [float(str(reward)) for reward in rewards.astype("float32")]  # the shortest decimal of each float32


def _rejection(number: int, row: Row | Unreadable, reason: str) -> Row:
    content = row.content if isinstance(row, Unreadable) else row
    return {"row": number, "reason": reason, "content": content}
