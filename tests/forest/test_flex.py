"""Masks of forests for FlexAttention, and forests padded to its blocks. The kernels are tested on GPUs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plaudit.forest.attention import ForestAttention
from plaudit.forest.blocks import ScoreRules
from plaudit.forest.flex import attend_flex, block_mask
from plaudit.forest.trie import TokenForest

FORESTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=15), min_size=1, max_size=8)


def attention_of(forest):
    return ForestAttention(torch.tensor(forest.position_ids), torch.tensor(forest.subtree_end))


def visible_by_blocks(mask, size, step):
    """The mask that FlexAttention makes of a block mask: all of a full block, and what `mask_mod` allows of others."""
    seen = torch.zeros(size, size, dtype=torch.bool)
    tokens = torch.arange(size)
    allowed = mask.mask_mod(None, None, tokens[:, None], tokens[None, :])
    for full, numbers, indices in (
        (False, mask.kv_num_blocks, mask.kv_indices),
        (True, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for query in range(numbers.shape[-1]):
            for key in indices[0, 0, query, : numbers[0, 0, query]].tolist():
                block = slice(query * step, (query + 1) * step), slice(key * step, (key + 1) * step)
                assert not seen[block].any()
                assert not full or allowed[block].shape == (step, step)  # the last block is padded, and never full
                seen[block] = True if full else allowed[block]
    return seen


@given(FORESTS, st.none() | st.integers(1, 16), st.sampled_from([2, 4, 8]))
@settings(deadline=None, max_examples=60)
def test_the_block_mask_is_the_mask_of_the_forest(sequences, window, step):
    forest = TokenForest.from_sequences(sequences)
    attention = attention_of(forest)
    mask = block_mask(
        attention.position_ids, attention.subtree_end, window,
        lambda batch, head, query, key: attention.sees(query, key, window), step,
    )  # fmt: skip
    assert torch.equal(visible_by_blocks(mask, len(forest), step), attention.mask(window)[0, 0])


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("window", [None, 350])
def test_a_block_mask_skips_hidden_blocks_and_never_holds_the_whole_mask(window):
    prompt, rest = list(range(1500)), [[10**6 * n + k for k in range(500)] for n in range(1, 5)]
    forest = TokenForest.from_sequences([prompt + each for each in rest])
    attention, size = attention_of(forest), len(forest)
    with Largest() as largest:
        mask = attention.block_mask(window)
    assert largest.numbers <= 2 * size
    exact = attention.mask(window)[0, 0]
    exact = nn.functional.pad(exact, (0, -size % 128, 0, -size % 128)).view(-(-size // 128), 128, -1, 128)
    some, all_ = exact.any(3).any(1), exact.all(3).all(1)
    partial, full = mask.kv_num_blocks.sum(), mask.full_kv_num_blocks.sum()
    assert full == all_.sum()
    # At the edge of a window one block too many may be computed for each block of queries.
    assert some.sum() <= partial + full <= some.sum() + (0 if window is None else len(exact))


def test_flex_refuses_dropout_rather_than_leave_it_out():
    heads = torch.zeros(1, 2, 4, 16)
    with pytest.raises(ValueError, match="no dropout"):
        attend_flex(heads, heads, heads, None, ScoreRules(1.0, dropout=0.1))
