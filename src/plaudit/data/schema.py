"""The columns of a split: which ones its rows are read from, and which ones come out.

A split of pairs stays one. A split with a column of groups (`completions`, or `sequence_ids` where it comes tokenised)
becomes one of groups alone, its pairs groups of two.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from datasets import List, Value

from plaudit.data.annotations import (
    GROUP_ANNOTATIONS,
    PAIR_ANNOTATIONS,
    parse_group_annotations,
    parse_pair_annotations,
    refuse_pair_annotations,
    shown,
)
from plaudit.data.formats import GROUP_COLUMNS, PAIR_COLUMNS, TEMPLATE_COLUMNS, Preference, parse_row
from plaudit.data.prompts import prompt_of
from plaudit.data.truncation import Fitted, common_start
from plaudit.errors import DataError

__all__ = ["COUNTS", "ColumnSchema", "Parsed"]

# What is counted while a row is tokenised, in comparisons and tokens, and not kept.
COUNTS = {"_kept": Value("int32"), "_overlong": Value("int32"), "_identical": Value("int32"), "_tokens": Value("int64")}

_PAIR_IDS = ("chosen_ids", "rejected_ids")
_CONSUMED = {*PAIR_COLUMNS, *GROUP_COLUMNS, *TEMPLATE_COLUMNS, *PAIR_ANNOTATIONS, *_PAIR_IDS, "sequence_ids"}
_IDS = List(Value("int32"))
_TYPES = {
    "margin": Value("float64"),
    "weight": Value("float64"),
    "label": Value("float64"),
    "tie": Value("bool"),
    "ranks": List(Value("float64")),
    "scores": List(Value("float64")),
}
_EXAMPLES = {
    False: '{"chosen_ids": [5, 8, 2], "rejected_ids": [5, 9, 2]}',
    True: '{"sequence_ids": [[5, 8, 2], [5, 9, 2]], "ranks": [0, 1]}',
}


class Parsed(NamedTuple):
    """One row, read and checked.

    Attributes:
        sequences: Its texts, conversations or token ids.
        names: What messages call these.
        comparisons: Which two of them the row compares.
        values: What annotators say beside, by column.
        template_options: Keyword arguments for the chat template.
    """

    sequences: list[Any]
    names: list[str]
    comparisons: list[tuple[int, int]]
    values: dict[str, Any]
    template_options: dict[str, Any]


@dataclass(frozen=True)
class ColumnSchema:
    """What a split's columns make of its rows.

    Attributes:
        groups: Rows come out as groups, not as pairs.
        tokenised: Rows come as token ids.
        annotated: Columns of annotations that come out.
        prompt_keys: Whether `prompt_key` is to be made; rows may bring their own.
        ties: Whether equal ranks of a group make comparisons.
    """

    groups: bool
    tokenised: bool
    annotated: tuple[str, ...]
    prompt_keys: bool
    ties: bool = False

    @classmethod
    def of(cls, columns: Iterable[str], *, prompt_keys: bool, ties: bool = False) -> "ColumnSchema":
        """The layout of a split with these columns.

        Raises:
            DataError: They are token ids of pairs and of groups at once.
        """
        names = set(columns)
        pairs, groups = names.issuperset(_PAIR_IDS), "sequence_ids" in names
        if pairs and groups:
            raise DataError(
                "expected token ids of pairs ('chosen_ids' and 'rejected_ids') or of groups ('sequence_ids' and "
                "'ranks'), but the split has both. Write the pairs as groups of two."
            )
        groups = groups or ("completions" in names and not pairs)
        if groups:
            annotated = [name for name in GROUP_ANNOTATIONS if name in names or name == "ranks"]
        else:
            annotated = [name for name in PAIR_ANNOTATIONS if name in names]
        tokenised = pairs or "sequence_ids" in names
        return cls(groups, tokenised, tuple(annotated), prompt_keys and "prompt_key" not in names, ties)

    @property
    def features(self) -> dict[str, Any]:
        """The columns that come out. Guessed by `datasets`, a first batch of which nothing is kept has no type."""
        ids = {"sequence_ids": List(_IDS)} if self.groups else dict.fromkeys(_PAIR_IDS, _IDS)
        key = {"prompt_key": Value("int64")} if self.prompt_keys else {}
        return key | {name: _TYPES[name] for name in self.annotated} | ids

    def passed(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Of columns by name, those that are not part of a preference: they come out as they are."""
        consumed = _CONSUMED.union(self.annotated)  # `scores` are part of a group only
        return {name: value for name, value in columns.items() if name not in consumed}

    def parse(self, row: dict[str, Any], index: int) -> Parsed:
        """Read row `index` of the split.

        Raises:
            DataError: It is malformed, or has no place in this split.
        """
        self._check_foreseen(row, index)
        if self.tokenised:
            return self._tokenised_group(row, index) if self.groups else _tokenised_pair(row, index)
        parsed = parse_row(row, index)
        if isinstance(parsed, Preference):
            return _pair_in_groups(parsed, row, index) if self.groups else _pair(parsed)
        names = [f"completions[{place}]" for place in range(len(parsed.sequences))]
        values = {"ranks": parsed.ranks, "scores": parsed.scores, "weight": parsed.weight}
        return Parsed(parsed.sequences, names, self._comparisons(parsed.ranks), values, parsed.template_options)

    def _tokenised_group(self, row: dict[str, Any], index: int) -> Parsed:
        sequences = row["sequence_ids"]
        if not isinstance(sequences, list) or len(sequences) < 2:
            raise DataError(
                f"row {index}, column 'sequence_ids': expected two or more lists of token ids, got {shown(sequences)}. "
                f"Example of the right shape: {_EXAMPLES[True]}"
            )
        names = [f"sequence_ids[{place}]" for place in range(len(sequences))]
        for ids, name in zip(sequences, names, strict=True):
            _check_ids(ids, index, name, groups=True)
        values = parse_group_annotations(row, index, len(sequences), derived=True)
        return Parsed(sequences, names, self._comparisons(values["ranks"]), values, {})

    def _comparisons(self, ranks: list[float]) -> list[tuple[int, int]]:
        return [(one, two) for one, two in combinations(range(len(ranks)), 2) if self.ties or ranks[one] != ranks[two]]

    def _check_foreseen(self, row: dict[str, Any], index: int) -> None:
        """A stream may tell its columns by its first row only; what comes later must not get lost."""
        columns = GROUP_ANNOTATIONS if self.groups else PAIR_ANNOTATIONS
        if not (self.groups or self.tokenised):
            columns = ("completions", *columns)
        for column in columns:
            if column not in self.annotated and row.get(column) is not None:
                raise DataError(
                    f"row {index}, column '{column}': expected no value, since the first row of the stream has no such "
                    f"column, got {shown(row[column])}. Give every row that column, empty where there is no value."
                )

    def prompt(self, row: dict[str, Any], ids: list[list[int]]) -> Any:
        """What stands for the row's prompt: of rows that come tokenised, the ids with which all sequences begin."""
        if not self.tokenised:
            return prompt_of(row)
        return ids[0][: common_start(ids)] or ids  # nothing in common: the row stands alone

    def columns(self, parsed: list[Parsed], fitted: list[Fitted]) -> dict[str, list[Any]]:
        """The columns that rows come out with; a row of which nothing is kept has no ids."""
        values = {name: [row.values[name] for row in parsed] for name in self.annotated}
        if not self.groups:
            sides = [row.sequences or [[], []] for row in fitted]
            return values | {name: [row[side] for row in sides] for side, name in enumerate(_PAIR_IDS)}
        for name in ("ranks", "scores"):
            if name in values:  # a group by ranks has no scores
                each = zip(values[name], fitted, strict=True)
                values[name] = [given and [given[place] for place in row.places] for given, row in each]
        return values | {"sequence_ids": [row.sequences for row in fitted]}


