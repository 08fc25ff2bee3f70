"""Annotations of a row beside its responses: margins, labels, ties, ranks, scores and weights.

Columns of a pair: `margin`, `weight`, `label`, `tie`. Columns of a ranked group: `ranks` or `scores`, `weight`. A value
of `None` means that the row has no annotation, since Arrow fills missing fields with `None`.
"""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np

from plaudit.data.rankings import dense_ranks
from plaudit.errors import DataError

__all__ = [
    "GROUP_ANNOTATIONS",
    "PAIR_ANNOTATIONS",
    "annotation_features",
    "malformed",
    "parse_group_annotations",
    "parse_pair_annotations",
    "refuse_pair_annotations",
    "shorten",
]

PAIR_ANNOTATIONS = ("margin", "weight", "label", "tie")
GROUP_ANNOTATIONS = ("ranks", "scores", "weight")


def annotation_features(columns: Iterable[str]) -> dict[str, Any]:
    """Return the types, as `datasets` features, of those columns that are annotations."""
    from datasets import List, Value

    number, numbers = Value("float64"), List(Value("float64"))
    types = {
        "margin": number, "weight": number, "label": number, "tie": Value("bool"), "ranks": numbers, "scores": numbers,
    }  # fmt: skip
    return {name: types[name] for name in columns if name in types}


def parse_pair_annotations(row: dict[str, Any], index: int) -> dict[str, Any]:
    """Read the annotations of the pair in row `index`.

    Returns:
        `margin` and `label` (floats, or `None` where the row has none), `weight` (1 by default) and `tie` (a bool).

    Raises:
        DataError: A value is malformed, or the row is a tie and has a label too.
    """
    margin, label, tie = row.get("margin"), row.get("label"), row.get("tie")
    if margin is not None and not _is_number(margin):
        raise malformed(f"row {index}, column 'margin'", "a finite number", margin, "0.5")
    if label is not None and not (_is_number(label) and 0 <= label <= 1):
        expected = "a number from 0 to 1, the probability that 'chosen' is better (rename a column of another meaning)"
        raise malformed(f"row {index}, column 'label'", expected, label, "0.8")
    if tie is not None and not isinstance(tie, bool | np.bool_):
        raise malformed(f"row {index}, column 'tie'", "true or false", tie, "true")
    if tie and label is not None:
        raise DataError(
            f"row {index}, columns 'tie' and 'label': expected one of them, got true and {shorten(label)}. Drop "
            f"'label' if the annotators called the pair a tie; drop 'tie' if {label:g} of them prefer 'chosen'."
        )
    return {
        "margin": None if margin is None else float(margin),
        "weight": _weight(row, index),
        "label": None if label is None else float(label),
        "tie": bool(tie),
    }


def parse_group_annotations(row: dict[str, Any], index: int, count: int, *, derived: bool = False) -> dict[str, Any]:
    """Read the annotations of the group of `count` responses in row `index`.

    With `derived`, `ranks` may stand beside the `scores` that they were made from, as in rows tokenised by Plaudit.

    Returns:
        `ranks` (dense ranks of the scores if the row has scores, 0 for the highest), `scores` (`None` without) and
        `weight`.

    Raises:
        DataError: A value is malformed, a column of pairs has a value, or there are both ranks and scores, or neither.
    """
    refuse_pair_annotations(row, index, "a ranked group", "Leave it empty: 'ranks' or 'scores' order the responses.")
    given, scores, weight = row.get("ranks"), row.get("scores"), _weight(row, index)
    if scores is None:
        return {"ranks": _numbers(given, "ranks", index, count), "scores": None, "weight": weight}
    if given is not None and not derived:
        raise DataError(
            f"row {index}, columns 'ranks' and 'scores': expected one of them, but the row has both. Drop 'ranks' if "
            "the differences of the scores mean something, else drop 'scores'."
        )
    scores = _numbers(scores, "scores", index, count)
    order = dense_ranks([-score for score in scores])
    ranks = [float(rank) for rank in order] if given is None else _numbers(given, "ranks", index, count)
    if dense_ranks(ranks) != order:
        raise DataError(
            f"row {index}, columns 'ranks' and 'scores': expected both to order the responses alike, got "
            f"{shorten(ranks)} and {shorten(scores)}. A rank of 0 is best, and so is the highest score: drop one."
        )
    return {"ranks": ranks, "scores": scores, "weight": weight}


def refuse_pair_annotations(row: dict[str, Any], index: int, place: str, advice: str) -> None:
    """Raise a `DataError` if a row that is not read as a pair has a margin, a label or a tie that is not `False`."""
    for column in ("margin", "label", "tie"):
        value = row.get(column)
        if value is not None and not (column == "tie" and value is False):
            raise DataError(
                f"row {index}, column '{column}': expected no value, for it belongs to pair rows and this is {place}, "
                f"got {type(value).__name__} {shorten(value)}. {advice}"
            )


def _weight(row: dict[str, Any], index: int) -> float:
    weight = row.get("weight")
    if weight is None:
        return 1.0
    if not _is_number(weight) or weight < 0:
        raise malformed(f"row {index}, column 'weight'", "a finite number of 0 or more", weight, "2.0")
    return float(weight)


def _numbers(values: Any, column: str, index: int, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count or not all(_is_number(value) for value in values):
        ranks = column == "ranks"
        meaning = "0 is best, equal ranks tie; or give 'scores'" if ranks else "the highest is best"
        expected = f"one number for each of the {count} completions ({meaning})"
        numbers = '"ranks": [0, 1, 0]' if ranks else '"scores": [0.9, 0.2, 0.9]'
        example = f'{{"completions": [" 4.", " 5.", " Four."], {numbers}}}'
        raise malformed(f"row {index}, column '{column}'", expected, values, example)
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def malformed(where: str, expected: str, value: Any, example: str) -> DataError:
    """Build the error for a malformed value; `where` names its row and column."""
    got = f"{type(value).__name__} {shorten(value)}"
    return DataError(f"{where}: expected {expected}, got {got}. Example of the right shape: {example}")


def shorten(value: Any) -> str:
    """Return the `repr` of a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
