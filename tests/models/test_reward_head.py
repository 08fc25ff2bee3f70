import copy
import io
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

from plaudit.errors import ModelError
from plaudit.models.reward_head import RewardHead, bind_reward_forward, check_one_label, head_names, reads_last_position

PAD, EOS, VOCABULARY = 0, 1, 64
GROUPED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
UNGROUPED = {name: value for name, value in GROUPED.items() if name not in ("num_key_value_heads", "head_dim")}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DECODERS = {
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "qwen3_moe": GROUPED | EXPERTS,
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "gemma2": GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt_neox": UNGROUPED,
    "phi3": GROUPED,
    "gpt_oss": GROUPED | {"sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": UNGROUPED | {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
ENCODERS = {
    "bert": UNGROUPED,
    "modernbert": UNGROUPED | {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2},
    "roberta": UNGROUPED,
}
# Sequences whose middle and end hold the pad's and the EOS id: they are real tokens there.
SEQUENCES = [
    [2, 7, 9, 11, 13, 5, 8, 21, 34, 55],
    [2, 7, EOS, 11, 40, PAD, 9],
    [2, 30, 31, 32, PAD],
    [2, 50, 51, EOS],
    [2, 17],
]
# No pad inside: what the stock forward, which looks for pad ids, reads correctly.
PLAIN = [[2, 7, 9, 11, 13, 5, 8, 21, 34, 55], [2, 7, EOS, 11, 40, 6, 9], [2, 50, 51, EOS], [2, 17]]


def config_of(kind, **changes):
    options = (DECODERS | ENCODERS)[kind]
    return AutoConfig.for_model(
        kind, **options | {"num_labels": 1, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2} | changes
    )


def make(kind, dtype=torch.float32, **changes):
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of(kind, **changes), dtype=dtype).eval()
    head = model.get_submodule(head_names(model)[0])
    torch.nn.init.normal_(head.weight, std=0.5)  # rewards far apart, so that a wrong position shows
    return model


def padded(sequences, side="right", width=None, fill=PAD):
    width = width or max(map(len, sequences))
    ids, mask = torch.full((len(sequences), width), fill), torch.zeros(len(sequences), width, dtype=torch.long)
    for n, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[n, place], mask[n, place] = torch.tensor(sequence), 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def rewards(model, batch):
    return model(**batch).logits


@torch.no_grad()
def one_by_one(model, sequences):
    return torch.cat([rewards(model, padded([sequence])) for sequence in sequences])


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_rewards_a_sequence_the_same_padded_left_padded_right_and_alone(kind):
    model = make(kind)
    bind_reward_forward(model)
    alone = one_by_one(model, SEQUENCES)
    assert alone.shape == (len(SEQUENCES), 1)
    assert alone.std() > 0.05  # else the comparisons below would pass for any position
    # 2e-6: float32 sums of 32 terms in another order, on rewards of order 1.
    for batch in (padded(SEQUENCES), padded(SEQUENCES, "left"), padded(SEQUENCES, "left", width=16, fill=EOS)):
        torch.testing.assert_close(rewards(model, batch), alone, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_reward_is_read_at_the_last_token_even_if_that_is_the_pad_or_eos(kind):
    model = make(kind)
    head = model.score.weight.detach().clone()
    with torch.no_grad():
        last = [model.base_model(torch.tensor([sequence])).last_hidden_state[0, -1] for sequence in SEQUENCES]
    bind_reward_forward(model)
    torch.testing.assert_close(one_by_one(model, SEQUENCES), torch.stack(last) @ head.T, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_rewards_a_sequence_the_same_padded_and_alone(kind):
    model = make(kind)
    with torch.no_grad():  # attention and pooler strong enough for the tokens to show in the reward
        for parameter in model.base_model.parameters():
            parameter.mul_(3.0 if parameter.dim() == 2 else 1.0)
    bind_reward_forward(model)
    # RoBERTa counts positions from the ids that are not the pad, so the pad cannot stand inside a sequence.
    alone = one_by_one(model, PLAIN)
    assert alone.std() > 0.01
    torch.testing.assert_close(rewards(model, padded(PLAIN)), alone, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", DECODERS | ENCODERS)
def test_rewards_equal_those_of_the_stock_forward(kind):
    model = make(kind)
    stock = copy.deepcopy(model)
    bind_reward_forward(model)
    # Right padding with an id that is not EOS, as plain transformers needs it.
    batch = padded(PLAIN)
    torch.testing.assert_close(rewards(model, batch), rewards(stock, batch), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", DECODERS | ENCODERS)
def test_binding_keeps_the_names_and_the_values_of_all_weights(kind):
    model = make(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bind_reward_forward(model)
    bind_reward_forward(model)  # a second time changes nothing
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert sum(isinstance(module, RewardHead) for module in model.modules()) == 1


@pytest.mark.parametrize("kind", DECODERS | ENCODERS)
def test_a_bf16_backbone_has_a_float32_head_that_computes_in_float32(kind):
    model = make(kind, torch.bfloat16)
    bind_reward_forward(model)
    head = model.get_submodule(head_names(model)[0])
    seen = []
    head.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    result = rewards(model, padded(PLAIN))
    assert head.weight.dtype == torch.float32
    assert result.dtype == torch.float32
    features, out = seen[0]
    exact = features.double() @ head.weight.detach().double().T + (0 if head.bias is None else head.bias.double())
    # bf16 keeps 8 bits: a product computed there would be off by about 1e-2.
    torch.testing.assert_close(out.double(), exact.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "gpt_neox", "bert", "modernbert"])
def test_the_head_computes_in_float32_under_bf16_autocast(kind):
    model = make(kind)
    bind_reward_forward(model)
    head = model.get_submodule(head_names(model)[0])
    seen = []
    head.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    with torch.autocast("cpu", torch.bfloat16):
        result = rewards(model, padded(PLAIN))
    assert result.dtype == torch.float32
    features, out = seen[0]
    exact = features.double() @ head.weight.detach().double().T + (0 if head.bias is None else head.bias.double())
    torch.testing.assert_close(out.double(), exact.detach(), atol=1e-5, rtol=1e-5)
    stock = make(kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert rewards(stock, padded(PLAIN)).dtype == torch.bfloat16  # what the binding is for


def test_a_forward_that_a_trainer_has_wrapped_in_autocast_stays_so_when_it_is_bound_once_more():
    model, batch = make("qwen3"), padded(SEQUENCES[:2])
    bind_reward_forward(model)
    alone = rewards(model, batch)
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    under_autocast = rewards(model, batch)
    assert not torch.equal(under_autocast, alone)
    bind_reward_forward(model)
    assert torch.equal(rewards(model, batch), under_autocast)


def test_without_a_mask_every_token_is_real():
    model = make("qwen3")
    bind_reward_forward(model)
    ids = torch.tensor([[2, 7, 5], [2, PAD, EOS]])
    torch.testing.assert_close(
        rewards(model, {"input_ids": ids}), one_by_one(model, ids.tolist()), atol=2e-6, rtol=2e-6
    )


def test_without_a_mask_a_row_that_may_be_padded_is_refused():
    model = make("qwen3")
    bind_reward_forward(model)
    with pytest.raises(ValueError, match="expected an `attention_mask`"):
        model(input_ids=torch.tensor([[2, 7, PAD], [2, 9, EOS]]))


def test_embeddings_may_come_instead_of_ids():
    model = make("llama")
    bind_reward_forward(model)
    batch = padded(SEQUENCES, "left")
    embedded = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"])}
    assert torch.equal(rewards(model, embedded | {"attention_mask": batch["attention_mask"]}), rewards(model, batch))


def test_the_gradient_reaches_only_real_positions():
    model = make("qwen3")
    bind_reward_forward(model)
    batch = padded([[2, 7, 9], [2, 7, 9, 11, 13]], fill=60)
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits.sum().backward()
    moved = embeddings.grad.abs().sum(-1) > 0
    assert torch.equal(moved, batch["attention_mask"].bool())


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_copies_of_a_bound_model_are_independent_and_reward_alike(kind):
    model = make(kind)
    bind_reward_forward(model)
    expected = rewards(model, padded(PLAIN))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        model.get_submodule(head_names(model)[0]).weight.zero_()
    for other in copies:
        assert torch.equal(rewards(other, padded(PLAIN)), expected)


def test_decoders_read_the_last_position_and_encoders_pool():
    assert all(reads_last_position(make(kind)) for kind in DECODERS)
    assert not any(reads_last_position(make(kind)) for kind in ENCODERS)


def test_two_labels_are_refused():
    model = AutoModelForSequenceClassification.from_config(config_of("qwen3", num_labels=2))
    for check in (check_one_label, bind_reward_forward):
        with pytest.raises(ModelError, match="`num_labels=2` or no head, but reward models require `num_labels=1`"):
            check(model)


def test_a_causal_language_model_is_refused_by_its_class():
    model = AutoModelForCausalLM.from_config(config_of("qwen3"))
    with pytest.raises(ModelError, match="Qwen3ForCausalLM has .*AutoModelForSequenceClassification"):
        check_one_label(model)


def test_a_head_keeps_its_bias_its_mode_and_whether_it_trains():
    linear = torch.nn.Linear(4, 1, dtype=torch.bfloat16).eval().requires_grad_(False)
    head = RewardHead.from_linear(linear)
    features = torch.randn(3, 4, dtype=torch.bfloat16)
    exact = features.float() @ linear.weight.float().T + linear.bias.float()
    torch.testing.assert_close(head(features), exact, atol=1e-6, rtol=1e-6)
    assert head(features).dtype == torch.float32
    assert not head.training
    assert not any(parameter.requires_grad for parameter in head.parameters())
