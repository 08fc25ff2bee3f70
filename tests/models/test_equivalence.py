"""The probe of two layouts, with score functions made up for it: what it lets pass, reports, and raises."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, Qwen3ForSequenceClassification

from plaudit.errors import ModelError
from plaudit.forest.trie import SHARED_TOKENS, common_tokens
from plaudit.models.equivalence import layouts_differ, probe_size, settle_layout
from plaudit.models.reward_head import bind_reward_forward

REWARDS = torch.tensor([1.0, -2.0, 0.5])
CLOSE = torch.tensor([5.0, 5.1, 4.9, 5.2])
SWAPPED = torch.tensor([5.1, 5.0, 5.2, 4.9])  # in another order, and within the rounding of bf16


class OwnCode(Qwen3ForSequenceClassification):
    """A model that ships its own code."""


@pytest.fixture
def model(make_model):
    return make_model()


def scripted(model, *results):
    """A score function that gives these results, one a call, and a list of (layout, float32, dtype of the weights)."""
    calls, waiting = [], iter(results)

    def score(layout, float32):
        calls.append((layout, float32, next(model.parameters()).dtype))
        result = next(waiting)
        if isinstance(result, Exception):
            raise result
        return result

    return score, calls


def always(padded, forest):
    return lambda layout, _: {"padded": padded, "forest": forest}[layout]


def test_equal_rewards_pass_after_one_measurement(model):
    score, calls = scripted(model, REWARDS, REWARDS + 1e-6)
    assert layouts_differ(model, score, dtype=torch.float32) is None
    assert [layout for layout, _, _ in calls] == ["padded", "forest"]


def test_a_difference_is_reported_with_its_size(model):
    reason = layouts_differ(model, always(REWARDS, REWARDS + 0.3), dtype=torch.float32)
    assert reason.startswith("on 3 sequences the rewards of the two layouts differ by up to 0.3, more than float32")


def test_a_difference_decides_only_if_a_second_measurement_confirms_it(model):
    glitch = REWARDS + 1.66e-3  # in the first padded forward of a process
    score, calls = scripted(model, glitch, REWARDS, REWARDS, REWARDS)
    assert layouts_differ(model, score, dtype=torch.float32) is None
    assert [layout for layout, _, _ in calls] == ["padded", "forest"] * 2
    score, _ = scripted(model, REWARDS, REWARDS + 1, REWARDS, REWARDS + 0.5)
    assert "differ by up to 0.5" in layouts_differ(model, score, dtype=torch.float32)


@pytest.mark.parametrize(("dtype", "passes"), [(torch.float32, False), (torch.float16, True), (torch.bfloat16, True)])
def test_the_tolerance_is_that_of_the_dtype(model, dtype, passes):
    reason = layouts_differ(model, always(REWARDS, REWARDS * 1.005), dtype=dtype)
    assert (reason is None) == passes


def test_the_layouts_can_be_named(model):
    score, calls = scripted(model, REWARDS, RuntimeError("no padding here"))
    with pytest.raises(RuntimeError):
        layouts_differ(model, score, dtype=torch.float32, reference="alone", candidate="padded")
    assert [layout for layout, _, _ in calls] == ["alone", "padded"]


# Where rounding could hide a difference


def test_rewards_too_close_for_their_dtype_are_compared_with_the_weights_in_float32(model):
    model.to(torch.bfloat16)
    score, calls = scripted(model, *[CLOSE, SWAPPED] * 3)
    assert "differ by up to 0.3, more than float32" in layouts_differ(model, score, dtype=torch.bfloat16)
    assert [(float32, dtype) for _, float32, dtype in calls] == [(False, torch.bfloat16)] * 2 + [
        (True, torch.float32)
    ] * 4
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_rewards_that_are_all_equal_hide_nothing(model):
    score, calls = scripted(model, torch.zeros(4), torch.zeros(4))
    assert layouts_differ(model, score, dtype=torch.bfloat16) is None
    assert len(calls) == 2


def test_without_float32_rewards_too_close_for_their_dtype_pass(model):
    score, calls = scripted(model, CLOSE, SWAPPED)
    assert layouts_differ(model, score, dtype=torch.bfloat16, can_use_float32=False) is None
    assert len(calls) == 2


def test_where_only_float32_could_tell_and_does_not_fit_the_candidate_is_not_used(model):
    score, _ = scripted(model, CLOSE, CLOSE, torch.OutOfMemoryError())
    assert "only float32 could tell" in layouts_differ(model, score, dtype=torch.bfloat16)


@pytest.mark.parametrize("can_use_float32", [True, False])
def test_experts_are_compared_in_float32_at_once(model, can_use_float32):
    """Rounding may send a token to another expert: in their own dtype the layouts may differ and both be right."""
    model.to(torch.bfloat16).config.num_experts = 4
    score, calls = scripted(model, REWARDS, REWARDS)
    assert layouts_differ(model, score, dtype=torch.bfloat16, can_use_float32=can_use_float32) is None
    expected = (True, torch.float32) if can_use_float32 else (False, torch.bfloat16)
    assert [(float32, dtype) for _, float32, dtype in calls] == [expected] * 2


# Where a layout fails


def test_a_forest_that_refuses_a_model_is_a_reason(model):
    score, _ = scripted(model, REWARDS, ModelError("no token forest: no layer called it."))
    assert layouts_differ(model, score, dtype=torch.float32) == "no token forest: no layer called it."


def test_what_a_model_with_its_own_code_raises_is_a_reason(model):
    model.__class__ = OwnCode
    score, _ = scripted(model, REWARDS, KeyError("mask"))
    reason = layouts_differ(model, score, dtype=torch.float32)
    assert reason == "the model fails on a forest (KeyError: 'mask')"


def test_what_transformers_own_code_raises_on_the_inputs_is_a_reason(model):
    bind_reward_forward(model)

    def score(layout, _):
        return REWARDS if layout == "padded" else model(input_ids=torch.ones(2, 2), attention_mask=torch.ones(2, 2))

    reason = layouts_differ(model, score, dtype=torch.float32)  # the ids are no integers
    assert reason.startswith("the model fails on a forest (RuntimeError: Expected tensor for argument #1 'indices'")


def test_what_plaudits_own_code_raises_is_raised(model):
    bind_reward_forward(model)

    def score(layout, _):
        return REWARDS if layout == "padded" else model()

    with pytest.raises(ValueError, match="expected `input_ids` or `inputs_embeds`"):
        layouts_differ(model, score, dtype=torch.float32)


def test_what_the_reference_raises_is_raised(model):
    model.__class__ = OwnCode
    score, _ = scripted(model, KeyError("mask"))
    with pytest.raises(KeyError):
        layouts_differ(model, score, dtype=torch.float32)


def test_a_layout_that_does_not_fit_into_memory_is_no_reason(model):
    score, _ = scripted(model, REWARDS, torch.OutOfMemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        layouts_differ(model, score, dtype=torch.float32)


# The sequences of a probe


@pytest.mark.parametrize(
    ("lengths", "size"),
    [([5], 1), ([5, 6, 7], 3), ([5000, 6000, 5], 2), ([2048] * 9, 4), ([10, 20, 3000, 10], 2), ([1] * 9000, 8192)],
)
def test_a_probe_takes_two_sequences_and_more_where_they_are_short(lengths, size):
    assert probe_size(lengths) == size


def settle(model, sequences, layout):
    """Settle a layout with a run that gives every token's sum as reward; returns what was run as well."""
    probes = []

    def run(sequences, layout):
        probes.append((layout, sequences))
        return torch.tensor([float(ids.sum()) for ids in sequences])

    return settle_layout(model, [np.array(ids) for ids in sequences], run, layout), probes


