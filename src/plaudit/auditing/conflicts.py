"""Preferences that exclude each other: A over B and B over A, and cycles of three responses or more."""

import numpy as np

from plaudit.auditing.preference_table import PreferenceTable
from plaudit.auditing.repetitions import groups_of

__all__ = ["contradictions", "cycles"]


def contradictions(table: PreferenceTable) -> list[list[int]]:
    """Return the rows of each two responses to one prompt of which each is preferred in some row."""
    low, high = np.minimum(table.better, table.worse), np.maximum(table.better, table.worse)
    pairs = groups_of(np.unique(np.stack([low, high]), axis=1, return_inverse=True)[1].reshape(-1))
    both_win = (group for group in pairs if len(set(table.better[group].tolist())) == 2)
    return sorted(sorted(set(table.row_of[group].tolist())) for group in both_win)


def cycles(table: PreferenceTable) -> list[list[int]]:
    """Return the rows of each strongly connected component of responses that has a cycle of three or more.

    A component whose only cycles are plain contradictions is a tree of them, so that it joins fewer pairs of responses
    than it has responses.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys, ends = np.unique(np.stack([table.better, table.worse]), return_inverse=True)
    better, worse = ends.reshape(2, -1)
    graph = coo_array((np.ones(len(better)), (better, worse)), shape=(len(keys), len(keys)))
    component = connected_components(graph, directed=True, connection="strong")[1]
    inside = np.flatnonzero(component[better] == component[worse])
    found = []
    for places in groups_of(component[better[inside]], inside):
        joined = {frozenset(pair) for pair in zip(better[places].tolist(), worse[places].tolist(), strict=True)}
        if len(joined) >= len(frozenset().union(*joined)) >= 3:
            found.append(sorted(set(table.row_of[places].tolist())))
    return sorted(found)
