"""Preference rows -> token-id columns, without the pairs that are too long or cannot teach.

The result has the columns `chosen_ids` and `rejected_ids` (and `margin`), as users of TRL expect. Rows that were
tokenised elsewhere under these names go through the same checks.
"""

import sys
import warnings
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from plaudit.data import formats, rendering
from plaudit.data.caching import source_hash
from plaudit.data.formats import GROUP_COLUMNS, PAIR_COLUMNS, TEMPLATE_COLUMNS, parse_margin, parse_row, shown
from plaudit.data.rendering import render
from plaudit.data.report import IDENTICAL, KEPT, NO_PAIRS, OVERLONG, TokenizationReport, TokenizationRules
from plaudit.errors import DataError

__all__ = ["TokenizationReport", "TokenizationRules", "tokenize_dataset"]

_RAW_COLUMNS = {*PAIR_COLUMNS, *GROUP_COLUMNS, *TEMPLATE_COLUMNS, "chosen_ids", "rejected_ids"}
_LEGACY_NAMES = {"chosen_input_ids": "chosen_ids", "rejected_input_ids": "rejected_ids"}
# What is decided and counted while a pair is tokenised, and not kept: a dropped pair has no tokens.
_JUDGED = {"_status": Value("int8"), "_tokens": Value("int64")}


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    rules: TokenizationRules,
    *,
    split: str,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, TokenizationReport]:
    """Tokenise one split and drop what cannot teach: pairs too long, and pairs whose final ids are equal.

    Args:
        dataset: Raw rows (see `plaudit.data.formats`), or rows with `chosen_ids` and `rejected_ids`.
        tokenizer: The model's tokenizer, its special tokens settled.
        rules: The overlong policy.
        split: A name for messages.
        num_proc: Processes to use; ignored for a stream.

    Returns:
        The dataset with the columns `chosen_ids`, `rejected_ids`, `margin` where a row has one, and the columns
        that are not part of a preference; and the report.

    Raises:
        DataError: A row is malformed, or nothing is left.
    """
    dataset, columns = _named_columns(dataset.with_format(None), split)  # plain Python, whatever format it is read in
    tokenised = {"chosen_ids", "rejected_ids"} <= set(columns)
    streaming = isinstance(dataset, IterableDataset)
    report = TokenizationReport(split, rules, streaming=streaming)
    if not streaming and not len(dataset):
        report.check()  # `map` would not make the columns that are read below
    tokenize = _Tokenize(
        tokenizer,
        rules,
        tokenised,
        "margin" in columns,
        source_hash(formats, rendering, sys.modules[__name__]),
        report if streaming else None,
    )
    if streaming:
        mapped = dataset.map(tokenize, batched=True, batch_size=64, with_indices=True, remove_columns=columns)
        return mapped.filter(_is_kept, input_columns="_status").remove_columns(list(_JUDGED)), report
    mapped = dataset.map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=_features(dataset),
        num_proc=num_proc,
        desc=f"Tokenising {split}",
    )
    judged = mapped.select_columns(list(_JUDGED)).with_format("numpy")[:]
    statuses = np.asarray(judged["_status"], dtype=np.int64)
    report.add(statuses, int(np.sum(judged["_tokens"])))
    mapped = mapped.remove_columns(list(_JUDGED))
    if report.dropped:
        mapped = mapped.select(np.flatnonzero(statuses == KEPT))
    report.check()
    report.log()
    return mapped, report


def _named_columns(dataset: Dataset | IterableDataset, split: str) -> tuple[Dataset | IterableDataset, list[str]]:
    """The dataset with today's column names, and these names. A stream may not know them before its first row."""
    columns = dataset.column_names
    if columns is None:
        first = next(iter(dataset), None)
        if first is None:
            raise DataError(NO_PAIRS.format(split))
        columns = list(first)
    if _LEGACY_NAMES.keys() <= set(columns) and "chosen_ids" not in columns:
        warnings.warn(
            "The columns `chosen_input_ids` and `rejected_input_ids` are deprecated: rename them to `chosen_ids` and "
            "`rejected_ids`.",
            FutureWarning,
            stacklevel=4,
        )
        dataset = dataset.rename_columns(_LEGACY_NAMES)
        columns = [_LEGACY_NAMES.get(column, column) for column in columns]
    return dataset, list(columns)


def _features(dataset: Dataset) -> Features:
    """The columns that come out. Guessed by `datasets`, a first batch of which nothing is kept would have no type."""
    ids = {name: List(Value("int32")) for name in ("chosen_ids", "rejected_ids")}
    margin = {"margin": Value("float64")} if "margin" in dataset.column_names else {}
    passed = {name: kind for name, kind in dataset.features.items() if name not in _RAW_COLUMNS}
    return Features(passed | margin | ids | _JUDGED)


def _is_kept(status: int) -> bool:
    return status == KEPT


