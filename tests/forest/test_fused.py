"""Attention by the kernel for CPUs against the formula on the whole matrix, under the one-line mask."""

import pytest
import torch
from attention_formula import HEADS, LONG, SEQUENCES, by_formula, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.forest.blocks import ScoreRules
from plaudit.forest.fused import attend_fused
from plaudit.forest.partition import partition_kernel_calls
from plaudit.forest.trie import TokenForest

LIMITS = {"default": {}, "small subtrees": {"subtree_tokens": 10}, "chains": {"subtree_tokens": 1}}
SIZE = 8
RULES = ScoreRules(SIZE**-0.5)


def tensors(forest, heads, keys, dtype=torch.float64):
    """Queries, keys and values with scores well apart."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, len(forest), SIZE), (keys, len(forest), SIZE), (keys, len(forest), SIZE)]
    return [(2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


def by_kernel(forest, query, key, value, dtype=None, **limits):
    calls = partition_kernel_calls(forest.position_ids, forest.subtree_end, **limits)
    return attend_fused(query, key, value, calls, RULES.scaling, dtype or value.dtype)


def assert_equal_to_the_formula(forest, parts, **limits):
    found = with_gradients(lambda *each: by_kernel(forest, *each, **limits), parts)
    for own, expected in zip(found, with_gradients(lambda *each: by_formula(forest, RULES, *each), parts), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-10)
    with torch.no_grad():  # where no autograd function runs
        assert torch.equal(by_kernel(forest, *parts, **limits), found[0])


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("sequences", SEQUENCES.values(), ids=SEQUENCES)
def test_output_and_gradients_are_those_of_the_formula(sequences, heads, limits):
    forest = TokenForest.from_sequences(sequences)
    parts = tensors(forest, *heads)
    assert_equal_to_the_formula(forest, parts, **limits)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=15), min_size=1, max_size=8), st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_any_forest_is_attended_as_by_the_formula(sequences, subtree_tokens):
    forest = TokenForest.from_sequences(sequences)
    parts = tensors(forest, 4, 2)
    assert_equal_to_the_formula(forest, parts, subtree_tokens=subtree_tokens)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_parts_of_narrow_precision_are_merged_in_float32(limits):
    forest = TokenForest.from_sequences(SEQUENCES["long"])
    parts = tensors(forest, 4, 2, torch.bfloat16)
    found = by_kernel(forest, *parts, **limits)
    expected = by_formula(forest, RULES, *(part.double() for part in parts))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=2e-2)  # two roundings of 2^-8


def test_the_precision_of_the_products_is_the_one_asked_for():
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    assert by_kernel(forest, *tensors(forest, 2, 2, torch.float32), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_tensors_may_have_any_strides():
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    parts = tensors(forest, 4, 2)
    strided = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    torch.testing.assert_close(by_kernel(forest, *strided), by_kernel(forest, *parts), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("lengths", [range(1, 150), [511, 512, 513, 520, 600]], ids=["short", "around a block of keys"])
def test_a_model_that_gives_no_number_is_seen_whatever_the_number_of_keys(lengths, part):
    # By itself, the kernel gives 0 for queries that see few keys, of which all scores are NaN.
    for length in lengths:
        prefix = list(range(length))
        for sequences in ([prefix], [[*prefix, n, *LONG] for n in (1000, 1001)]):
            forest = TokenForest.from_sequences(sequences)
            parts = tensors(forest, 4, 2, torch.float32)
            parts[part][:, :length] = torch.nan
            for needs_gradients in (True, False):
                with torch.set_grad_enabled(needs_gradients):
                    out = by_kernel(forest, *parts)
                assert out[:length].isnan().all()
                assert part == 0 or out.isnan().all()  # every token sees the prefix


def test_the_operators_of_the_kernel_are_those_that_pytorch_calls():
    query = torch.randn(1, 2, 4, SIZE, requires_grad=True)
    with torch.profiler.profile() as profile:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    } <= names
