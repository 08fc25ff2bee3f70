"""Preference rows -> token-id columns, without what is too long or cannot teach.

Pairs get the columns `chosen_ids` and `rejected_ids`, as users of TRL expect; a split with ranked groups gets
`sequence_ids` and `ranks`. One row stays one row, or is dropped. Rows that were tokenised elsewhere under these names
go through the same checks.
"""

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset
from transformers import PreTrainedTokenizerBase

from plaudit.data import annotations, formats, prompts, schema, truncation
from plaudit.data import render as rendering
from plaudit.data.prompts import prompt_key
from plaudit.data.render import render
from plaudit.data.schema import COUNTS, ColumnSchema, Parsed
from plaudit.data.source_hash import source_hash
from plaudit.data.tokenization_report import NO_PAIRS, TokenizationReport, TokenizationRules
from plaudit.data.truncation import Fitted, fit
from plaudit.errors import DataError

__all__ = ["TokenizationReport", "TokenizationRules", "tokenize_dataset"]

_LEGACY_NAMES = {"chosen_input_ids": "chosen_ids", "rejected_input_ids": "rejected_ids"}
# The modules whose code decides what comes out.
_SOURCES = (annotations, truncation, formats, schema, prompts, rendering, sys.modules[__name__])


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    rules: TokenizationRules,
    *,
    split: str,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, TokenizationReport]:
    """Tokenise one split and drop what cannot teach: sequences too long, and comparisons of the same final ids.

    Args:
        dataset: Raw rows (see `plaudit.data.formats`), or rows with `chosen_ids` and `rejected_ids`, or with
            `sequence_ids` and `ranks`.
        tokenizer: The model's tokenizer, its special tokens settled.
        rules: The overlong policy, and whether to add `prompt_key`.
        split: A name for messages.
        num_proc: Processes to use; ignored for a stream.

    Returns:
        The dataset and the report. Its columns are, for a split of pairs, `chosen_ids`, `rejected_ids` and those of
        `margin`, `weight`, `label` and `tie` that it came with; for a split with a column `completions`, whose pairs
        become groups of two, `sequence_ids`, `ranks` and those of `scores` and `weight` that it came with; and the
        columns that are not part of a preference.

    Raises:
        DataError: A row is malformed, or nothing is left.
    """
    dataset, columns = _named_columns(dataset.with_format(None), split)  # plain Python, whatever format it is read in
    layout = ColumnSchema.of(columns, prompt_keys=rules.prompt_keys, ties=rules.ties)
    streaming = isinstance(dataset, IterableDataset)
    report = TokenizationReport(split, rules, streaming=streaming)
    if not streaming and not len(dataset):
        report.check()  # `map` would not make the columns that are read below
    tokenize = _Tokenize(tokenizer, rules, layout, source_hash(*_SOURCES), report if streaming else None)
    if streaming:
        mapped = dataset.map(tokenize, batched=True, batch_size=64, with_indices=True, remove_columns=columns)
        return mapped.filter(_is_kept, input_columns="_kept").remove_columns(list(COUNTS)), report
    mapped = dataset.map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=Features(layout.passed(dataset.features) | layout.features | COUNTS),
        num_proc=num_proc,
        desc=f"Tokenising {split}",
    )
    counts = mapped.select_columns(list(COUNTS)).with_format("numpy")[:]
    report.add(**{name.removeprefix("_"): int(np.sum(counts[name])) for name in COUNTS})
    mapped = mapped.remove_columns(list(COUNTS))
    rows = np.flatnonzero(counts["_kept"])
    if len(rows) < len(mapped):
        mapped = mapped.select(rows)
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


def _is_kept(kept: int) -> bool:
    return kept > 0


@dataclass(frozen=True)
class _Tokenize:
    """A batch of rows -> columns of ids; what `datasets.map` calls.

    `source` stands for the code: see `source_hash`.
    """

    tokenizer: PreTrainedTokenizerBase
    rules: TokenizationRules
    layout: ColumnSchema
    source: str
    report: TokenizationReport | None  # for a stream, which counts as it goes

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        parsed = [self.layout.parse(row, index) for row, index in zip(rows, indices, strict=True)]
        ids = self._ids(parsed, indices)
        fitted = [self._fit(*row) for row in zip(parsed, ids, indices, strict=True)]
        columns = self.layout.passed(batch)
        if self.layout.prompt_keys:
            keys = zip(rows, ids, strict=True)
            columns["prompt_key"] = [prompt_key(self.layout.prompt(row, sequences)) for row, sequences in keys]
        columns |= self.layout.columns(parsed, fitted) | _counted(fitted)
        if self.report is not None:
            self.report.add_streamed(**{name.removeprefix("_"): sum(columns[name]) for name in COUNTS})
        return columns

    def _ids(self, parsed: list[Parsed], indices: list[int]) -> list[list[list[int]]]:
        """The ids of every row's sequences; they are rendered all at once."""
        if self.layout.tokenised:
            return [row.sequences for row in parsed]
        owned = [
            (sequence, row.template_options, f"row {index}")
            for row, index in zip(parsed, indices, strict=True)
            for sequence in row.sequences
        ]
        sequences, options, names = zip(*owned, strict=True)
        ids = iter(render(self.tokenizer, sequences, options, names=names))
        return [[next(ids) for _ in row.sequences] for row in parsed]

    def _fit(self, row: Parsed, ids: list[list[int]], index: int) -> Fitted:
        for sequence, name in zip(ids, row.names, strict=True):
            _check_usable(sequence, name, index, self.rules.vocabulary_rows)
        front = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id}
        return fit(ids, row.comparisons, self.rules, index, front)


def _counted(fitted: list[Fitted]) -> dict[str, list[int]]:
    return {
        "_kept": [row.kept for row in fitted],
        "_overlong": [row.overlong for row in fitted],
        "_identical": [row.identical for row in fitted],
        "_tokens": [sum(map(len, row.sequences)) for row in fitted],
    }


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
