"""Rankings of the responses of a group: dense ranks, and the comparisons and ties that ranks make."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

__all__ = ["comparisons_of_ranking", "dense_ranks", "ties_of_ranking"]


def dense_ranks(values: Sequence[float]) -> list[int]:
    """Return ranks without gaps: 0 for the lowest value, equal ranks for equal values."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return [places[value] for value in values]


def comparisons_of_ranking(responses: Sequence[Any], ranks: Sequence[float]) -> list[tuple[int, int]]:
    """List the comparisons of a group: every two responses that differ and have unequal ranks.

    Args:
        responses: K token id lists, texts or conversations.
        ranks: Their K ranks, 0 for the best.

    Returns:
        At most K(K-1)/2 pairs of indices, the better response first; those of the best response come first.
    """
    return [(one, two) for one, two in _differing(responses, ranks) if ranks[one] < ranks[two]]


def ties_of_ranking(responses: Sequence[Any], ranks: Sequence[float]) -> list[tuple[int, int]]:
    """List the ties of a group: every two responses that differ and have equal ranks.

    Args:
        responses: K token id lists, texts or conversations.
        ranks: Their K ranks.

    Returns:
        Pairs of indices, the lower index first, in the order of `comparisons_of_ranking`.
    """
    return [(one, two) for one, two in _differing(responses, ranks) if ranks[one] == ranks[two]]


def _differing(responses: Sequence[Any], ranks: Sequence[float]) -> Iterator[tuple[int, int]]:
    best_first = sorted(range(len(ranks)), key=ranks.__getitem__)  # stable: equal ranks keep their order
    return ((one, two) for one, two in combinations(best_first, 2) if responses[one] != responses[two])
