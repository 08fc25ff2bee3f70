import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from plaudit.checkpoint.fingerprint import (
    Fingerprint,
    columns_as_saved,
    probe_sequences,
    rewards_as_saved,
    take_fingerprint,
    tolerance,
)
from plaudit.data.render import render
from plaudit.models.member_heads import add_member_heads
from plaudit.models.reward_head import bind_reward_forward


@pytest.fixture
def bound(make_model):
    model = make_model()
    bind_reward_forward(model)
    return model


def test_the_probes_are_a_dozen_and_all_different(tokenizer):
    for conversational in (True, False):
        ids = render(tokenizer, probe_sequences(tokenizer, conversational=conversational))
        assert len({tuple(each) for each in ids}) == 12
    for conversation in probe_sequences(tokenizer, conversational=True):
        roles = [message["role"] for message in conversation]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


@pytest.mark.parametrize("conversational", [True, False])
def test_a_fingerprint_survives_its_file_to_the_last_bit(bound, tokenizer, conversational):
    taken = take_fingerprint(
        lambda ids: columns_as_saved(bound, ids), tokenizer, conversational=conversational, dtype=torch.float32
    )
    assert taken.ids == render(tokenizer, probe_sequences(tokenizer, conversational=conversational))
    assert len(set(taken.rewards)) == 12
    assert taken.members is None
    assert Fingerprint.from_json(json.loads(json.dumps(taken.as_json()))) == taken


def test_a_fingerprint_of_an_ensemble_has_the_rewards_of_its_members(bound, tokenizer):
    add_member_heads(bound, 3, seed=0, around_head=True)
    taken = take_fingerprint(
        lambda ids: columns_as_saved(bound, ids), tokenizer, conversational=False, dtype=torch.float32
    )
    assert taken.rewards == pytest.approx([sum(each) / 3 for each in taken.members], abs=1e-5)
    assert Fingerprint.from_json(json.loads(json.dumps(taken.as_json()))) == taken


def test_probes_that_a_model_cannot_hold_are_left_out(bound, tokenizer):
    lengths = sorted(len(ids) for ids in render(tokenizer, probe_sequences(tokenizer, conversational=False)))

    def score(ids):
        return columns_as_saved(bound, ids)

    some = take_fingerprint(score, tokenizer, conversational=False, dtype=torch.float32, longest=lengths[5])
    assert max(map(len, some.ids)) <= lengths[5]
    assert len(some.ids) == sum(length <= lengths[5] for length in lengths)
    one = take_fingerprint(score, tokenizer, conversational=False, dtype=torch.float32, longest=1)
    assert len(one.ids) == 1


def test_probes_that_a_template_refuses_are_left_out_and_are_texts_if_it_refuses_all(bound, tokenizer):
    def score(ids):
        return columns_as_saved(bound, ids)

    plain = tokenizer.chat_template
    tokenizer.chat_template = "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + plain
    some = take_fingerprint(score, tokenizer, conversational=True, dtype=torch.float32)
    assert len(some.probes) == len(some.ids) == 10
    assert all(len(conversation) == 2 for conversation in some.probes)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    none = take_fingerprint(score, tokenizer, conversational=True, dtype=torch.float32)
    assert len(none.probes) == 12
    assert all(isinstance(text, str) for text in none.probes)


def test_products_are_not_rounded_to_tf32_while_rewards_are_compared(bound):
    products: Any = torch.backends.cuda.matmul
    before, seen = products.fp32_precision, []
    bound.model.register_forward_pre_hook(lambda *_: seen.append(products.fp32_precision))
    try:
        products.fp32_precision = "tf32"
        rewards_as_saved(bound, [[5, 6]])
        seen.append(products.fp32_precision)
    finally:
        products.fp32_precision = before
    assert seen == ["ieee", "tf32"]


def test_rewards_are_those_of_the_weights_as_they_are_saved_in_bf16(make_model, tmp_path):
    ids = [[5, 6, 7, 8], [5, 6], [9, 8, 7, 6, 5]]
    model = make_model(dtype=torch.bfloat16)
    bind_reward_forward(model)
    with torch.no_grad():
        model.score.weight.add_(torch.linspace(0, 1e-3, 32))  # a float32 head that bf16 cannot hold
    head = model.score.weight.clone()
    rewards = rewards_as_saved(model, ids)
    assert torch.equal(model.score.weight, head)
    assert model.score.weight.dtype == torch.float32
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert plain.score.weight.dtype == torch.bfloat16
    bind_reward_forward(plain)  # the same bf16 backbone, and now a float32 product at its end
    assert rewards == rewards_as_saved(plain, ids)
    exact = [model(input_ids=torch.tensor([each])).logits.item() for each in ids]
    assert rewards != exact


def test_rewards_do_not_see_autocast_dropout_or_the_mode(make_model):
    model = make_model(attention_dropout=0.5)
    bind_reward_forward(model)
    ids = [[5, 6, 7, 8], [9, 8, 7, 6, 5]]
    expected = rewards_as_saved(model.eval(), ids)
    model.train()
    plain, model._original_forward = model.forward, model.forward
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(plain)  # as accelerate leaves it
    assert rewards_as_saved(model, ids) == expected
    assert model.training


def test_the_tolerance_is_a_share_of_the_rewards_and_of_the_coarser_precision():
    rewards, size = [3.0, -4.0, 0.0], (25 / 3) ** 0.5
    assert tolerance(rewards, "float32", "float32") == pytest.approx(1e-4 * size)
    assert tolerance(rewards, "float32", "bfloat16") == pytest.approx(0.0625 * size)
    assert tolerance(rewards, "float16", "float32") == pytest.approx(0.0078125 * size)
