"""Models that may run a forest, the checks of each layer, and the mask of a forest."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForSequenceClassification

from plaudit.errors import ConfigError, ModelError
from plaudit.forest import attention
from plaudit.forest.attention import (
    BACKENDS,
    ForestAttention,
    check_every_layer,
    enable,
    enabled_backend,
    unsupported_reason,
)
from plaudit.forest.trie import TokenForest
from plaudit.models.reward_head import bind_reward_forward

FORESTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=15), min_size=1, max_size=8)
TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4}
UNGROUPED = {name: value for name, value in TINY.items() if name not in ("num_key_value_heads", "intermediate_size")}


def model_of(kind, **options):
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **options)).eval()


def attention_of(forest):
    return ForestAttention(torch.tensor(forest.position_ids), torch.tensor(forest.subtree_end))


def batch_of(sequences):
    forest = TokenForest.from_sequences(sequences)
    row = {"input_ids": forest.input_ids, "position_ids": forest.position_ids, "subtree_end": forest.subtree_end}
    return {name: torch.tensor(values)[None] for name, values in row.items()} | {"leaf": torch.tensor(forest.leaf)}


BATCH = batch_of([[3, 4, 5, 6, 7], [3, 4, 5, 8, 9, 10], [11, 12]])


def brute_force_mask(forest, window):
    """By walking up from each token; a parent is the nearest earlier token one level up."""
    size, depth = len(forest), forest.position_ids
    seen = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        key = query
        while key >= 0 and (window is None or depth[query] - depth[key] < window):
            seen[query, key] = True
            key = max((k for k in range(key) if depth[k] == depth[key] - 1), default=-1) if depth[key] else -1
    return seen


# Masks


@given(FORESTS, st.none() | st.integers(1, 16))
@settings(deadline=None, max_examples=50)
def test_the_mask_is_the_ancestors_within_the_window(sequences, window):
    forest = TokenForest.from_sequences(sequences)
    assert torch.equal(attention_of(forest).mask(window)[0, 0], brute_force_mask(forest, window))


def test_blocks_are_for_the_device_of_the_forest():
    forest = TokenForest.from_sequences([[1, 2], [1, 3]])
    elsewhere = SimpleNamespace(device="elsewhere", cpu=lambda: torch.tensor(forest.position_ids))
    forest_attention = attention_of(forest)
    forest_attention.position_ids = elsewhere
    assert {block.device for block in forest_attention.blocks(2, None)} == {"elsewhere"}


# Enabling


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_the_backend_is_the_one_asked_for(backend, make_model):
    model = make_model()
    assert enabled_backend(model) is None
    enable(model, backend)
    assert enabled_backend(model) == (backend or "auto")
    assert unsupported_reason(model) is None


def test_an_unknown_backend_is_refused(make_model):
    model = make_model()
    with pytest.raises(ConfigError, match="attention backend: expected one of blocks, dense, flex, fused, got 'eager'"):
        enable(model, "eager")
    assert enabled_backend(model) is None


def test_the_original_attention_may_have_colons_in_its_name(make_model):
    # Kernels of the hub are named owner/kernel:function.
    called = []

    def kernel(module, query, key, value, attention_mask, **options):
        called.append(1)
        return query.transpose(1, 2), None

    AttentionInterface.register("owner/kernel:function", kernel)
    model = make_model()
    model.config._attn_implementation = "owner/kernel:function"
    for backend in ("blocks", "dense"):
        enable(model, backend)
    with torch.no_grad():
        model.base_model(torch.tensor([[3, 4, 5]]), attention_mask=torch.ones(1, 3))
    assert len(called) == 2  # layers


REFUSED = {
    "falcon": (UNGROUPED, "does not take its attention from transformers' attention interface"),
    "bloom": (
        {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4, "num_labels": 1, "pad_token_id": 0},
        "does not take its attention from transformers' attention interface",
    ),
    "qwen3_next": (TINY | EXPERTS, "Qwen3Next"),  # depending on which check comes first
    "minimax": (
        TINY | EXPERTS | {"layer_types": ["linear_attention", "full_attention"]},
        "has layers of the kind linear_attention, which cannot share a prefix this way",
    ),
    "t5": ({"vocab_size": 99, "d_model": 32, "num_layers": 1, "num_heads": 4, "num_labels": 1}, "T5ForSeq"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_unsupported_model_is_refused_with_the_reason(kind):
    options, reason = REFUSED[kind]
    model = model_of(kind, **options)
    assert type(model).__name__ in unsupported_reason(model)
    before = model.config._attn_implementation
    with pytest.raises(ModelError, match=f"no token forest: .*{reason}"):
        enable(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of the kind linear_attention"),
        ({"layer_types": ["chunked_attention", "full_attention"]}, "layers of the kind chunked_attention"),
        ({"is_causal": False}, "attends in both directions"),
        ({"use_bidirectional_attention": True}, "attends in both directions"),
        ({"is_encoder_decoder": True}, "is an encoder and a decoder"),
    ],
)
def test_an_unsupported_configuration_is_refused(change, reason, make_model):
    model = make_model()
    for name, value in change.items():
        setattr(model.config, name, value)
    assert reason in unsupported_reason(model)
    with pytest.raises(ModelError, match=reason):
        enable(model)


# The check of the first forest


@pytest.fixture
def claims_support(monkeypatch):
    """Let a class of models claim to support the attention interface."""

    def claim(model):
        monkeypatch.setattr(type(model), "_supports_attention_backend", True)
        monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: True))
        return model

    return claim


def refusal_of(model):
    """Return the message of the first forest's error; the model stays unproven."""
    bind_reward_forward(model)
    enable(model, "blocks")
    with torch.no_grad(), pytest.raises(ModelError) as caught:
        model(**BATCH)
    assert not model.forest_is_proven
    return str(caught.value)


