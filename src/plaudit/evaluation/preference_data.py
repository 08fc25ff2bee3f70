"""Rows with preferences, read as the responses that a reward model scores and the comparisons between them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.data.formats import ParsedRow, TextOrChat, parse_row
from plaudit.data.prompts import prompt_key, prompt_of
from plaudit.data.rankings import comparisons_of_ranking, ties_of_ranking
from plaudit.errors import DataError

__all__ = ["Comparisons", "PreferenceData", "read_preferences"]


@dataclass(frozen=True)
class Comparisons:
    """The C comparisons between the N responses of R rows.

    Attributes:
        better: Index of the response that people prefer among the N responses, shape [C].
        worse: Index of the other response, shape [C].
        labels: Probability that people prefer the better response, from 1/2 to 1, shape [C].
        weights: The `weight` of the row, divided by the number of its comparisons, shape [C].
        prompts: Key of the prompt, shape [C].
        rows: Index of the row, shape [C].
        subsets: The column `subset` of each row, R.
        ties: Number of tied pairs in each row, which make no comparison, shape [R].
        identical: Number of pairs of equal responses in each row, which make no comparison either, shape [R].
    """

    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    prompts: NDArray[np.int64]
    rows: NDArray[np.int64]
    subsets: list[str | None]
    ties: NDArray[np.int64]
    identical: NDArray[np.int64]


@dataclass(frozen=True)
class PreferenceData(Comparisons):
    """The comparisons of R rows with their N responses.

    Attributes:
        sequences: Whole texts or conversations, prompt included, N.
        template_options: Keyword arguments for the chat template, N.
        names: Row and column of each response, for messages ("row 3, column 'chosen'"), N.
        first_responses: Index of the first response of each row, and N at the end, shape [R + 1].
        prompt_keys: Key of the prompt of each row, R.
        ids: The column `id` of each row, R.
        scores: The column `scores` of each ranked group that has it, R.
    """

    sequences: list[TextOrChat]
    template_options: list[dict[str, Any]]
    names: list[str]
    first_responses: NDArray[np.int64]
    prompt_keys: list[int]
    ids: list[str | None]
    scores: list[list[float] | None]


def read_preferences(rows: Iterable[Any]) -> PreferenceData:
    """Read pairs and ranked groups.

    A pair is one comparison, with its `label`; the rejected response is the better one where the label is below one
    half. A ranked group makes a comparison of each two different responses of unequal rank. A row of weight zero makes
    none.

    Raises:
        DataError: A row is malformed (the message names it), or no row makes a comparison.
    """
    responses: list[tuple[TextOrChat, dict[str, Any], str]] = []
    comparisons: list[tuple[int, int, float, float, int, int]] = []  # winner, loser, label, weight, prompt, row
    of_rows: list[tuple[str | None, int, int, int, int, str | None, list[float] | None]] = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"row {index}: expected a dict with 'chosen' and 'rejected', got {row!r:.80}")
        parsed = parse_row(dict(row), index)
        sequences, (compared, ties) = parsed.sequences, _compare_responses(parsed)
        start, key = len(responses), prompt_key(prompt_of(row))
        for sequence, column in zip(sequences, parsed.columns, strict=True):
            responses.append((sequence, parsed.template_options, f"row {index}, column '{column}'"))
        for winner, loser, label in compared if parsed.weight > 0 else ():
            weight = parsed.weight / len(compared)
            comparisons.append((start + winner, start + loser, label, weight, key, index))
        identical = math.comb(len(sequences), 2) - ties - len(compared)
        subset, name = _text_or_none(row, "subset"), _text_or_none(row, "id")
        of_rows.append((subset, ties, identical, start, key, name, parsed.scores))
    if not comparisons:
        raise DataError(f"expected rows with a preference to evaluate on, got none in {len(of_rows)} rows")
    texts, options, names = (list(column) for column in zip(*responses, strict=True))
    subsets, ties_of, identical_of, starts, keys, ids, scores = (list(each) for each in zip(*of_rows, strict=True))
    better, worse, labels, weights, prompts, rows_of = (np.array(column) for column in zip(*comparisons, strict=True))
    return PreferenceData(
        better=better, worse=worse, labels=labels, weights=weights, prompts=prompts, rows=rows_of,
        subsets=subsets, ties=np.array(ties_of), identical=np.array(identical_of),
        sequences=texts, template_options=options, names=names,
        first_responses=np.array([*starts, len(texts)]), prompt_keys=keys, ids=ids, scores=scores,
    )  # fmt: skip


def _text_or_none(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None else str(value)


def _compare_responses(row: ParsedRow) -> tuple[list[tuple[int, int, float]], int]:
    """Return a row's comparisons (better, worse, label), and the number of ties."""
    label = 1.0 if row.label is None else row.label
    pairs = comparisons_of_ranking(row.sequences, row.ranks)
    compared = [(one, two, label) if label >= 0.5 else (two, one, 1 - label) for one, two in pairs]
    return compared, len(ties_of_ranking(row.sequences, row.ranks))
