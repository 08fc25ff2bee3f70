"""Attention block by block against the formula on the whole matrix, under the one-line mask."""

import math
from types import SimpleNamespace

import pytest
import torch
from attention_formula import HEADS, SEQUENCES, by_formula, sees, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plaudit.forest.blocks import ScoreRules, attend_blocks
from plaudit.forest.partition import BlockLimits, partition_forest
from plaudit.forest.trie import TokenForest

RULES = {
    "plain": {},
    "scaled": {"scaling": 0.9},
    "window 1": {"window": 1},
    "window 3": {"window": 3},
    "window 20": {"window": 20},
    "softcap": {"softcap": 0.7},
    "softcap and window": {"softcap": 0.7, "window": 4},
    "sinks": {"sinks": True},
    "sinks and window": {"sinks": True, "window": 4},
    "everything": {"sinks": True, "window": 7, "softcap": 0.7, "scaling": 1.3},
}
EXACT = {"atol": 1e-12, "rtol": 1e-10}


def small_blocks(*, subtree_tokens=1, scores=24, queries=2, saved=0):
    """Arguments of `by_blocks` for blocks of few tokens, and few keys whose weights are saved."""
    return {"limits": BlockLimits(subtree_tokens, scores, queries), "max_saved_keys": saved}


PARTITIONS = {
    "default": {},
    "subtrees, computed again": small_blocks(subtree_tokens=10),
    "blocks, saved": small_blocks(saved=10**6),
    "blocks, computed again": small_blocks(),
}
plain_and_everything = pytest.mark.parametrize(
    "options", [RULES["plain"], RULES["everything"]], ids=["plain", "everything"]
)
each_partition = pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)


def rules_of(options, size=4):
    options = {"scaling": size**-0.5} | options
    return ScoreRules(**{name: value for name, value in options.items() if name != "sinks"})


