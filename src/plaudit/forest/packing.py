"""Packing into batches of a capacity: costs in, batch numbers out. It does not know what is packed."""

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_fit", "next_fit", "offsets_of"]

Ints = NDArray[np.int64]


def offsets_of(lengths: Ints) -> Ints:
    """Where consecutive pieces of these lengths [N] begin and end [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)])


def next_fit(costs: Ints, capacity: int) -> Ints:
    """Fills batches in order, closing each at the first unit that does not fit.

    Args:
        costs: What each unit costs, at most the capacity, shape [U].
        capacity: Budget of a batch.

    Returns:
        The batch of each unit, counted from 0, shape [U].
    """
    ends = np.cumsum(costs).tolist()
    bins, start, used = np.zeros(len(costs), np.int64), 0, 0
    while (start := bisect_right(ends, used + capacity, lo=start)) < len(ends):
        bins[start] = 1
        used = ends[start - 1]
    return np.cumsum(bins)


def best_fit(costs: Ints, capacity: int, window: int) -> Ints:
    """Puts each unit into the fullest batch that has room for it, or opens one.

    Units above half the capacity can never share a batch, so each window's come first, largest first; the others follow
    as they stand. The emptiest batches stay open for the next window. The open batches are a sorted list, searched by
    bisection: 0.1 s for 100,000 units.

    Taking all units in decreasing order would fill 0.98 to 1.00 of the budget instead of 0.97 to 1.00 (log-normal
    sizes), but put units of one size together: with a capacity of 20 mean rows, the number of rows in a batch then
    varies by 50% to 115% of its mean instead of 12% to 29%, and the gradient's noise with it.

    Args:
        costs: What each unit costs, at most the capacity, shape [U].
        capacity: Budget of a batch.
        window: How many units are looked at at a time. Within one window no two batches would fit into one.

    Returns:
        The batch of each unit, counted from 0, shape [U].
    """
    bins = np.zeros(len(costs), np.int64)
    room: list[int] = []  # what the open batches still take, ascending
    names: list[int] = []  # which batches these are
    count = 0
    kept = max(1, window // 8)  # a bound, or the list would grow with the dataset where units fit badly
    for start in range(0, len(costs), window):
        part = costs[start : start + window]
        order = np.argsort(-np.where(2 * part > capacity, part, 0), kind="stable")
        for unit, cost in zip((order + start).tolist(), part[order].tolist(), strict=True):
            place = bisect_left(room, cost)
            if place < len(room):
                name, left = names.pop(place), room.pop(place) - cost
            else:
                name, left, count = count, capacity - cost, count + 1
            bins[unit] = name
            place = bisect_left(room, left)
            names.insert(place, name)
            room.insert(place, left)
        room, names = room[-kept:], names[-kept:]
    return bins