def test_a_model_that_accepts_the_setting_and_never_calls_it_is_refused(claims_support):
    falcon = claims_support(model_of("falcon", **UNGROUPED))
    assert refusal_of(falcon) == (
        "no token forest: 0 of the 2 attention layers of FalconForSequenceClassification called the forest's attention."
    )


def test_a_model_that_takes_no_positions_is_refused(claims_support):
    assert "does not take positions" in unsupported_reason(claims_support(model_of("bloom", **REFUSED["bloom"][0])))


def test_a_model_that_transformers_will_not_set_is_refused(monkeypatch):
    # `set_attn_implementation` only warns, and leaves the attention as it was.
    falcon = model_of("falcon", **UNGROUPED)
    monkeypatch.setattr(type(falcon), "_supports_attention_backend", True)
    assert "does not take its attention from" in unsupported_reason(falcon)


def test_nemotron_which_chooses_its_attention_by_class_is_refused():
    assert "0 of the 2 attention layers" in refusal_of(model_of("nemotron", **TINY))


def test_doge_which_makes_its_own_mask_is_refused():
    assert "DogeAttention makes its own attention mask" in refusal_of(model_of("doge", **TINY))


def test_a_layer_that_does_not_call_the_attention_is_refused(make_model):
    model = make_model()
    attend = model.base_model.layers[1].self_attn
    attend.forward = lambda hidden_states, **_: (hidden_states, None)
    assert "1 of the 2 attention layers" in refusal_of(model)


def test_a_sliding_layer_that_does_not_pass_its_window_on_is_refused():
    # Both models mask a window, and do not pass it to the attention function.
    phi = model_of("phimoe", **TINY | EXPERTS | {"sliding_window": 4})
    assert "layer 0 of PhimoeForSequenceClassification does not pass its sliding window on" in refusal_of(phi)
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    qwen = model_of("qwen2_moe", **TINY | EXPERTS | sliding | {"shared_expert_intermediate_size": 16})
    assert "layer 0 of Qwen2MoeForSequenceClassification does not pass its sliding window on" in refusal_of(qwen)


def test_experts_without_a_window_are_proven():
    for kind, more in {"phimoe": {}, "qwen2_moe": {"shared_expert_intermediate_size": 16}}.items():
        model = model_of(kind, **TINY | EXPERTS | {"sliding_window": None} | more)
        bind_reward_forward(model)
        enable(model)
        with torch.no_grad():
            model(**BATCH)
        assert model.forest_is_proven


def test_every_layer_is_counted_once_however_often_it_calls(make_model):
    model = make_model()
    forest = attention_of(TokenForest.from_sequences([[1, 2]]))
    layers = [layer.self_attn for layer in model.base_model.layers]
    for layer in (layers[0], layers[0]):
        forest.windows[layer] = None
    with pytest.raises(ModelError, match="1 of the 2"):
        check_every_layer(model, forest)
    forest.windows[layers[1]] = None
    check_every_layer(model, forest)


