"""Tokenisation of a split: preference rows become columns of token ids, and rows without a comparison are dropped.

A pair gets the columns `chosen_ids` and `rejected_ids`, as users of TRL expect; in a split with ranked groups, a row
gets `sequence_ids`, `ranks` and the `comparisons` between its sequences. One row stays one row, or is dropped. Rows
that have token ids already go through the same checks.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from plaudit.data.formats import ParsedRow
from plaudit.data.prompts import common_prefix, prompt_key, prompt_of
from plaudit.data.rankings import comparisons_of_ranking, ties_of_ranking
from plaudit.data.render import render
from plaudit.data.schema import PAIR_IDS, ColumnSchema
from plaudit.data.source_hash import source_hash
from plaudit.data.tokenization_report import TokenizationReport, TokenizationRules
from plaudit.data.truncation import apply_max_length
from plaudit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenizationReport", "TokenizationRules", "tokenize_dataset"]

_LEGACY_NAMES = {"chosen_input_ids": "chosen_ids", "rejected_input_ids": "rejected_ids"}
_COUNTS = ["_kept", "_overlong", "_identical", "_tokens"]  # of each row, as the report adds them; removed in the end


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    rules: TokenizationRules,
    *,
    split: str,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, TokenizationReport]:
    """Tokenise one split, and drop sequences that are too long and comparisons of identical ids.

    Args:
        dataset: Raw rows (see `plaudit.data.formats`), or rows with `chosen_ids` and `rejected_ids`, or with
            `sequence_ids` and `ranks`.
        tokenizer: The model's tokenizer, its special tokens settled.
        rules: The overlong policy, and whether ties make comparisons.
        split: The name of the split, for messages.
        num_proc: The number of processes; ignored for a stream.

    Returns:
        The tokenised split and the report. The columns of a split of pairs are `chosen_ids`, `rejected_ids` and those
        of `margin`, `weight`, `label` and `tie` that the split came with. Those of a split with a column `completions`
        are `sequence_ids`, `ranks`, those of `scores` and `weight` that it came with, `comparisons` ([better, worse]
        indices into the row's sequences, the best response's first) and, if `rules.ties`, `ties`. Both have:

        - `row_number`: the index of the row in `dataset`;
        - `prompt_key`: an integer that rows of one prompt share; one that the rows came with is kept;
        - `num_tokens`: the tokens of the row as a forest, in which a shared prefix counts once;
        - `sequence_lengths`: the length of each sequence;
        - the columns of `dataset` that are not part of a preference.

    Raises:
        DataError: A row is malformed, or no comparison is left.
    """
    from datasets import Features, IterableDataset, Value

    dataset, columns = _named_columns(dataset.with_format(None), split)  # rows of plain Python values
    schema = ColumnSchema.of(columns, ties=rules.ties)
    streaming = isinstance(dataset, IterableDataset)
    report = TokenizationReport(split, rules, streaming=streaming)
    if not streaming and not len(dataset):
        report.check()
    to_columns = _RowsToColumns(tokenizer, rules, schema, source_hash(), report if streaming else None)
    if streaming:
        mapped = dataset.map(to_columns, batched=True, batch_size=64, with_indices=True, remove_columns=columns)
        return mapped.filter(operator.truth, input_columns="_kept").remove_columns(_COUNTS), report
    counted = dict.fromkeys(_COUNTS, Value("int64"))
    mapped = dataset.map(
        to_columns,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=Features(schema.passed_through(dataset.features) | schema.features | counted),
        num_proc=num_proc,
        desc=f"Tokenising {split}",
    )
    counts = mapped.select_columns(_COUNTS).with_format("numpy")[:]
    report.add(*(int(counts[name].sum()) for name in _COUNTS))
    mapped = mapped.remove_columns(_COUNTS)
    if not counts["_kept"].all():
        mapped = mapped.select(counts["_kept"].nonzero()[0])
    report.check()
    report.log()
    return mapped, report


def _named_columns(dataset: Any, split: str) -> tuple[Any, list[str]]:
    """Return the dataset with TRL's old column names replaced, and its column names; raise if it has none."""
    columns = dataset.column_names
    if columns is None:  # a stream that does not know its columns before its first row
        columns = list(next(iter(dataset), {}))
    if not columns:
        TokenizationReport(split, TokenizationRules()).check()
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


