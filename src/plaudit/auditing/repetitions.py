"""Rows that are there twice: test prompts in training data, exact and near duplicates, one prompt in most rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.near_duplicates import jaccard, near_pairs, shingles
from plaudit.auditing.preference_table import PreferenceTable, prompt_keys

__all__ = ["dominant_prompts", "exact_duplicates", "leaked_exactly", "leaked_nearly", "near_duplicates"]

_ALIKE = 0.6  # the similarity of the responses of two near duplicates on one prompt


def groups_of(keys: NDArray[np.uint64], rows: NDArray[np.int64] | None = None) -> list[list[int]]:
    """Return the places, or their `rows`, of each key that occurs more than once, ordered by the first of each."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]])) if len(keys) else []
    groups = [part for part in np.split(order, starts[1:]) if len(part) > 1]
    return sorted((part if rows is None else rows[part]).tolist() for part in groups)


def exact_duplicates(table: PreferenceTable) -> list[list[int]]:
    """Return groups of rows with the same prompt, the same responses and the same preference."""
    return groups_of(table.rows)


def dominant_prompts(table: PreferenceTable) -> list[list[int]]:
    """Return the rows of each prompt that has 10 rows, 5% of all and 5 times as many as the mean prompt, or more."""
    _, counts = np.unique(table.prompts, return_counts=True)
    least = max(10, 0.05 * len(table), 5 * counts.mean())
    return [group for group in groups_of(table.prompts) if len(group) >= least and table.has_prompt[group[0]]]


def near_duplicates(table: PreferenceTable) -> list[list[int]]:
    """Return groups of rows whose whole texts are near duplicates and are not the same in another order.

    On one prompt, the responses have to be alike by themselves: several comparisons on a long prompt are no duplicates.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, rows = np.unique(table.texts, return_index=True)  # one of each text
    rows.sort()
    spans = [(table.prompt_text(row), table.prompt_text(row + 1)) for row in rows.tolist()]
    hashes = table.words.hashes()

    def alike(one: int, two: int) -> bool:
        if table.prompts[rows[one]] != table.prompts[rows[two]]:
            return True
        grams = [shingles(hashes, table.words.words(spans[row][0] + 1, spans[row][1])) for row in (one, two)]
        return jaccard(*grams) >= _ALIKE

    pairs = np.array([pair for pair in near_pairs(table.words, spans) if alike(*pair)], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(rows), len(rows)))
    return groups_of(connected_components(graph, directed=False)[1].astype(np.uint64), rows)


def leaked_exactly(table: PreferenceTable, prompts: Sequence[str]) -> list[list[int]]:
    """Return [training row, test row] of prompts that are equal but for case, white space and punctuation."""
    rows: dict[int, list[int]] = {}
    for row in np.flatnonzero(table.has_prompt).tolist():
        rows.setdefault(int(table.normalised[row]), []).append(row)
    leaks = []
    for place, prompt in enumerate(prompts):
        key, operations = prompt_keys(prompt)
        for row in rows.get(key, ()) if prompt else ():
            # One of them has no arithmetic where its punctuation was taken out.
            if len({operations, int(table.operations[row])} - {0}) < 2:
                leaks.append([row, place])
    return sorted(leaks)


def leaked_nearly(table: PreferenceTable, prompts: Sequence[str], exact: list[list[int]]) -> list[list[int]]:
    """Return [training row, test row] of prompts that are near duplicates and not among the `exact` ones."""
    rows = np.flatnonzero(table.has_prompt)
    _, first, member = np.unique(table.prompts[rows], return_index=True, return_inverse=True)
    spans = [(table.prompt_text(row), table.prompt_text(row) + 1) for row in rows[first].tolist()]
    texts = {prompt: place for place, prompt in enumerate(dict.fromkeys(filter(None, prompts)))}
    store = table.words
    for prompt in texts:
        spans.append((len(store.ends) - 1, len(store.ends)))
        store.append(prompt)
    alike: dict[int, list[int]] = {}
    for one, two in near_pairs(store, spans, first=len(first)):
        alike.setdefault(two - len(first), []).extend(rows[member == one].tolist())
    known = set(map(tuple, exact))
    leaks = ((row, place) for place, prompt in enumerate(prompts) for row in alike.get(texts.get(prompt, -1), ()))
    return sorted([row, place] for row, place in leaks if (row, place) not in known)
