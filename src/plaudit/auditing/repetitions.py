"""Rows that are there twice: test prompts in training data, exact and near duplicates, one prompt in most rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.near_duplicates import SIMILAR, candidate_pairs, jaccard, shingles
from plaudit.auditing.preference_table import PreferenceTable, prompt_keys
from plaudit.evaluation.word_counts import WordStore

__all__ = [
    "dominant_prompts",
    "exact_duplicates",
    "groups_of",
    "leaked_exactly",
    "leaked_nearly",
    "near_duplicates",
]

_ALIKE = 0.6  # the similarity of the responses of two near duplicates on one prompt


def groups_of(keys: NDArray[np.uint64], rows: NDArray[np.int64] | None = None) -> list[list[int]]:
    """Return the places, or their `rows`, of each key that occurs more than once, ordered by the first of each."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    groups = [part for part in np.split(order, borders) if len(part) > 1]
    return sorted((part if rows is None else rows[part]).tolist() for part in groups)


def exact_duplicates(table: PreferenceTable) -> list[list[int]]:
    """Return groups of rows with the same prompt, the same responses and the same preference."""
    return groups_of(table.rows)


def dominant_prompts(table: PreferenceTable) -> list[list[int]]:
    """Return the rows of each prompt that has 10 rows, 5% of all and 5 times as many as the mean prompt, or more."""
    _, counts = np.unique(table.prompts, return_counts=True)
    least = max(10, 0.05 * len(table), 5 * counts.mean())
    return [group for group in groups_of(table.prompts) if len(group) >= least and table.has_prompt[group[0]]]


def near_duplicates(table: PreferenceTable, store: WordStore) -> list[list[int]]:
    """Return groups of rows whose whole texts are near duplicates and are not the same in another order.

    On one prompt, the responses have to be alike by themselves: several comparisons on a long prompt are no duplicates.
    A row belongs to a group if it is a near duplicate of one row of it.
    """
    _, rows = np.unique(table.texts, return_index=True)  # one of each text
    rows.sort()
    spans = [(table.prompt_text(row), table.prompt_text(row + 1)) for row in rows.tolist()]
    hashes, prompts = store.hashes(), table.prompts[rows]
    group = list(range(len(rows)))  # of each row a lower one of its group, or itself

    def lowest(row: int) -> int:
        while group[row] != row:
            group[row] = row = group[group[row]]
        return row

    for one, two in candidate_pairs(store, spans):
        if lowest(one) == lowest(two):
            continue
        similarity = jaccard(*(shingles(hashes, store.words(*spans[row])) for row in (one, two)))
        if similarity >= SIMILAR and prompts[one] == prompts[two]:
            responses = [store.words(spans[row][0] + 1, spans[row][1]) for row in (one, two)]
            similarity = SIMILAR if jaccard(*(shingles(hashes, each) for each in responses)) >= _ALIKE else 0
        if similarity >= SIMILAR:
            one, two = sorted((lowest(one), lowest(two)))
            group[two] = one
    return groups_of(np.array([lowest(row) for row in range(len(rows))], dtype=np.uint64), rows)


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


def leaked_nearly(
    table: PreferenceTable, store: WordStore, prompts: Sequence[str], exact: list[list[int]]
) -> list[list[int]]:
    """Return [training row, test row] of prompts that are near duplicates and not among the `exact` ones."""
    rows = np.flatnonzero(table.has_prompt)
    _, first, member = np.unique(table.prompts[rows], return_index=True, return_inverse=True)
    spans = [(table.prompt_text(row), table.prompt_text(row) + 1) for row in rows[first].tolist()]
    texts = {prompt: place for place, prompt in enumerate(dict.fromkeys(filter(None, prompts)))}
    for prompt in texts:
        spans.append((len(store.ends) - 1, len(store.ends)))
        store.append(prompt)
    alike: dict[int, list[int]] = {}
    hashes = store.hashes()
    for one, two in candidate_pairs(store, spans, first=len(first)):
        if jaccard(*(shingles(hashes, store.words(*spans[text])) for text in (one, two))) >= SIMILAR:
            alike.setdefault(two - len(first), []).extend(rows[member == one].tolist())
    known = set(map(tuple, exact))
    leaks = ((row, place) for place, prompt in enumerate(prompts) for row in alike.get(texts.get(prompt, -1), ()))
    return sorted([row, place] for row, place in leaks if (row, place) not in known)