def _pair(pair: Preference) -> Parsed:
    # A row may leave empty a column that others fill: then there is no margin, and no doubt about who won.
    label = 1.0 if pair.label is None else pair.label
    values = {"margin": pair.margin or 0.0, "weight": pair.weight, "label": label, "tie": pair.tie}
    return Parsed([pair.chosen, pair.rejected], ["chosen", "rejected"], [(0, 1)], values, pair.template_options)


def _pair_in_groups(pair: Preference, row: dict[str, Any], index: int) -> Parsed:
    advice = "Keep pair rows with margins, labels or ties in a split of their own, or write a tie as two equal ranks."
    refuse_pair_annotations(row, index, "a pair in a split of ranked groups, where it is a group of two", advice)
    values = {"ranks": [0.0, 1.0], "scores": None, "weight": pair.weight}
    return _pair(pair)._replace(values=values)


def _tokenised_pair(row: dict[str, Any], index: int) -> Parsed:
    for column in _PAIR_IDS:
        _check_ids(row[column], index, column, groups=False)
    sides = [row[column] for column in _PAIR_IDS]
    return _pair(Preference(*sides, **parse_pair_annotations(row, index)))


def _check_ids(ids: Any, index: int, column: str, *, groups: bool) -> None:
    if not isinstance(ids, list) or not ids or not all(isinstance(token, int) for token in ids):
        raise DataError(
            f"row {index}, column '{column}': expected a list of one or more token ids, got {shown(ids)}. "
            f"Example of the right shape: {_EXAMPLES[groups]}"
        )
