"""The token forest against its definition: a trie, walked depth first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.forest.trie import TokenForest, chains_of

TOKENS = st.integers(0, 2)  # few, so that prefixes are shared
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=1, max_size=8)


def parents(forest):
    """The parent of each token by the definition: the nearest earlier token one level up."""
    result = []
    for index, depth in enumerate(forest.position_ids):
        above = [k for k in range(index) if forest.position_ids[k] == depth - 1]
        result.append(above[-1] if depth else -1)
    return result


def ancestors(parent, index):
    while index >= 0:
        yield index
        index = parent[index]


@given(SEQUENCES)
@settings(deadline=None)
def test_every_sequence_is_recovered_from_its_leaf(sequences):
    forest = TokenForest.from_sequences(sequences)
    parent = parents(forest)
    walked = [[int(forest.input_ids[k]) for k in ancestors(parent, leaf)][::-1] for leaf in forest.leaf]
    assert walked == sequences
    assert [ids.tolist() for ids in forest.sequences()] == sequences


@given(SEQUENCES)
@settings(deadline=None)
def test_the_one_line_mask_is_the_ancestor_relation(sequences):
    forest = TokenForest.from_sequences(sequences)
    parent, size = parents(forest), len(forest)
    brute = np.zeros((size, size), dtype=bool)
    for query in range(size):
        brute[query, list(ancestors(parent, query))] = True
    query, key = np.arange(size)[:, None], np.arange(size)[None, :]
    np.testing.assert_array_equal((key <= query) & (query < forest.subtree_end[None, :]), brute)


@given(st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=7), st.integers(0, 3)), min_size=1, max_size=8))
@settings(deadline=None)
def test_the_size_is_the_number_of_distinct_prefixes_of_each_row(pairs):
    sequences, rows = zip(*pairs, strict=True)
    forest = TokenForest.from_sequences(sequences, rows, shared_tokens=1000)
    prefixes = {(row, tuple(ids[: n + 1])) for ids, row in pairs for n in range(len(ids))}
    assert len(forest) == len(prefixes)
    assert [ids.tolist() for ids in forest.sequences()] == list(sequences)


@given(SEQUENCES, st.data())
@settings(deadline=None)
def test_rows_that_may_share_anything_make_one_trie(sequences, data):
    rows = [data.draw(st.integers(0, 3)) for _ in sequences]
    one, many = TokenForest.from_sequences(sequences), TokenForest.from_sequences(sequences, rows, shared_tokens=0)
    assert len(one) == len(many) == len({tuple(ids[: n + 1]) for ids in sequences for n in range(len(ids))})


@given(SEQUENCES)
@settings(deadline=None)
def test_a_chain_is_a_run_of_only_children(sequences):
    forest = TokenForest.from_sequences(sequences)
    parent, chains = parents(forest), chains_of(forest.position_ids, forest.subtree_end)
    assert [index for chain in chains for index in range(chain.start, chain.stop)] == list(range(len(forest)))
    for chain in chains:
        for index in range(chain.start + 1, chain.stop):
            assert parent[index] == index - 1
            assert parent.count(index - 1) == 1
        above = parent[chain.start]
        assert chain.depth == forest.position_ids[chain.start]
        if above == -1:
            assert chain.parent == -1
        else:
            (parent_chain,) = (c for c in chains if c.start <= above < c.stop)
            assert chain.parent == parent_chain.start
            assert above == parent_chain.stop - 1


def test_a_pair_is_its_prompt_once_and_two_branches():
    forest = TokenForest.from_sequences([[7, 8, 3, 4], [7, 8, 5]])
    assert forest.input_ids.tolist() == [7, 8, 3, 4, 5]
    assert forest.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert forest.subtree_end.tolist() == [5, 5, 4, 4, 5]
    assert forest.leaf.tolist() == [3, 4]


def test_ids_are_ordered_as_numbers_and_not_as_bytes():
    forest = TokenForest.from_sequences([[1, 300], [1, 5], [1, 70000, 2]])
    assert forest.input_ids.tolist() == [1, 5, 300, 70000, 2]
    assert forest.leaf.tolist() == [2, 1, 4]


def test_rows_share_a_long_prefix_and_not_a_short_one():
    short, long = [1] * 3, [1] * 200
    rows = [0, 0, 1, 1]
    apart = TokenForest.from_sequences([[*short, n] for n in range(2, 6)], rows)
    together = TokenForest.from_sequences([[*long, n] for n in range(2, 6)], rows)
    assert len(apart) == 2 * (3 + 2)
    assert (apart.position_ids == 0).sum() == 2
    assert len(together) == 200 + 4
    assert (together.position_ids == 0).sum() == 1


def test_duplicates_and_prefixes_take_no_room():
    forest = TokenForest.from_sequences([[4, 5], [4], [4, 5], [4, 5, 6]], [0, 1, 2, 3], shared_tokens=1)
    assert forest.input_ids.tolist() == [4, 5, 6]
    assert forest.leaf.tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]])
def test_an_empty_batch_or_sequence_is_an_error(sequences):
    with pytest.raises(ValueError, match="one or more token ids"):
        TokenForest.from_sequences(sequences)
