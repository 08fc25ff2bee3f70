"""Agreement of the raters of each row: Krippendorff's alpha for verdicts on pairs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["krippendorff_alpha", "votes_of"]

_WORDS = {"chosen": 0, "rejected": 1, "tie": 2}


def votes_of(row: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Read the column `votes`: how many raters prefer `chosen`, how many `rejected`, and how many neither.

    The column has an entry for each rater ("chosen", "rejected" or "tie", or a number: above 0 for chosen, below 0 for
    rejected), or counts by these words. A column of another shape has another meaning and gives `None`.

    Example:
        >>> votes_of({"votes": [1, 2, -1]}), votes_of({"votes": {"chosen": 2, "tie": 1}}), votes_of({"votes": 17})
        ((2, 1, 0), (2, 0, 1), None)
    """
    votes = row.get("votes")
    if isinstance(votes, Mapping):
        votes = [word for word, count in votes.items() if isinstance(count, int) for _ in range(count)]
    if not isinstance(votes, list) or len(votes) < 2:
        return None
    counts: Counter[int] = Counter()
    for vote in votes:
        if isinstance(vote, int | float) and math.isfinite(vote):
            counts[0 if vote > 0 else 1 if vote < 0 else 2] += 1
        elif vote in _WORDS:
            counts[_WORDS[vote]] += 1
        else:
            return None
    return counts[0], counts[1], counts[2]


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
    total = 2 * raters.sum()  # of the votes on pairs and on pairs turned round
    if not total:
        return math.nan
    disagreement = 2 * ((raters**2 - (counts**2).sum(axis=1)) / (raters - 1)).sum() / total
    verdicts = np.array([raters.sum() - counts[:, 2].sum()] * 2 + [2 * counts[:, 2].sum()])
    expected = (total**2 - (verdicts**2).sum()) / (total * (total - 1))
    return 1 - float(disagreement / expected) if expected > 0 else math.nan
