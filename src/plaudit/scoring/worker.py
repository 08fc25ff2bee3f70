"""Rows in, the same rows with their rewards out, block by block: what a worker does, on this machine or another."""

import math
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from plaudit.data.formats import Sequence, join_responses, remark_on_ids
from plaudit.data.reader import Chunk as Block
from plaudit.data.reader import Row, Unreadable
from plaudit.data.render import render
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.completions import in_one_form
from plaudit.scoring.reward_model import RewardModel

__all__ = ["KINDS", "Rules", "ScoredBlock", "Settings", "Worker"]

# What is scored in a row, and the columns that make it such a row. Several kinds in one row are not guessed about.
KINDS = {
    "pair": ("chosen", "rejected"),
    "group": ("completions",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
_SHAPES = (
    "'chosen' and 'rejected', 'prompt' and 'completions', 'prompt' and 'completion', 'messages', or 'text'; "
    "a 'prompt' and 'chosen' and 'rejected' all texts, or all lists of messages"
)
# What is scored before any row, so that a model's layout is the same in each process and after each start. Their common
# beginning is long enough to be shared.
_STORY = "The ferry leaves the harbour at nine, and the captain counts the passengers one by one. " * 4
_PROBES = [_STORY + end for end in ("Nobody is late.", "Two are late, and wave from the pier.", "")]


@dataclass(frozen=True)
class Rules:
    """What becomes of a row.

    Attributes:
        kind: What is scored in it, a key of `KINDS`; what its columns say if `None`.
        column: What the column of rewards is called; those of a pair have "chosen_" and "rejected_" before it.
        best_of: Keep the best completion of a group, in the column `completion`.
        skip: Put rows that cannot be scored aside; else the block with the first of them is given up.
    """

    kind: str | None = None
    column: str = "reward"
    best_of: bool = False
    skip: bool = False


@dataclass(frozen=True)
class Settings:
    """All that decides a block's rewards to the last bit, on machines of one kind.

    Attributes:
        model: A reward model's folder or hub id.
        device: Where it runs.
        threads: torch's threads on the CPU: how sums are split decides their last bits.
        normalize: Whether rewards are normalised.
        rules: What becomes of a row.
        options: More for `RewardModel.from_pretrained`.
    """

    model: str
    device: str = "cpu"
    threads: int = 1
    normalize: bool = False
    rules: Rules = field(default_factory=Rules)
    options: dict[str, Any] = field(default_factory=dict)

    def decisive(self) -> dict[str, Any]:
        """What two runs must have in common, by the names of the command's options."""
        rules = {name: value for name, value in asdict(self.rules).items() if name != "skip"}
        rules["reward_column"] = rules.pop("column")
        own = {"device": self.device, "threads": self.threads, "normalize": self.normalize}
        return own | rules | {name: value for name, value in self.options.items() if name != "trust_remote_code"}


@dataclass(frozen=True)
class ScoredBlock:
    """What became of a block.

    Attributes:
        number: Which block it was.
        rows: Its rows with their rewards, in order.
        rejected: The rows that could not be scored: their number in the source, why, and what they hold.
        tokens: How many were scored, prompts of groups counted once for each completion.
        cut: How many sequences were too long and were cut.
        share: How much of the source had been read at its end.
        worker: The machine and the process that scored it.
    """

    number: int
    rows: list[Row]
    rejected: list[Row]
    tokens: int
    cut: int
    share: float | None
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")


@dataclass(frozen=True)
class _Parsed:
    """A row that is well formed: what is scored in it."""

    number: int
    row: Row
    kind: str
    sequences: list[Sequence]
    names: list[str]
    options: dict[str, Any]


class Worker:
    """A reward model that scores blocks.

    Args:
        settings: The same in all workers of a run.
        progress: Called after each batch with the share of the block's sequences that are scored.

    Raises:
        ModelError: The model cannot be loaded.
        ConfigError: It cannot be used with these settings.
    """

    def __init__(self, settings: Settings, progress: Callable[[float], object] = lambda _: None) -> None:
        torch.set_num_threads(settings.threads)
        self._progress = progress
        self._rules = settings.rules
        self._model = RewardModel.from_pretrained(settings.model, device=settings.device, **settings.options)
        self._scale = self._model.normalization() if settings.normalize else None
        ids = render(self._model.tokenizer, _PROBES)
        self._model.engine.score([each[: self._model.max_length] for each in ids])

    def score(self, block: Block) -> ScoredBlock:
        """Score a block's rows; they share batches with each other and with nothing else.

        Raises:
            ConfigError: A column that would be written is there already.
        """
        well: list[_Parsed] = []
        rejected: list[Row] = []
        for number, row in enumerate(block.rows, block.first):
            try:
                well.append(_parse(row, number, self._rules))
            except DataError as error:
                rejected.append(_rejection(number, row, str(error)))
        cut = self._model.cut
        well, ids = self._render(well, rejected)
        if rejected and not self._rules.skip:
            return ScoredBlock(block.number, [], rejected, 0, 0, block.share)
        rewards = iter(self._rewards(ids))
        rows = []
        for parsed in well:
            own = [next(rewards) for _ in parsed.sequences]
            if all(map(math.isfinite, own)):
                rows.append(_with_rewards(parsed, own, self._rules))
            else:
                reason = f"row {parsed.number}: expected finite rewards, got {own}. Try --dtype float32."
                rejected.append(_rejection(parsed.number, parsed.row, reason))
        rejected.sort(key=lambda each: each["row"])
        tokens = sum(map(len, ids))
        return ScoredBlock(block.number, rows, rejected, tokens, self._model.cut - cut, block.share)

    def _render(self, rows: list[_Parsed], rejected: list[Row]) -> tuple[list[_Parsed], list[list[int]]]:
        """The ids of all sequences, and the rows they belong to. If one is refused, each is tried alone to find it."""
        sequences = [sequence for row in rows for sequence in row.sequences]
        names = [name for row in rows for name in row.names]
        try:
            return rows, self._model.token_ids(sequences, [row.options for row in rows for _ in row.sequences], names)
        except DataError as error:
            if len(rows) == 1:
                rejected.append(_rejection(rows[0].number, rows[0].row, str(error)))
                return [], []
        parts = [self._render([row], rejected) for row in rows]
        return [row for kept, _ in parts for row in kept], [each for _, ids in parts for each in ids]

    def _rewards(self, ids: list[list[int]]) -> list[float]:
        scored = 0

        def count(sequences: int) -> None:
            nonlocal scored
            scored += sequences
            self._progress(scored / len(ids))

        rewards = self._model.engine.score(ids, count)
        if self._scale is not None:
            rewards = (rewards - self._scale[0]) / self._scale[1]
        return [float(str(reward)) for reward in rewards.astype("float32")]  # in as few digits as tell it


def _parse(row: Row | Unreadable, number: int, rules: Rules) -> _Parsed:
    if isinstance(row, Unreadable):
        raise DataError(f"row {number}: {row.reason}")
    kind = _kind_of(row, number, rules)
    names = KINDS[kind][-1:] if kind != "pair" else KINDS[kind]
    responses = {name: row[name] for name in names}
    if kind == "group":
        completions = row["completions"]
        if not isinstance(completions, list) or not completions:
            raise DataError(
                f"row {number}, column 'completions': expected one or more in a list, got {completions!r:.80}"
            )
        responses = {f"completions[{place}]": each for place, each in enumerate(completions)}
    prompt = row.get("prompt") if kind not in ("text", "messages") else None
    if kind in ("completion", "group") and prompt is not None:
        prompt, aligned = in_one_form(prompt, list(responses.values()))
        responses = dict(zip(responses, aligned, strict=True))
    sequences, options = join_responses(row | {"prompt": prompt}, responses, number)
    called = [f"row {number}, column '{name}'" for name in responses]
    return _Parsed(number, row, kind, sequences, called, options)


def _kind_of(row: Row, number: int, rules: Rules) -> str:
    kinds = [kind for kind, columns in KINDS.items() if all(row.get(column) is not None for column in columns)]
    if rules.kind is not None:
        kinds = [kind for kind in kinds if kind == rules.kind]
    if len(kinds) > 1:
        raise DataError(
            f"row {number}: expected one thing to score, got {', '.join(kinds)}. Choose with --kind {kinds[0]}, say."
        )
    expected = ", ".join(f"'{column}'" for column in KINDS[rules.kind]) if rules.kind else _SHAPES
    if not kinds:
        raise DataError(
            f"row {number}: expected {expected}; the row has values in {', '.join(map(repr, _filled(row)))}. "
            f"{remark_on_ids(row)}".strip()
        )
    if rules.best_of and kinds != ["group"]:
        raise DataError(f"row {number}: --best_of expected a group ('completions'), got a row of kind {kinds[0]}")
    names = ["chosen_" + rules.column, "rejected_" + rules.column] if kinds == ["pair"] else [rules.column]
    if taken := [name for name in names if row.get(name) is not None]:
        raise ConfigError(
            f"row {number} has a column '{taken[0]}' already. Name another for the rewards with --reward_column."
        )
    if rules.best_of and row.get("completion") is not None:
        raise ConfigError(
            f"row {number} has a column 'completion' already, where --best_of puts the best. Rename it, or leave "
            "--best_of out."
        )
    return kinds[0]


def _filled(row: Row) -> list[str]:
    return sorted(name for name, value in row.items() if value is not None)


def _with_rewards(parsed: _Parsed, rewards: list[float], rules: Rules) -> Row:
    if parsed.kind == "pair":
        names = ("chosen_" + rules.column, "rejected_" + rules.column)
        return parsed.row | dict(zip(names, rewards, strict=True))
    if not rules.best_of:
        return parsed.row | {rules.column: rewards if parsed.kind == "group" else rewards[0]}
    best = max(range(len(rewards)), key=rewards.__getitem__)  # the first of equals
    rest = {name: value for name, value in parsed.row.items() if name != "completions"}
    return rest | {"completion": parsed.row["completions"][best], rules.column: rewards[best]}


def _rejection(number: int, row: Row | Unreadable, reason: str) -> Row:
    content = row.content if isinstance(row, Unreadable) else row
    return {"row": number, "reason": reason, "content": content}
