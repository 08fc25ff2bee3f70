"""Lengths of rows in tokens, and how many rows training would cut or drop at given maximum lengths."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.data.formats import ParsedRow, parse_row
from plaudit.data.render import render
from plaudit.errors import DataError

__all__ = ["LENGTHS", "longest_sequences", "shares_over"]

LENGTHS = (512, 1024, 2048, 4096, 8192)


def longest_sequences(rows: Iterable[Any], tokenizer: Any) -> NDArray[np.int64]:
    """Return the tokens of the longest sequence of each row, rendered as in training; 0 where a row is malformed.

    Raises:
        DataError: The rows are conversations and the tokenizer has no chat template.
    """
    longest: list[int] = []
    numbered = enumerate(rows)
    while batch := list(islice(numbered, 256)):
        parsed: list[ParsedRow | None] = []
        for index, row in batch:
            try:
                parsed.append(parse_row(dict(row), index))
            except DataError:  # a finding of its own
                parsed.append(None)
        rendered = [row for row in parsed if row is not None]
        sequences = [sequence for row in rendered for sequence in row.sequences]
        options = [row.template_options for row in rendered for _ in row.sequences]
        names = [f"row {index}" for (index, _), row in zip(batch, parsed, strict=True) if row for _ in row.sequences]
        lengths = map(len, render(tokenizer, sequences, options, names=names))
        longest += [max(next(lengths) for _ in row.sequences) if row else 0 for row in parsed]
    return np.array(longest, dtype=np.int64)


def shares_over(longest: NDArray[np.int64], max_length: int) -> dict[str, float]:
    """Return the share of rows with a sequence longer than each of `LENGTHS` and `max_length`."""
    return {str(length): float((longest > length).mean()) for length in sorted({*LENGTHS, max_length})}
