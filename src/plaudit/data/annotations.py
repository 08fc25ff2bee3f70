"""What annotators say beside the responses: how much better, how surely, how often, in which order.

Columns of a pair: `margin`, `weight`, `label`, `tie`. Columns of a ranked group: `ranks` or `scores`, `weight`. A value
of `None` is no value: Arrow fills with it what other rows have. This module knows nothing of texts or tokens.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from plaudit.errors import DataError

__all__ = [
    "GROUP_ANNOTATIONS",
    "PAIR_ANNOTATIONS",
    "dense_ranks",
    "malformed",
    "parse_group_annotations",
    "parse_label",
    "parse_margin",
    "parse_pair_annotations",
    "parse_tie",
    "parse_weight",
    "refuse_pair_annotations",
    "shown",
]

PAIR_ANNOTATIONS = ("margin", "weight", "label", "tie")
GROUP_ANNOTATIONS = ("ranks", "scores", "weight")

_RANKS, _SCORES = '"ranks": [0, 1, 0]', '"scores": [0.9, 0.2, 0.9]'


def parse_pair_annotations(row: dict[str, Any], index: int) -> dict[str, Any]:
    """The `margin`, `weight`, `label` and `tie` of the pair in row `index`.

    Returns:
        `margin` and `label` (numbers, or `None` where the row has none), `weight` (1 without) and `tie` (a bool).

    Raises:
        DataError: One is malformed, or the row is called a tie and has a label too.
    """
    label, tie = parse_label(row.get("label"), index), parse_tie(row.get("tie"), index)
    if tie and label is not None:
        raise DataError(
            f"row {index}, columns 'tie' and 'label': expected one of them, got true and {shown(row['label'])}. Drop "
            f"'label' if the annotators called the pair a tie; drop 'tie' if {label:g} of them prefer 'chosen'."
        )
    margin, weight = parse_margin(row.get("margin"), index), parse_weight(row.get("weight"), index)
    return {"margin": margin, "weight": weight, "label": label, "tie": tie}


def parse_group_annotations(row: dict[str, Any], index: int, count: int, *, derived: bool = False) -> dict[str, Any]:
    """The `ranks`, `scores` and `weight` of the group of `count` responses in row `index`.

    Args:
        row: The row.
        index: Its number in the split.
        count: How many responses it has.
        derived: Whether `ranks` may stand beside the `scores` they came from, as in rows that were tokenised here.

    Returns:
        `ranks` (of scores: their dense ranks, 0 for the highest), `scores` (`None` without) and `weight`.

    Raises:
        DataError: One is malformed, a column of pairs has a value, or there are both ranks and scores, or neither.
    """
    refuse_pair_annotations(row, index, "a ranked group", "Leave it empty there: 'ranks' or 'scores' say it all.")
    ranks, scores, weight = row.get("ranks"), row.get("scores"), parse_weight(row.get("weight"), index)
    if scores is None:
        return {"ranks": _numbers(ranks, "ranks", index, count), "scores": None, "weight": weight}
    values = _numbers(scores, "scores", index, count)
    order = dense_ranks([-value for value in values])
    if ranks is None:
        return {"ranks": order, "scores": values, "weight": weight}
    if not derived:
        raise DataError(
            f"row {index}, columns 'ranks' and 'scores': expected one of them, but the row has both. Drop 'ranks' if "
            "the differences of the scores mean something, else drop 'scores'."
        )
    ranks = _numbers(ranks, "ranks", index, count)
    if dense_ranks(ranks) != order:
        raise DataError(
            f"row {index}, columns 'ranks' and 'scores': expected both to order the responses alike, got "
            f"{shown(ranks)} and {shown(scores)}. A rank of 0 is best, and so is the highest score: drop one of them."
        )
    return {"ranks": ranks, "scores": values, "weight": weight}


def refuse_pair_annotations(row: dict[str, Any], index: int, place: str, advice: str) -> None:
    """Raise where a row that is not trained on as a pair has what only a pair can have. `tie: false` says nothing.

    Raises:
        DataError: `margin`, `label` or `tie` has a value.
    """
    for column in ("margin", "label", "tie"):
        value = row.get(column)
        if value is not None and not (column == "tie" and value is False):
            raise DataError(
                f"row {index}, column '{column}': expected no value, for it belongs to pair rows and this is {place}, "
                f"got {type(value).__name__} {shown(value)}. {advice}"
            )


def parse_margin(margin: Any, index: int) -> float | None:
    """The margin of row `index`, or `None` where it names none.

    Raises:
        DataError: It is not a finite number.
    """
    if margin is None:
        return None
    if not _is_number(margin):
        raise malformed(f"row {index}, column 'margin'", "a finite number", margin, "0.5")
    return float(margin)


def parse_weight(weight: Any, index: int) -> float:
    """How many times row `index` counts; once where it does not say.

    Raises:
        DataError: It is not a finite number of 0 or more.
    """
    if weight is None:
        return 1.0
    if not _is_number(weight) or weight < 0:
        raise malformed(f"row {index}, column 'weight'", "a finite number of 0 or more", weight, "2.0")
    return float(weight)


def parse_label(label: Any, index: int) -> float | None:
    """The probability that the chosen response of row `index` is the better one, or `None` where it names none.

    Raises:
        DataError: It is not a number from 0 to 1.
    """
    if label is None:
        return None
    if not _is_number(label) or not 0 <= label <= 1:
        expected = "a number from 0 to 1, the probability that 'chosen' is better (rename a column of another meaning)"
        raise malformed(f"row {index}, column 'label'", expected, label, "0.8")
    return float(label)


def parse_tie(tie: Any, index: int) -> bool:
    """Whether the annotators called the two responses of row `index` equal.

    Raises:
        DataError: It is neither true nor false.
    """
    if tie is not None and not isinstance(tie, bool | np.bool_):
        raise malformed(f"row {index}, column 'tie'", "true or false", tie, "true")
    return bool(tie)


def dense_ranks(values: Sequence[float]) -> list[float]:
    """Ranks without gaps, 0 for the lowest value, the same for equal values."""
    places = {value: float(place) for place, value in enumerate(sorted(set(values)))}
    return [places[value] for value in values]


def _numbers(values: Any, column: str, index: int, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count or not all(_is_number(value) for value in values):
        meaning = "0 is best, equal ranks tie; or give 'scores'" if column == "ranks" else "the highest is best"
        expected = f"one number for each of the {count} completions ({meaning})"
        example = f'{{"completions": [" 4.", " 5.", " Four."], {_RANKS if column == "ranks" else _SCORES}}}'
        raise malformed(f"row {index}, column '{column}'", expected, values, example)
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def malformed(where: str, expected: str, came: Any, example: str) -> DataError:
    """The error for a value that is not what it should be, all in one form; `where` is its row and column."""
    return DataError(
        f"{where}: expected {expected}, got {type(came).__name__} {shown(came)}. Example of the right shape: {example}"
    )


def shown(value: Any) -> str:
    """A value as an error message shows it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
