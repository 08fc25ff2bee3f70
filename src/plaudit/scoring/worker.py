"""Chunks of rows scored with one reward model, in this process or in one of a cluster."""

import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from plaudit.data.formats import TextOrChat
from plaudit.data.reader import Chunk, Row, Unreadable
from plaudit.errors import DataError, ModelError
from plaudit.scoring.base_reward_model import ScoredSequences, join_scored
from plaudit.scoring.remote_model import RemoteRewardModel
from plaudit.scoring.reward_columns import RewardColumns, ScorableRow, parse_row, row_with_rewards
from plaudit.scoring.reward_model import RewardModel
from plaudit.scoring.server_connection import is_server_url
from plaudit.uncertainty import Uncertainty, check_aggregate, checked_uncertainty

__all__ = ["ScoredChunk", "ScoringConfig", "Worker"]


@dataclass(frozen=True)
class ScoringConfig:
    """The options of a scoring job: on machines of one kind they decide its output to the last bit.

    Attributes:
        model: Folder or hub id of the reward model, or the address of a `plaudit serve`.
        device: Where the model runs; `None` for the device of an earlier start, else the executor's default, and
            always behind a server.
        threads: torch's threads on the CPU, whose number decides the last bits of sums; `None` for that of an earlier
            start, else torch's default, and always behind a server.
        normalize: Subtract the mean and divide by the standard deviation saved with the model.
        columns: The columns to score and to write.
        skip_bad_rows: Set rows that cannot be scored aside instead of stopping at the first one.
        chunk_rows: Rows of a chunk, which share batches with each other and with no other row.
        model_options: More options of `RewardModel.from_pretrained`, or of `RemoteRewardModel`.
        aggregate: The reward to write, "mean" or a conservative one, as in `RewardModel.score`.
        k: The weight of the standard deviation or variance in a conservative reward.

    Raises:
        ConfigError: There is no such aggregate, or it excludes `normalize`.
    """

    model: str
    device: str | None = None
    threads: int | None = None
    normalize: bool = False
    columns: RewardColumns = field(default_factory=RewardColumns)
    skip_bad_rows: bool = False
    chunk_rows: int = 512
    model_options: dict[str, Any] = field(default_factory=dict)
    aggregate: str = "mean"
    k: float = 1.0

    def __post_init__(self) -> None:
        check_aggregate(self.aggregate, self.k, normalize=self.normalize)


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


class _Scorer(Protocol):
    """A reward model as a worker uses it: what cannot be scored is found before a chunk is scored."""

    uncertainty: Uncertainty | None

    @property
    def truncated(self) -> int:
        """Number of sequences that have been truncated so far."""

    def prepare(self, sequences: list[TextOrChat], options: list[dict[str, Any]], names: list[str]) -> list[Any]:
        """Return for each of N sequences what `score` needs; raise `DataError` or `ModelError` for one that fails."""

    def score(self, prepared: list[Any], on_scored: Callable[[int], object]) -> ScoredSequences:
        """Return the rewards of prepared sequences."""


class _LocalScorer:
    """A reward model in this process: sequences are prepared as token ids, so that those of a chunk share batches."""

    def __init__(self, config: ScoringConfig) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._model = RewardModel.from_pretrained(config.model, device=config.device, **config.model_options)
        self._mean, self._std = self._model.normalization() if config.normalize else (0.0, 1.0)
        self.uncertainty = self._model.uncertainty
        self._model.warm_up()  # so that the layout of batches is the same in each process and after each start

    @property
    def truncated(self) -> int:
        return self._model.truncated

    def prepare(self, sequences: list[TextOrChat], options: list[dict[str, Any]], names: list[str]) -> list[Any]:
        return self._model.token_ids(sequences, options, names)

    def score(self, prepared: list[Any], on_scored: Callable[[int], object]) -> ScoredSequences:
        columns = self._model.engine.score_columns(prepared, on_scored)
        rewards = ((columns[:, 0] - self._mean) / self._std).astype(np.float32)
        tokens, truncated = np.array([len(ids) for ids in prepared], np.int64), np.zeros(len(prepared), np.bool_)
        return ScoredSequences(rewards, tokens, truncated, columns, self.uncertainty, self._std)


class _RemoteScorer:
    """A reward model behind a server, which alone can say what can be scored: to prepare is to have it scored."""

    def __init__(self, config: ScoringConfig) -> None:
        weights = RemoteRewardModel(config.model).info().get("weight_version")
        self._model = RemoteRewardModel(config.model, only_version=weights, **config.model_options)
        self.uncertainty, self._score = self._model.begin_call_with_uncertainty(config.normalize)

    @property
    def truncated(self) -> int:
        return self._model.truncated

    def prepare(self, sequences: list[TextOrChat], options: list[dict[str, Any]], names: list[str]) -> list[Any]:
        scored = self._score(sequences, options, names, lambda _: None)
        return [scored.take(slice(place, place + 1)) for place in range(len(sequences))]

    def score(self, prepared: list[Any], on_scored: Callable[[int], object]) -> ScoredSequences:
        on_scored(len(prepared))
        return join_scored(prepared, self.uncertainty)


