"""Agreement of the raters of each row: Krippendorff's alpha for verdicts on pairs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["krippendorff_alpha", "votes_of"]

_WORDS = {"chosen": 1, "rejected": -1, "tie": 0}


def votes_of(row: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Read the column `votes`: how many raters prefer `chosen`, how many `rejected`, and how many neither.

    The column is a list with an entry for each rater: "chosen", "rejected" or "tie", or a number above 0 for chosen and
    below 0 for rejected. A column of another shape has another meaning and gives `None`.

    Example:
        >>> votes_of({"votes": [1, 2, -1]}), votes_of({"votes": ["chosen", "tie"]}), votes_of({"votes": 17})
        ((2, 1, 0), (1, 0, 1), None)
    """
    votes = row.get("votes")
    if not isinstance(votes, list) or len(votes) < 2:
        return None
    numbers = [_WORDS.get(vote, math.nan) if isinstance(vote, str) else vote for vote in votes]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return None
    return sum(n > 0 for n in numbers), sum(n < 0 for n in numbers), sum(n == 0 for n in numbers)


def krippendorff_alpha(votes: Iterable[ArrayLike]) -> float:
    """Return Krippendorff's alpha for nominal verdicts on pairs: 1 is perfect agreement, 0 that of dice.

    The order of the two responses of a pair is arbitrary, so that both are expected equally often (K. Krippendorff,
    "Content Analysis", 2004, chapter 11, on pairs and pairs turned round).

    Args:
        votes: Raters for the first response, for the other one and for neither, two raters or more, shape [R, 3].

    Returns:
        The agreement; NaN where there are no votes, or all are for neither.

    Example:
        >>> krippendorff_alpha([(3, 0, 0), (0, 3, 0)]), round(krippendorff_alpha([(2, 1, 0), (1, 2, 0)]), 3)
        (1.0, -0.222)
    """
    counts = np.array(list(votes), dtype=np.float64).reshape(-1, 3)
    raters = counts.sum(axis=1)
    total, neither = 2 * raters.sum(), 2 * counts[:, 2].sum()  # of the votes on pairs and on pairs turned round
    if neither == total:
        return math.nan
    disagreement = 2 * ((raters**2 - (counts**2).sum(axis=1)) / (raters - 1)).sum() / total
    expected = (total**2 - (total - neither) ** 2 / 2 - neither**2) / (total * (total - 1))
    return 1 - float(disagreement / expected)
