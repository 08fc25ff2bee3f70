"""Which responses of a ranked group can be told apart, and which are tied. Token ids (or texts) and ranks only."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

__all__ = ["comparisons_of_ranking", "ties_of_ranking"]


def comparisons_of_ranking(sequence_ids: Sequence[Any], ranks: Sequence[float]) -> list[tuple[int, int]]:
    """The comparisons that a group makes: each two responses of unequal rank whose ids differ.

    Args:
        sequence_ids: The K responses, each with its prompt; texts or messages will do.
        ranks: Their ranks, 0 for the best.

    Returns:
        Indices of winner and loser, at most K(K-1)/2 of them: first those of the best response, then of the second...
    """
    return [pair for pair in _differing(sequence_ids, ranks) if ranks[pair[0]] < ranks[pair[1]]]


def ties_of_ranking(sequence_ids: Sequence[Any], ranks: Sequence[float]) -> list[tuple[int, int]]:
    """The ties of a group: each two responses of equal rank whose ids differ.

    Args:
        sequence_ids: The K responses, each with its prompt; texts or messages will do.
        ranks: Their ranks, 0 for the best.

    Returns:
        Indices of both, the lower first, in the order of `comparisons_of_ranking`.
    """
    return [pair for pair in _differing(sequence_ids, ranks) if ranks[pair[0]] == ranks[pair[1]]]


def _differing(sequence_ids: Sequence[Any], ranks: Sequence[float]) -> Iterator[tuple[int, int]]:
    best_first = sorted(range(len(ranks)), key=ranks.__getitem__)  # stable: of equals, the first comes first
    return ((one, two) for one, two in combinations(best_first, 2) if sequence_ids[one] != sequence_ids[two])