@dataclass(frozen=True)
class _Tokenize:
    """A batch of rows -> columns of ids; what `datasets.map` calls.

    `source` stands for the code: see `source_hash`.
    """

    tokenizer: PreTrainedTokenizerBase
    rules: TokenizationRules
    tokenised: bool
    has_margin: bool
    source: str
    report: TokenizationReport | None  # for a stream, which counts as it goes

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        columns = self._check(batch, indices) if self.tokenised else self._render(batch, indices)
        if self.report is not None:
            self.report.add_streamed(columns["_status"], sum(columns["_tokens"]))
        return columns

    def _render(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Raw rows. A ranked group makes several pairs, so the number of rows may change."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        parsed = [parse_row(row, index) for row, index in zip(rows, indices, strict=True)]
        owners = [number for number, preferences in enumerate(parsed) for _ in preferences]
        preferences = list(chain.from_iterable(parsed))
        # By identity: the pairs of a ranked group hold the same K sequences, and each is rendered once.
        sides = {
            id(side): (side, preference.template_options, f"row {indices[owner]}")
            for owner, preference in zip(owners, preferences, strict=True)
            for side in (preference.chosen, preference.rejected)
        }
        sequences, options, names = zip(*sides.values(), strict=True) if sides else ((), (), ())
        ids = dict(zip(sides, render(self.tokenizer, sequences, options, names=names), strict=True))
        chosen, rejected = [ids[id(p.chosen)] for p in preferences], [ids[id(p.rejected)] for p in preferences]
        passed = {
            name: [values[owner] for owner in owners] for name, values in batch.items() if name not in _RAW_COLUMNS
        }
        if self.has_margin:
            passed["margin"] = [preference.margin or 0.0 for preference in preferences]
        return passed | self._judge(chosen, rejected, [indices[owner] for owner in owners])

    def _check(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Rows that come tokenised."""
        for column in ("chosen_ids", "rejected_ids"):
            for ids, index in zip(batch[column], indices, strict=True):
                _check_ids(ids, index, column)
        passed = {name: values for name, values in batch.items() if name not in _RAW_COLUMNS}
        if self.has_margin:
            margins = zip(batch["margin"], indices, strict=True)
            passed["margin"] = [parse_margin(margin, index) or 0.0 for margin, index in margins]
        return passed | self._judge(batch["chosen_ids"], batch["rejected_ids"], indices)

    def _judge(self, chosen: list[list[int]], rejected: list[list[int]], indices: list[int]) -> dict[str, list[Any]]:
        """Apply the overlong policy and mark what is to be dropped; a dropped row keeps no ids."""
        front = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id}
        columns: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": [], "_status": [], "_tokens": []}
        for first, second, index in zip(chosen, rejected, indices, strict=True):
            _check_usable(first, "chosen", index, self.rules.vocabulary_rows)
            _check_usable(second, "rejected", index, self.rules.vocabulary_rows)
            pair = _fit(first, second, self.rules, index, kept=int(first[0] in front))
            status = OVERLONG if pair is None else IDENTICAL if pair[0] == pair[1] else KEPT
            first, second = pair if pair is not None and status == KEPT else ([], [])
            columns["chosen_ids"].append(first)
            columns["rejected_ids"].append(second)
            columns["_status"].append(status)
            columns["_tokens"].append(len(first) + len(second))
        return columns


def _check_ids(ids: Any, index: int, column: str) -> None:
    if not isinstance(ids, list) or not ids or not all(isinstance(token, int) for token in ids):
        raise DataError(
            f"row {index}, column '{column}': expected a list of one or more token ids, got {shown(ids)}. "
            f'Example of the right shape: {{"chosen_ids": [5, 8, 2], "rejected_ids": [5, 9, 2]}}'
        )


def _check_usable(ids: list[int], side: str, index: int, vocabulary_rows: int | None) -> None:
    if not ids:
        raise DataError(
            f"row {index}: expected at least one token in '{side}', but the tokenizer, or its chat template, made none "
            "of it. Drop the row, or look at the template."
        )
    if vocabulary_rows is not None and (min(ids) < 0 or max(ids) >= vocabulary_rows):
        raise DataError(
            f"row {index}: the ids of '{side}' run from {min(ids)} to {max(ids)}, but the model has embeddings for 0 "
            f"to {vocabulary_rows - 1} only. Use the tokenizer that belongs to the model."
        )


def _fit(
    chosen: list[int], rejected: list[int], rules: TokenizationRules, index: int, *, kept: int
) -> tuple[list[int], list[int]] | None:
    """The pair within `max_length`, its first `kept` ids always in front, or `None` where it does not fit."""
    longest = max(len(chosen), len(rejected))
    if rules.max_length is None or longest <= rules.max_length:
        return chosen, rejected
    if rules.overlong == "error":
        raise DataError(
            f"row {index}: its longer sequence has {longest:,} tokens, more than max_length={rules.max_length}. "
            f"Raise `max_length`, or set `overlong` to 'drop' or 'truncate'."
        )
    if rules.overlong == "drop":
        return None
    cut = longest - rules.max_length
    if cut > _shared(chosen, rejected) - kept:  # the response itself would lose its beginning: better no pair
        return None
    return chosen[:kept] + chosen[kept + cut :], rejected[:kept] + rejected[kept + cut :]


def _shared(chosen: list[int], rejected: list[int]) -> int:
    """How many ids both begin with; the last of either is not among them, since the reward is read there."""
    most = min(len(chosen), len(rejected)) - 1
    return next((n for n in range(most) if chosen[n] != rejected[n]), most)
