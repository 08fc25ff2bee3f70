"""From rows to the comparisons that a reward model is judged by: who is compared with whom, and what people said."""

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

__all__ = ["Comparisons", "compare", "length_of"]


@dataclass(frozen=True)
class Comparisons:
    """The N responses of R rows, and the C comparisons between them.

    Attributes:
        sequences: Whole texts or conversations, N.
        options: Keyword arguments for the chat template, N.
        names: What messages call them ("row 3, column 'chosen'"), N.
        owners: The row of each, shape [N].
        better: The response that people prefer, by its place among the sequences, shape [C].
        worse: The other one, shape [C].
        labels: Probability that people prefer the first, from 1/2 to 1, shape [C].
        rows: The row of each comparison, shape [C].
        weights: What each counts: its row's `weight`, shared by all comparisons of the row, shape [C].
        prompts: A number for each row, the same for rows of one prompt, shape [R].
        subsets: What each row's column `subset` says, R.
        ties: How many tied pairs each row has, left out of the comparisons, shape [R].
        identical: How many pairs of equal responses each row has, left out too, shape [R].
    """

    sequences: list[TextOrChat]
    options: list[dict[str, Any]]
    names: list[str]
    owners: NDArray[np.int64]
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    labels: NDArray[np.float64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    prompts: NDArray[np.int64]
    subsets: list[str | None]
    ties: NDArray[np.int64]
    identical: NDArray[np.int64]


def compare(rows: Iterable[Any]) -> Comparisons:
    """Read pairs and ranked groups.

    A pair is one comparison, with its `label`; below one half, the rejected response is the better one. A group makes
    one of each two responses of unequal rank.

    Args:
        rows: Dicts in one of Plaudit's formats.

    Raises:
        DataError: A row is malformed, and named; or no row has a comparison that counts.
    """
    numbers: list[tuple[int, int, float, int, float]] = []  # of each comparison, in the order of the fields
    sequences: list[TextOrChat] = []
    options, names, owners, counted, prompts, subsets = [], [], [], [], [], []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"row {index}: expected a dict with 'chosen' and 'rejected', got {row!r:.80}")
        parsed = parse_row(dict(row), index)
        whole, (verdicts, ties) = parsed.sequences, _verdicts(parsed)
        share = parsed.weight / max(1, len(verdicts))
        start = len(sequences)
        numbers += [(start + one, start + two, label, index, share) for one, two, label in verdicts]
        counted.append((ties, math.comb(len(whole), 2) - ties - len(verdicts)))
        sequences += whole
        names += [f"row {index}, column '{column}'" for column in parsed.columns]
        options += [parsed.template_options] * len(whole)
        owners += [index] * len(whole)
        prompts.append(prompt_key(prompt_of(row)))
        subset = row.get("subset")
        subsets.append(None if subset is None else str(subset))
    numbers = [each for each in numbers if each[-1] > 0]
    if not numbers:
        raise DataError(f"expected rows with a preference to evaluate on, got none in {len(prompts)} rows")
    better, worse, labels, of_row, weights = (np.array(column) for column in zip(*numbers, strict=True))
    ties, identical = np.array(counted).T
    return Comparisons(
        sequences, options, names, np.array(owners), better, worse, labels, of_row, weights, np.array(prompts), subsets,
        ties, identical,
    )  # fmt: skip


def length_of(sequence: TextOrChat) -> int:
    """The characters of a text, or of what all messages of a conversation say."""
    if isinstance(sequence, str):
        return len(sequence)
    return sum(_characters(message["content"]) for message in sequence)


def _verdicts(row: ParsedRow) -> tuple[list[tuple[int, int, float]], int]:
    """The comparisons of a row (better, worse, label), and how many ties it has."""
    label = 1.0 if row.label is None else row.label
    decided = comparisons_of_ranking(row.sequences, row.ranks)
    verdicts = [(one, two, label) if label >= 0.5 else (two, one, 1 - label) for one, two in decided]
    return verdicts, len(ties_of_ranking(row.sequences, row.ranks))


def _characters(content: Any) -> int:
    if isinstance(content, list):
        return sum(len(part.get("text") or "") for part in content)
    return len(content or "")