def tensors(forest, heads, keys, *, size=4, sinks=False, dtype=torch.float64, seed=0):
    """Queries, keys, values (of another width, as some models have it) and perhaps sinks; scores well apart."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, len(forest), size), (keys, len(forest), size), (keys, len(forest), size + 1)]
    shapes += [(heads,)] if sinks else []
    return [(2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


DEFAULT = BlockLimits()


def by_blocks(forest, rules, query, key, value, sinks=None, dtype=None, *, limits=DEFAULT, max_saved_keys=512):
    blocks = partition_forest(forest.position_ids, forest.subtree_end, len(query), rules.window, limits=limits)
    return attend_blocks(query, key, value, blocks, rules, sinks, dtype, max_saved_keys=max_saved_keys)


def assert_blocks_equal_the_formula(forest, rules, inputs, **partition):
    given = with_gradients(lambda *each: by_blocks(forest, rules, *each, **partition), inputs)
    expected = with_gradients(lambda *each: by_formula(forest, rules, *each), inputs)
    for name, one, other in zip(["output", "query", "key", "value", "sinks"], given, expected, strict=False):
        torch.testing.assert_close(one, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@each_partition
@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sequences", SEQUENCES.values(), ids=SEQUENCES)
def test_outputs_and_gradients_are_those_of_the_formula(partition, sequences, options):
    forest = TokenForest.from_sequences(sequences)
    inputs = tensors(forest, 4, 2, sinks=options.get("sinks", False))
    assert_blocks_equal_the_formula(forest, rules_of(options), inputs, **partition)


@each_partition
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@plain_and_everything
def test_each_group_of_heads_reads_its_own_keys(partition, heads, options):
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    inputs = tensors(forest, *heads, sinks=options.get("sinks", False))
    assert_blocks_equal_the_formula(forest, rules_of(options), inputs, **partition)


FORESTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6)


@given(
    sequences=FORESTS,
    rows=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    window=st.none() | st.integers(1, 14),
    softcap=st.sampled_from([None, 0.7]),
    sinks=st.booleans(),
    limits=st.builds(BlockLimits, st.integers(1, 30), st.integers(1, 200), st.integers(1, 5)),
    saved=st.integers(0, 40),
)
@settings(deadline=None, max_examples=80)
def test_any_forest_under_any_window_and_any_partition(sequences, rows, window, softcap, sinks, limits, saved):
    forest = TokenForest.from_sequences(sequences, rows[: len(sequences)], shared_tokens=2)
    rules, inputs = ScoreRules(scaling=0.6, window=window, softcap=softcap), tensors(forest, 2, 1, sinks=sinks)
    assert_blocks_equal_the_formula(forest, rules, inputs, limits=limits, max_saved_keys=saved)


@each_partition
@plain_and_everything
def test_gradients_are_those_of_finite_differences(partition, options):
    forest = TokenForest.from_sequences([[1, 2, 3, 4], [1, 2, 5], [6]])
    rules = rules_of(options | ({"window": 2} if options else {}), size=2)
    inputs = [each.requires_grad_() for each in tensors(forest, 2, 1, size=2, sinks=options.get("sinks", False))]
    assert torch.autograd.gradcheck(lambda *each: by_blocks(forest, rules, *each, **partition), inputs)


def test_only_the_inputs_that_need_gradients_are_asked_for_them():
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    for options in (RULES["plain"], RULES["everything"]):
        rules, inputs = rules_of(options), tensors(forest, 4, 2, sinks=options.get("sinks", False))
        expected = with_gradients(lambda *each, rules=rules: by_formula(forest, rules, *each), inputs)[3]
        value = inputs[2].clone().requires_grad_()
        out = by_blocks(forest, rules, inputs[0], inputs[1], value, *inputs[3:])
        above = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        out.backward(above)
        torch.testing.assert_close(value.grad, expected, **EXACT)


def test_strided_inputs_and_gradients_are_read_as_they_are():
    # Models hand over [T, H, D] seen as [H, T, D], and a sum hands back one number seen as a tensor.
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    rules, inputs = rules_of({}), tensors(forest, 4, 2)
    expected = [each.clone().requires_grad_() for each in inputs]
    by_formula(forest, rules, *expected).sum().backward()
    strided = [each.transpose(0, 1).contiguous().requires_grad_() for each in inputs]
    by_blocks(forest, rules, *(each.transpose(0, 1) for each in strided)).sum().backward()
    for one, other in zip(strided, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad.transpose(0, 1), **EXACT)


@each_partition
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@plain_and_everything
def test_narrow_numbers_cost_no_more_than_rounding(partition, dtype, options):
    forest = TokenForest.from_sequences(SEQUENCES["long"])
    rules = rules_of(options)
    inputs = tensors(forest, 4, 2, sinks=options.get("sinks", False), dtype=dtype)
    given = with_gradients(lambda *each: by_blocks(forest, rules, *each, **partition), inputs)
    exact = [each.double() for each in inputs]
    expected = with_gradients(lambda *each: by_formula(forest, rules, *each), exact)
    for one, other in zip(given, expected, strict=True):
        assert one.dtype == dtype
        # Scores, weights and sums are each rounded to `dtype`; with a score of order 4 that is some ten roundings.
        assert (one.double() - other).norm() < 10 * torch.finfo(dtype).eps * other.norm()


@plain_and_everything
def test_products_have_the_precision_asked_for_and_gradients_that_of_their_inputs(options):
    # As under autocast, where rotary positions and norms leave float32.
    forest, rules = TokenForest.from_sequences(SEQUENCES["turns"]), rules_of(options)
    narrow = [each.bfloat16() for each in tensors(forest, 4, 2, sinks=options.get("sinks", False))]
    wide = [each.float() for each in narrow]
    given = with_gradients(lambda *each: by_blocks(forest, rules, *(*each, None)[:4], torch.bfloat16), wide)
    expected = with_gradients(lambda *each: by_blocks(forest, rules, *each), narrow)
    assert given[0].dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in given[1:])
    assert torch.equal(given[0], expected[0])
    for one, other in zip(given[1:], expected[1:], strict=True):
        torch.testing.assert_close(one.bfloat16(), other)


def test_gradients_of_a_key_that_many_blocks_read_are_summed_in_float32():
    # 600 branches below one token: in bf16, a running sum would stop growing at 256 times the addend.
    forest = TokenForest.from_sequences([[0, n] for n in range(1, 601)])
    value = torch.ones(1, len(forest), 2, dtype=torch.bfloat16, requires_grad=True)
    nothing = torch.zeros(1, len(forest), 2, dtype=torch.bfloat16)
    by_blocks(forest, ScoreRules(scaling=1.0), nothing, nothing, value, **small_blocks()).sum().backward()
    # The root reads itself alone, and each branch gives it one half.
    torch.testing.assert_close(value.grad[0, 0].float(), torch.full((2,), 301.0), atol=2.0, rtol=0)


def test_training_works_after_inference_mode():
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    for options in (RULES["plain"], RULES["everything"]):
        rules, inputs = rules_of(options), tensors(forest, 4, 2, sinks=options.get("sinks", False), size=6)
        with torch.inference_mode():
            by_blocks(forest, rules, *inputs)
        assert_blocks_equal_the_formula(forest, rules, inputs)


# Windows


@each_partition
def test_a_window_as_long_as_the_sequences_changes_nothing(partition):
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    inputs = tensors(forest, 4, 2)
    wide = by_blocks(forest, rules_of({"window": 9}), *inputs, **partition)  # the longest sequence has nine tokens
    torch.testing.assert_close(wide, by_blocks(forest, rules_of({}), *inputs, **partition), **EXACT)


# Dropout


def dropped_weights(forest, rules, query, key, **partition):
    """The weights [H, T, T] that dropout leaves, read as the output where the values are the unit vectors."""
    units = torch.eye(len(forest), dtype=query.dtype).expand(len(key), -1, -1)
    return by_blocks(forest, rules, query, key, units, **partition).transpose(0, 1)


@each_partition
@pytest.mark.parametrize("options", [{}, {"window": 20, "softcap": 0.7}], ids=["plain", "window and softcap"])
def test_dropout_drops_at_its_rate_and_scales_the_weights_that_stay(partition, options):
    forest = TokenForest.from_sequences(SEQUENCES["long"])
    query, key, _ = tensors(forest, 4, 2)
    query = query / 100  # all weights of about one size
    full = dropped_weights(forest, rules_of(options), query, key, **partition)
    torch.manual_seed(3)
    left = dropped_weights(forest, rules_of(options | {"dropout": 0.3}), query, key, **partition)
    seen = sees(forest, options.get("window")).expand(4, -1, -1)
    assert not left[~seen].any()
    stays = left[seen] != 0
    torch.testing.assert_close(left[seen][stays], full[seen][stays] / 0.7, **EXACT)
    count = stays.numel()
    assert abs(stays.double().mean() - 0.7) < 4 * math.sqrt(0.3 * 0.7 / count)  # four standard deviations
    for head in range(1, 4):  # each head drops others
        assert not torch.equal(left[0] != 0, left[head] != 0)


@each_partition
@pytest.mark.parametrize("sinks", [False, True])
def test_gradients_pass_through_the_weights_that_stay(partition, sinks):
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    inputs = tensors(forest, 4, 2, sinks=sinks)
    rules = rules_of({"dropout": 0.4})
    torch.manual_seed(3)
    given = with_gradients(lambda *each: by_blocks(forest, rules, *each, **partition), inputs)
    torch.manual_seed(3)
    stays = (dropped_weights(forest, rules, *inputs[:2], **partition) != 0).double() / 0.6
    expected = with_gradients(lambda *each: by_formula(forest, rules, *each[:3], *each[3:] or [None], stays), inputs)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_dropout_follows_the_seed_and_without_dropout_none_is_drawn():
    forest = TokenForest.from_sequences(SEQUENCES["turns"])
    inputs = tensors(forest, 4, 2)

    def run(seed, rate):
        torch.manual_seed(seed)
        out = by_blocks(forest, rules_of({"dropout": rate}), *inputs)
        return out, torch.get_rng_state()

    first, state = run(1, 0.4)
    assert torch.equal(run(1, 0.4)[0], first)
    assert not torch.equal(run(2, 0.4)[0], first)
    torch.manual_seed(1)
    untouched = torch.get_rng_state()
    assert not torch.equal(state, untouched)  # else every layer would drop the same
    assert torch.equal(run(1, 0.0)[1], untouched)


# Memory


SMALL = BlockLimits(subtree_tokens=64, scores=1 << 17, queries=8)  # a quarter of the default


def tree(tokens):
    """A trie of about so many tokens: half of them a stem, then two branches that branch again."""
    stem, branch = list(range(tokens // 2)), tokens // 12
    rest = [[10**6 * n + k for k in range(branch)] for n in range(1, 7)]
    return TokenForest.from_sequences(
        [stem + rest[0] + rest[1], stem + rest[0] + rest[2], stem + rest[3] + rest[4], stem + rest[3] + rest[5]]
    )


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *made])
        return out


def cost_of(forest, options):
    """Bytes saved for the backward pass, and numbers in the largest tensor of both passes."""
    inputs = [each.requires_grad_() for each in tensors(forest, 4, 2, size=16, dtype=torch.float32, **options[0])]
    saved = {}

    def keep(tensor):
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = by_blocks(forest, rules_of(options[1], size=16), *inputs, limits=SMALL, max_saved_keys=128)
        out.sum().backward()
    return SimpleNamespace(saved=sum(saved.values()), largest=largest.numbers)


@pytest.mark.parametrize(
    "options", [({}, {}), ({}, {"window": 75}), ({"sinks": True}, {"softcap": 2.0})], ids=["plain", "window", "sinks"]
)
def test_memory_grows_with_tokens_and_not_with_their_square(options):
    small, large = tree(512), tree(2048)
    few, many = cost_of(small, options), cost_of(large, options)
    assert many.saved / len(large) <= 1.25 * few.saved / len(small)
    assert few.saved >= len(small) * 4 * 16 * (4 + 2 + 2)  # queries, keys and values are among it
    # The whole matrix of one head has 8 times as many.
    room = 4 * SMALL.subtree_tokens * len(large) if options[1].get("window") is None else 0
    assert max(few.largest, many.largest) <= 1.5 * max(SMALL.scores, room)