def call(module=None, size=3, mask=None, **options):
    """Call our function as a layer does, with queries for `size` tokens of a forest of three."""
    forest = attention_of(TokenForest.from_sequences([[1, 2], [1, 3]]))
    tensors = [torch.randn(1, 2, size, 4) for _ in range(3)]
    function = AttentionInterface()[f"plaudit:{options.pop('backend', 'blocks')}:sdpa"]
    return function(module or nn.Module().eval(), *tensors, mask, forest=forest, **options)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_that_a_forest_cannot_serve_are_refused(backend, make_model):
    enable(make_model(), backend)
    with pytest.raises(ModelError, match="adds a bias for each pair of positions to its scores"):
        call(position_bias=torch.zeros(1, 2, 3, 3), backend=backend)
    with pytest.raises(ModelError, match="makes its own attention mask"):
        call(mask=torch.zeros(1, 1, 3, 3), backend=backend)
    both_ways = nn.Module()
    both_ways.is_causal = False
    with pytest.raises(ModelError, match="attends in both directions"):
        call(both_ways, backend=backend)
    with pytest.raises(ModelError, match=r"queries of shape \(1, 2, 4, 4\) for 3 tokens"):
        call(size=4, backend=backend)


@pytest.mark.parametrize(
    "options",
    [{"sliding_window": 2}, {"softcap": 1.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}],
    ids=["window", "softcap", "sinks", "dropout"],
)
def test_the_fused_backend_refuses_what_its_kernel_has_not_and_is_not_chosen_for_it(options, make_model):
    enable(make_model(), "fused")
    enable(make_model())
    with pytest.raises(ModelError, match="the backend 'fused' runs on the CPU"):
        call(nn.Module().train(), backend="fused", **options)
    call(nn.Module().train(), backend="auto", **options)


@pytest.mark.parametrize(("dtype", "grad", "chosen"), [
    (torch.float32, True, "fused"), (torch.float32, False, "fused"), (torch.bfloat16, False, "fused"),
    (torch.bfloat16, True, "blocks"), (torch.float64, True, "blocks"),
])  # fmt: skip
def test_fused_attention_is_chosen_where_it_is_faster(dtype, grad, chosen, monkeypatch, make_model):
    enable(make_model())
    called = []
    for name in ("attend_blocks", "attend_fused"):
        function = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *a, f=function, n=name: called.append(n) or f(*a))
    forest = attention_of(TokenForest.from_sequences([[1, 2], [1, 3]]))
    tensors = [torch.randn(1, 2, 3, 4, dtype=dtype, requires_grad=grad) for _ in range(3)]
    AttentionInterface()["plaudit:auto:sdpa"](nn.Module(), *tensors, None, forest=forest)
    assert called == [f"attend_{chosen}"]


def test_scores_are_scaled_as_the_layer_asks_or_by_the_size_of_heads(make_model):
    enable(make_model(), "blocks")
    enable(make_model(), "dense")
    results = []
    for options in ({}, {"scaling": 0.5}, {"scaling": 2.0}):  # heads have four numbers
        for backend in ("blocks", "dense"):
            torch.manual_seed(0)
            results.append(call(backend=backend, **options))
    for number in (1, 2, 3):
        torch.testing.assert_close(results[number], results[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(results[4], results[5], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(results[4], results[0], atol=1e-3)


@pytest.mark.parametrize("backend", ["blocks", "dense"])
def test_a_layer_that_is_not_training_drops_nothing(backend, make_model):
    enable(make_model(), backend)
    results = []
    for module, rate in ((nn.Module().eval(), 0.0), (nn.Module().eval(), 0.9), (nn.Module().train(), 0.9)):
        torch.manual_seed(0)
        rate = rate if backend == "blocks" or module.training else 0.0  # stock functions leave dropout to the layer
        results.append(call(module, backend=backend, dropout=rate))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", ["blocks", "dense", "fused"])
def test_attention_under_autocast_is_in_its_precision(backend, make_model):
    enable(make_model(), backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(backend=backend).dtype == torch.bfloat16
    assert call(backend=backend).dtype == torch.float32


def test_a_model_loaded_with_flash_attention_is_refused_by_name(make_model):
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="attn_implementation='flash_attention_2'"):
        enable(model)


def test_a_forest_is_freed_with_its_last_reference():
    gc.disable()
    try:
        forest = ForestAttention(torch.arange(3), torch.full((3,), 3))
        forest.blocks(1, None)
        forest.mask(None)
        gone = weakref.ref(forest)
        del forest
        assert gone() is None
    finally:
        gc.enable()
