"""Rows that are there twice: test prompts in training data, exact and near duplicates, one prompt in most rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.near_duplicates import near_pairs, signatures, similarity
from plaudit.auditing.preference_table import PreferenceTable, prompt_keys

__all__ = ["dominant_prompts", "groups_of", "leaked_exactly", "leaked_nearly", "near_duplicates"]

_ALIKE = 0.5  # the similarity of the responses of two near duplicates


def groups_of(keys: NDArray[np.generic], rows: NDArray[np.int64] | None = None) -> list[list[int]]:
    """Return the places, or their `rows`, of each key that occurs more than once, ordered by the first of each."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    groups = [part for part in np.split(order, borders) if len(part) > 1]
    return sorted((part if rows is None else rows[part]).tolist() for part in groups)


def dominant_prompts(table: PreferenceTable) -> list[list[int]]:
    """Return the rows of each prompt that has 10 rows, 5% of all and 5 times as many as the mean prompt, or more."""
    least = max(10, 0.05 * len(table), 5 * len(table) / len(np.unique(table.prompts)))
    return [group for group in groups_of(table.prompts) if len(group) >= least and table.normalised[group[0]]]


def near_duplicates(table: PreferenceTable, signed: NDArray[np.uint8]) -> list[list[int]]:
    """Return groups of rows whose whole texts are near duplicates and are not the same in another order.

    The responses have to be alike by themselves, too: several comparisons on a long prompt are no duplicates. A row
    belongs to a group if it is a near duplicate of one row of it.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.sort(np.unique(table.texts, return_index=True)[1])  # one of each text
    _, responses, wholes = signed.swapaxes(0, 1)
    one, two = near_pairs(wholes, rows).T
    alike = similarity(responses[one], responses[two]) >= _ALIKE
    graph = coo_array((np.ones(alike.sum()), (one[alike], two[alike])), shape=(len(table), len(table)))
    return groups_of(connected_components(graph, directed=False)[1])


def leaked_exactly(table: PreferenceTable, prompts: Sequence[str]) -> list[list[int]]:
    """Return [training row, test row] of prompts that are equal but for case, white space and punctuation."""
    rows: dict[int, list[int]] = {}
    for row in np.flatnonzero(table.normalised).tolist():
        rows.setdefault(int(table.normalised[row]), []).append(row)
    leaks = []
    for place, prompt in enumerate(prompts):
        key, operations = prompt_keys(prompt)
        for row in rows.get(key, ()) if prompt else ():
            # One of them has no arithmetic where its punctuation was taken out.
            if len({operations, int(table.operations[row])} - {0}) < 2:
                leaks.append([row, place])
    return sorted(leaks)


def leaked_nearly(
    table: PreferenceTable, signed: NDArray[np.uint8], prompts: Sequence[str], exact: list[list[int]]
) -> list[list[int]]:
    """Return [training row, test row] of prompts that are near duplicates and not among the `exact` ones."""
    rows = np.flatnonzero(table.normalised)
    _, first, member = np.unique(table.prompts[rows], return_index=True, return_inverse=True)
    tests = list(dict.fromkeys(filter(None, prompts)))
    of_tests = [signatures(tests[at : at + 128]).astype(np.uint8) for at in range(0, len(tests), 128)]
    of_prompt = np.split(rows[np.argsort(member, kind="stable")], np.cumsum(np.bincount(member))[:-1])
    alike: dict[str, list[int]] = {}
    for one, two in near_pairs(np.concatenate([signed[rows[first], 0], *of_tests]), first=len(first)).tolist():
        alike.setdefault(tests[two - len(first)], []).extend(of_prompt[one].tolist())
    leaks = {(row, place) for place, prompt in enumerate(prompts) for row in alike.get(prompt, ())}
    return sorted([row, place] for row, place in leaks - set(map(tuple, exact)))
