"""Partitions of forests into blocks: what blocks cover, how large they are, and which keys they read."""

import numpy as np
import pytest
import torch

from plaudit.forest.partition import BlockLimits, partition_forest, partition_kernel_calls
from plaudit.forest.trie import TokenForest

SMALL = BlockLimits(subtree_tokens=64, scores=1 << 15, queries=8)
TINY = BlockLimits(subtree_tokens=1, scores=24, queries=2)


def blocks_of(forest, heads, window=None, limits=None):
    arguments = {} if limits is None else {"limits": limits}
    return partition_forest(forest.position_ids, forest.subtree_end, heads, window, **arguments)


def sees(forest, window):
    query, key = np.arange(len(forest))[:, None], np.arange(len(forest))[None, :]
    seen = (key <= query) & (query < forest.subtree_end[None, :])
    if window is None:
        return seen
    return seen & (forest.position_ids[:, None] - forest.position_ids[None, :] < window)


def tree(tokens):
    """A trie of about so many tokens: half of them a stem, then two branches that branch again."""
    stem, branch = list(range(tokens // 2)), tokens // 12
    rest = [[10**6 * n + k for k in range(branch)] for n in range(1, 7)]
    return TokenForest.from_sequences(
        [stem + rest[0] + rest[1], stem + rest[0] + rest[2], stem + rest[3] + rest[4], stem + rest[3] + rest[5]]
    )


def assert_blocks_cover(forest, blocks, window):
    """Each token is a query once, and reads the keys above its block that the block sees, and no others."""
    assert [index for block in blocks for index in range(block.start, block.stop)] == list(range(len(forest)))
    seen = sees(forest, window)
    for block in blocks:
        path = [index for start, stop in block.path for index in range(start, stop)]
        assert len(path) == block.path_length
        assert seen[block.start : block.stop, : block.start].any(0).nonzero()[0].tolist() == path


def assert_scores_are_bounded(blocks, heads, limits):
    """A bound for each query, so that memory is linear in tokens."""
    for block in blocks:
        queries, keys = block.stop - block.start, block.path_length + block.stop - block.start
        assert heads * queries * keys <= max(limits.scores, heads * max(limits.queries, limits.subtree_tokens) * keys)


@pytest.mark.parametrize("heads", [1, 2, 16])
@pytest.mark.parametrize("window", [None, 75])
@pytest.mark.parametrize("tokens", [1024, 2048])
def test_blocks_cover_each_token_once_and_hold_a_bounded_number_of_scores(tokens, window, heads):
    forest = tree(tokens)
    blocks = blocks_of(forest, heads, window, SMALL)
    assert_blocks_cover(forest, blocks, window)
    assert_scores_are_bounded(blocks, heads, SMALL)


@pytest.mark.parametrize("heads", [2, 16])
def test_blocks_are_bounded_by_default(heads):
    forest = tree(4096)
    blocks = blocks_of(forest, heads)
    assert_blocks_cover(forest, blocks, None)
    assert_scores_are_bounded(blocks, heads, BlockLimits())
    assert len(blocks) < len(forest) / BlockLimits().queries


def test_small_subtrees_make_a_block_together_and_large_ones_do_not():
    stem = list(range(20))
    forest = TokenForest.from_sequences(
        [[*stem, n, 30, 31] for n in (40, 41, 42, 43)] + [[*stem, 50, *range(60, 75)], [*stem, 51], [90, 91]], [0] * 7
    )
    blocks = blocks_of(forest, 2, limits=BlockLimits(subtree_tokens=10, scores=10**6, queries=2))
    parts = [(block.start, block.stop, block.path_length) for block in blocks]
    assert parts == [(0, 20, 0), (20, 29, 20), (29, 32, 20), (32, 48, 20), (48, 49, 20), (49, 51, 0)]


def test_keys_behind_the_window_of_a_whole_block_are_not_read():
    forest = TokenForest.from_sequences([[*range(30), 40, 41, 42, 43], [*range(30), 50]])
    blocks = blocks_of(forest, 1, window=4, limits=TINY)
    assert len(blocks) > 10
    for block in blocks:
        assert block.path_length <= 3
        assert block.first_position == max(0, forest.position_ids[block.start] - 3)
    assert blocks[-1].path == ((27, 30),)  # the last sequence's own token comes after three of the prompt
    assert (blocks[-1].start, blocks[-1].stop) == (34, 35)


def test_the_bias_of_a_block_is_on_the_device_of_attention():
    forest = TokenForest.from_sequences([[1, 2, 3, 4], [1, 2, 3, 5, 6, 7, 8], [1, 2, 3, 5, 6, 9, 10, 11, 12]])
    for block in partition_forest(forest.position_ids, forest.subtree_end, 2, device="meta"):
        assert block.bias(torch.bfloat16).device.type == "meta"


# Calls of a kernel


@pytest.mark.parametrize("subtree_tokens", [1, 30, 256])
@pytest.mark.parametrize("tokens", [256, 1024])
def test_the_calls_of_a_kernel_cover_what_each_token_sees_once(tokens, subtree_tokens):
    forest = tree(tokens)
    seen = np.zeros((len(forest), len(forest)), dtype=int)
    has_queries = np.zeros(len(forest), dtype=bool)
    for call in partition_kernel_calls(forest.position_ids, forest.subtree_end, subtree_tokens):
        part = np.ones((call.queries.stop - call.queries.start, call.keys.stop - call.keys.start), dtype=int)
        if call.is_causal:
            part = np.tril(part)
        elif call.hidden is not None:
            part[call.hidden] = 0
        seen[call.queries, call.keys] += part
        assert (has_queries[call.queries] != call.is_first).all()
        has_queries[call.queries] = True
    assert np.array_equal(seen, sees(forest, None))


def test_small_subtrees_make_a_call_together_and_a_long_chain_two():
    stem = list(range(20))
    forest = TokenForest.from_sequences([[*stem, n, 30, 31] for n in (40, 41, 42)] + [[90, 91]], [0] * 4)
    calls = partition_kernel_calls(forest.position_ids, forest.subtree_end, 10)
    found = [(call.queries.start, call.queries.stop, call.keys.start, call.keys.stop, call.is_causal) for call in calls]
    assert found == [(0, 20, 0, 20, True), (20, 29, 0, 20, False), (20, 29, 20, 29, False), (29, 31, 29, 31, True)]
