"""The columns of a split: the columns that its rows are read from, and the columns of its tokenised rows.

A split of pairs stays one. A split with a column of groups (`completions`, or `sequence_ids` if it comes tokenised)
becomes a split of groups only, in which a pair is a group of two.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plaudit.data.annotations import (
    GROUP_ANNOTATIONS,
    PAIR_ANNOTATIONS,
    annotation_features,
    malformed,
    parse_group_annotations,
    refuse_pair_annotations,
    shorten,
)
from plaudit.data.formats import GROUP_COLUMNS, PAIR_COLUMNS, TEMPLATE_COLUMNS, ParsedRow, parse_row
from plaudit.errors import DataError

__all__ = ["ColumnSchema", "PAIR_IDS"]

PAIR_IDS = ["chosen_ids", "rejected_ids"]
_CONSUMED = {*PAIR_COLUMNS, *GROUP_COLUMNS, *TEMPLATE_COLUMNS, *PAIR_ANNOTATIONS, *PAIR_IDS, "sequence_ids"}
_CONSUMED_OF_GROUPS = {"scores", "comparisons", "ties"}  # in a split of pairs these are columns of the user
_PAIR = '{"chosen_ids": [5, 8, 2], "rejected_ids": [5, 9, 2]}'
_GROUP = '{"sequence_ids": [[5, 8, 2], [5, 9, 2]], "ranks": [0, 1]}'


@dataclass(frozen=True)
class ColumnSchema:
    """The form of a split's rows, found from its column names."""

    groups: bool  # the tokenised rows are groups, not pairs
    tokenised: bool  # the rows have token ids already
    annotated: tuple[str, ...]  # the columns of annotations that the tokenised rows have
    ties: bool  # the tokenised groups have a column `ties`

    @classmethod
    def of(cls, columns: Iterable[str], *, ties: bool = False) -> "ColumnSchema":
        """Find the schema of a split with the given columns.

        Raises:
            DataError: The split has token ids of pairs and of groups.
        """
        names = set(columns)
        pairs, groups = names.issuperset(PAIR_IDS), "sequence_ids" in names
        if pairs and groups:
            raise DataError(
                "expected token ids of pairs ('chosen_ids' and 'rejected_ids') or of groups ('sequence_ids' and "
                "'ranks'), but the split has both. Write the pairs as groups of two."
            )
        tokenised, groups = pairs or groups, groups or ("completions" in names and not pairs)
        possible = GROUP_ANNOTATIONS if groups else PAIR_ANNOTATIONS
        annotated = tuple(name for name in possible if name in names or name == "ranks")
        return cls(groups, tokenised, annotated, ties and groups)

    @property
    def features(self) -> dict[str, Any]:
        """The types of the columns that Plaudit makes; `datasets` finds none in a first batch that keeps no row."""
        from datasets import List, Value

        ids, pairs = List(Value("int32")), List(List(Value("int32")))
        sequences = {"sequence_ids": pairs, "comparisons": pairs} if self.groups else dict.fromkeys(PAIR_IDS, ids)
        common = {
            "row_number": Value("int64"), "prompt_key": Value("int64"), "num_tokens": Value("int32"),
            "sequence_lengths": ids,
        }  # fmt: skip
        return sequences | ({"ties": pairs} if self.ties else {}) | annotation_features(self.annotated) | common

    def passed_through(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the columns, by name, that are neither part of a preference nor made by Plaudit."""
        consumed = _CONSUMED | self.features.keys() | (_CONSUMED_OF_GROUPS if self.groups else set())
        return {name: value for name, value in columns.items() if name not in consumed}

    def parse(self, row: dict[str, Any], index: int) -> ParsedRow:
        """Parse row `index` of the split.

        Raises:
            DataError: The row is malformed, or not of the split's form.
        """
        self._check_columns_known(row, index)
        if self.tokenised:
            return _tokenised_group(row, index) if self.groups else _tokenised_pair(row, index)
        parsed = parse_row(row, index)
        if self.groups and parsed.columns == ["chosen", "rejected"]:
            place = "a pair in a split of ranked groups, where it is a group of two"
            advice = "Keep pairs with margins, labels or ties in a split of their own, or write a tie as equal ranks."
            refuse_pair_annotations(row, index, place, advice)
        return parsed

    def _check_columns_known(self, row: dict[str, Any], index: int) -> None:
        """Raise if a row of a stream has a value in a column that the first row did not have: it would be lost."""
        columns: tuple[str, ...] = GROUP_ANNOTATIONS if self.groups else PAIR_ANNOTATIONS
        columns += () if self.groups or self.tokenised else ("completions",)
        for column in columns:
            if column not in self.annotated and row.get(column) is not None:
                raise DataError(
                    f"row {index}, column '{column}': expected no value, since the first row of the stream has no such "
                    f"column, got {shorten(row[column])}. Give every row that column, empty where there is no value."
                )


def _tokenised_group(row: dict[str, Any], index: int) -> ParsedRow:
    sequences = row["sequence_ids"]
    if not isinstance(sequences, list) or len(sequences) < 2:
        raise malformed(f"row {index}, column 'sequence_ids'", "two or more lists of token ids", sequences, _GROUP)
    columns = [f"sequence_ids[{place}]" for place in range(len(sequences))]
    for ids, column in zip(sequences, columns, strict=True):
        _check_ids(ids, index, column, _GROUP)
    return ParsedRow(sequences, columns, **parse_group_annotations(row, index, len(sequences), derived=True))


def _tokenised_pair(row: dict[str, Any], index: int) -> ParsedRow:
    for column in PAIR_IDS:
        _check_ids(row[column], index, column, _PAIR)
    return ParsedRow.pair(["chosen", "rejected"], [row[column] for column in PAIR_IDS], row, index)


def _check_ids(ids: Any, index: int, column: str, example: str) -> None:
    if not isinstance(ids, list) or not ids or not all(isinstance(token, int) for token in ids):
        raise malformed(f"row {index}, column '{column}'", "a list of one or more token ids", ids, example)
