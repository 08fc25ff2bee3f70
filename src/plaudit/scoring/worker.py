"""A worker scores chunks of rows with one reward model, in this process or in one of a cluster."""

import math
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from plaudit.data.reader import Chunk, Row, Unreadable
from plaudit.data.render import render
from plaudit.errors import DataError
from plaudit.scoring.reward_columns import RewardColumns, ScorableRow, parse_row, row_with_rewards
from plaudit.scoring.reward_model import RewardModel

__all__ = ["ScoredChunk", "ScoringConfig", "Worker"]

# Scored before any row, so that the model's layout is the same in each process and after each start. Their common
# prefix is long enough to be shared.
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

    def manifest(self) -> dict[str, Any]:
        """Return what two starts of one job must have in common, by the names of the command's options."""
        own = {"device": self.device, "threads": self.threads, "normalize": self.normalize}
        options = {name: value for name, value in self.model_options.items() if name != "trust_remote_code"}
        return own | asdict(self.columns) | options | {"batch_rows": self.chunk_rows}


@dataclass(frozen=True)
class ScoredChunk:
    """The result of scoring one chunk of rows.

    Attributes:
        number: Index of the chunk in the source, from 0.
        rows: Its rows with their rewards, in order.
        rejected: The rows that could not be scored, each as `row` (its index in the source), `reason` and `content`.
        tokens: Tokens that were scored; the prompt of a group counts once for each completion.
        truncated: Number of sequences that were too long and were truncated.
        fraction_read: How much of the source had been read at the end of the chunk, from 0 to 1, if that is known.
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
        config: The same in all workers of a job, its device and threads settled.

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
        scorable, rejected = self._parse(chunk)
        truncated = self.reward_model.truncated
        scorable, ids = self._tokenize(scorable, rejected)
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
        tokens = sum(map(len, ids))
        return ScoredChunk(
            chunk.number, rows, rejected, tokens, self.reward_model.truncated - truncated, chunk.fraction_read
        )

    def _parse(self, chunk: Chunk) -> tuple[list[ScorableRow], list[Row]]:
        scorable, rejected = [], []
        for number, row in enumerate(chunk.rows, chunk.first):
            try:
                scorable.append(parse_row(row, number, self._config.columns))
            except DataError as error:
                rejected.append(_rejection(number, row, str(error)))
        return scorable, rejected

    def _tokenize(self, rows: list[ScorableRow], rejected: list[Row]) -> tuple[list[ScorableRow], list[list[int]]]:
        """Return the token ids of all sequences, and the rows that they belong to.

        If a sequence is refused, each row is tried alone to find the row that it is in.
        """
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
