"""Preferences that exclude each other: A over B and B over A, and cycles of three responses or more."""

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.preference_table import PreferenceTable
from plaudit.auditing.repetitions import groups_of

__all__ = ["contradictions", "cycles"]


def contradictions(table: PreferenceTable) -> list[list[int]]:
    """Return the rows of each two responses to one prompt of which each is preferred in some row."""
    better, worse, rows = _edges(table)
    low, high = np.minimum(better, worse), np.maximum(better, worse)
    pairs = low.astype(np.uint64) << np.uint64(32) | high.astype(np.uint64)
    return sorted(
        sorted(set(rows[group].tolist()))
        for group in groups_of(pairs)
        if len(set(better[group].tolist())) == 2  # both win somewhere
    )


def cycles(table: PreferenceTable) -> list[list[int]]:
    """Return the rows of each strongly connected component of responses that has a cycle of three or more.

    A component whose only cycles are plain contradictions is a tree of them, so that it joins fewer pairs of responses
    than it has responses.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    better, worse, rows = _edges(table)
    count = int(max(better.max(initial=-1), worse.max(initial=-1))) + 1
    graph = coo_array((np.ones(len(rows)), (better, worse)), shape=(count, count))
    component = connected_components(graph, directed=True, connection="strong")[1]
    inside = component[better] == component[worse]
    found = []
    for places in groups_of(component[better][inside].astype(np.uint64)):
        one, two = better[inside][places], worse[inside][places]
        joined = set(zip(np.minimum(one, two).tolist(), np.maximum(one, two).tolist(), strict=True))
        if len(joined) >= len({*one.tolist(), *two.tolist()}) >= 3:
            found.append(sorted(set(rows[inside][places].tolist())))
    return sorted(found)


def _edges(table: PreferenceTable) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return better, worse and row of each comparison, responses numbered by prompt and text."""
    prompts = np.repeat(table.prompts, np.diff(table.first))
    keys = prompts * np.uint64(0x9E3779B97F4A7C15) ^ table.responses
    numbers = np.unique(keys, return_inverse=True)[1]
    better, worse = numbers[table.better], numbers[table.worse]
    different = better != worse
    return better[different], worse[different], table.row_of[different]