@dataclass(frozen=True)
class _RowsToColumns:
    """The function that `datasets.map` calls on each batch of rows. `source` stands for its code: see `source_hash`."""

    tokenizer: PreTrainedTokenizerBase
    rules: TokenizationRules
    schema: ColumnSchema
    source: str
    report: TokenizationReport | None  # of a stream, which is counted as it is read

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        parsed = [self.schema.parse(row, index) for row, index in zip(rows, indices, strict=True)]
        rendered = self._token_ids(parsed, indices)
        values = [
            self._values(row, ids, index) | {"row_number": index, "prompt_key": self._prompt_key(raw, ids)}
            for raw, row, ids, index in zip(rows, parsed, rendered, indices, strict=True)
        ]
        columns = {name: [each[name] for each in values] for name in [*self.schema.features, *_COUNTS]}
        if self.report is not None:
            self.report.add(*(sum(columns[name]) for name in _COUNTS))
        return self.schema.passed_through(batch) | columns

    def _token_ids(self, rows: list[ParsedRow], indices: list[int]) -> list[list[list[int]]]:
        """Return the ids of each row's sequences; one call renders the sequences of all rows."""
        if self.schema.tokenised:
            return [row.sequences for row in rows]
        sequences = [sequence for row in rows for sequence in row.sequences]
        options = [row.template_options for row in rows for _ in row.sequences]
        names = [f"row {index}" for row, index in zip(rows, indices, strict=True) for _ in row.sequences]
        ids = iter(render(self.tokenizer, sequences, options, names=names))
        return [[next(ids) for _ in row.sequences] for row in rows]

    def _values(self, row: ParsedRow, ids: list[list[int]], index: int) -> dict[str, Any]:
        """Return the values of a row in the columns of pairs and in those of groups, and its counts."""
        for sequence, column in zip(ids, row.columns, strict=True):
            _check_usable(sequence, column, index, self.rules.vocabulary_rows)
        leading = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id}
        fitting = apply_max_length(ids, self.rules, index, leading)
        sequences, ranks = list(fitting.values()), [row.ranks[place] for place in fitting]
        with_ties = self.rules.ties or not self.schema.groups  # a pair is a comparison even if it is a tie
        comparisons = comparisons_of_ranking(sequences, ranks)
        ties = ties_of_ranking(sequences, ranks) if with_ties else []
        kept = len(comparisons) + len(ties)
        wanted, short_enough = _comparable(row.ranks, with_ties), _comparable(ranks, with_ties)
        if not kept:
            sequences = []
        lengths = [len(sequence) for sequence in sequences]
        values = {
            "sequence_ids": sequences,
            "ranks": ranks,
            "scores": row.scores and [row.scores[place] for place in fitting],
            "comparisons": [list(pair) for pair in comparisons],
            "ties": [list(pair) for pair in ties],
            "weight": row.weight,
            "margin": row.margin or 0.0,
            "label": 1.0 if row.label is None else row.label,
            "tie": row.tie,
            "num_tokens": _distinct_tokens(sequences),
            "sequence_lengths": lengths,
        }
        counts = zip(_COUNTS, (kept, wanted - short_enough, short_enough - kept, sum(lengths)), strict=True)
        return values | dict(zip(PAIR_IDS, sequences or [[], []], strict=False)) | dict(counts)

    def _prompt_key(self, row: dict[str, Any], ids: list[list[int]]) -> int:
        given = row.get("prompt_key")
        if given is not None:
            return given if isinstance(given, int) else prompt_key(given)
        if self.schema.tokenised:  # sequences that share nothing stand alone
            return prompt_key(ids[0][: common_prefix(ids)] or ids)
        return prompt_key(prompt_of(row))


def _comparable(ranks: list[float], with_ties: bool) -> int:
    """Return the number of comparisons between responses of these ranks, whatever their ids."""
    tied = 0 if with_ties else sum(math.comb(count, 2) for count in Counter(ranks).values())
    return math.comb(len(ranks), 2) - tied


def _distinct_tokens(sequences: list[list[int]]) -> int:
    """Return the number of nodes of the prefix trie of the sequences."""
    ordered = sorted(sequences)  # each shares most with the one before it
    return sum(map(len, ordered)) - sum(common_prefix(pair) for pair in pairwise(ordered))


def _check_usable(ids: list[int], column: str, index: int, vocabulary_rows: int | None) -> None:
    if not ids:
        raise DataError(
            f"row {index}: expected at least one token in '{column}', but the tokenizer, or its chat template, made "
            "none of it. Drop the row, or look at the template."
        )
    if vocabulary_rows is not None and (min(ids) < 0 or max(ids) >= vocabulary_rows):
        raise DataError(
            f"row {index}: the ids of '{column}' run from {min(ids)} to {max(ids)}, but the model has embeddings for 0 "
            f"to {vocabulary_rows - 1} only. Use the tokenizer that belongs to the model."
        )