@pytest.mark.parametrize("ids", [[7], list(range(5)), list(range(500))])
def test_a_single_sequence_is_compared_with_two_that_share_a_prefix(model, ids):
    bind_reward_forward(model)
    settled, ((reference, probe), (candidate, same)) = settle(model, [ids], "forest")
    assert settled == ("forest", True)
    assert (reference, candidate) == ("padded", "forest")
    (given, first, second), _ = probe, same
    assert given.tolist() == ids
    assert common_tokens(first, second) >= SHARED_TOKENS
    assert set(first) | set(second) <= set(ids)


@pytest.mark.parametrize(("positions", "sequences"), [(SHARED_TOKENS + 16, 1), (SHARED_TOKENS + 17, 3)])
def test_a_model_of_few_positions_gets_no_longer_sequence(make_model, positions, sequences):
    model = make_model(max_position_embeddings=positions)
    bind_reward_forward(model)
    _, ((_, probe), _) = settle(model, [[3, 4, 5]], "forest")
    assert len(probe) == sequences
    assert max(map(len, probe)) <= positions


@pytest.mark.parametrize(("sequences", "is_final"), [([[3, 4, 5]], True), ([[3], [4]], False)])
def test_an_encoder_is_compared_with_each_sequence_alone_until_lengths_differ(sequences, is_final):
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1)
    settled, probes = settle(AutoModelForSequenceClassification.from_config(config), sequences, "padded")
    assert settled == ("padded", is_final)
    assert [layout for layout, _ in probes] == ["alone", "padded"]