class Worker:
    """A reward model that scores chunks.

    Args:
        config: The options, the same in all workers of a job, with device and threads chosen.

    Raises:
        ModelError: The model cannot be loaded.
        ConfigError: The model cannot be used with these options.
        ServerError: The server of the model does not answer.
    """

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config
        self._model: _Scorer = _RemoteScorer(config) if is_server_url(config.model) else _LocalScorer(config)
        checked_uncertainty(self._model.uncertainty, config.model, config.aggregate, config.k)

    def score(self, chunk: Chunk, on_batch: Callable[[float], object] = lambda _: None) -> ScoredChunk:
        """Score the rows of a chunk.

        Unless `skip_bad_rows`, a chunk with a row that cannot be scored comes back without rows and tokens; the model
        does not run if that row is malformed.

        Args:
            chunk: The rows.
            on_batch: Called after each batch with the fraction of the chunk's sequences that are scored.

        Raises:
            ConfigError: A column of rewards has the name of a column that a row has, or the weights behind a server
                have changed.
            ServerError: The server of the model does not answer.
        """
        rejected: list[Row] = []
        truncated_before = self._model.truncated
        scorable, prepared = list(self._parse(chunk, rejected)), list[Any]()
        if not rejected or self._config.skip_bad_rows:
            scorable, prepared = self._prepare(scorable, rejected)
        if rejected and not self._config.skip_bad_rows:
            return ScoredChunk(chunk.number, [], rejected, 0, 0, chunk.fraction_read)
        rewards, stds, tokens = self._rewards(prepared, on_batch)
        end, rows = 0, []
        for row in scorable:
            start, end = end, end + len(row.sequences)
            row_rewards, row_stds = rewards[start:end], None if stds is None else stds[start:end]
            if all(map(math.isfinite, row_rewards + (row_stds or []))):
                rows.append(row_with_rewards(row, row_rewards, self._config.columns, row_stds))
            else:
                what = "" if row_stds is None else f" with standard deviations {row_stds}"
                reason = f"row {row.number}: expected finite rewards, got {row_rewards}{what}. Try --dtype float32."
                rejected.append(_rejection(row.number, row.row, reason))
        rejected.sort(key=lambda each: each["row"])
        truncated = self._model.truncated - truncated_before
        return ScoredChunk(chunk.number, rows, rejected, tokens, truncated, chunk.fraction_read)

    def _parse(self, chunk: Chunk, rejected: list[Row]) -> Iterator[ScorableRow]:
        uncertainty = self._model.uncertainty
        with_std = uncertainty is not None and uncertainty.is_measured
        for number, row in enumerate(chunk.rows, chunk.first):
            try:
                yield parse_row(row, number, self._config.columns, with_std=with_std)
            except DataError as error:
                rejected.append(_rejection(number, row, str(error)))

    def _prepare(self, rows: list[ScorableRow], rejected: list[Row]) -> tuple[list[ScorableRow], list[Any]]:
        """Return the rows that can be scored and what is prepared of them; after an error, halve them to find it."""
        sequences = [sequence for row in rows for sequence in row.sequences]
        names = [name for row in rows for name in row.names]
        options = [row.template_options for row in rows for _ in row.sequences]
        try:
            return rows, self._model.prepare(sequences, options, names)
        except (DataError, ModelError) as error:
            if len(rows) == 1:
                number = rows[0].number
                reason = str(error) if isinstance(error, DataError) else f"row {number}: {error}"
                rejected.append(_rejection(number, rows[0].row, reason))
                return [], []
        middle = len(rows) // 2
        parts = [self._prepare(half, rejected) for half in (rows[:middle], rows[middle:])]
        return [row for kept, _ in parts for row in kept], [each for _, prepared in parts for each in prepared]

    def _rewards(
        self, prepared: list[Any], on_batch: Callable[[float], object]
    ) -> tuple[list[float], list[float] | None, int]:
        """Return rewards, of a model with an uncertainty their standard deviations, and the sum of the tokens."""
        scored = 0

        def count(sequences: int) -> None:
            nonlocal scored
            scored += sequences
            on_batch(scored / len(prepared))

        found = self._model.score(prepared, count).aggregate(self._config.aggregate, self._config.k)
        stds = _decimals(found.stds()) if found.has_stds else None
        return _decimals(found.rewards), stds, int(found.tokens.sum())


def _decimals(values: NDArray[np.float32]) -> list[float]:
    """Return the shortest decimal of each float32."""
    return [float(str(value)) for value in values.astype("float32")]


def _rejection(number: int, row: Row | Unreadable, reason: str) -> Row:
    content = row.content if isinstance(row, Unreadable) else row
    return {"row": number, "reason": reason, "content": content}
