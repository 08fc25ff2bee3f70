"""Which models may run a forest, what each layer is checked for, and the masks of the backends."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoConfig, AutoModelForSequenceClassification

from plaudit.errors import ConfigError, ModelError
from plaudit.forest import attention, flex
from plaudit.forest.attention import (
    BACKENDS,
    ForestAttention,
    check_every_layer,
    enable,
    enabled_backend,
    unsupported_reason,
)
from plaudit.forest.blocks import ScoreRules
from plaudit.forest.trie import TokenForest, chains_of
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


def seen_by_blocks(mask, size, step):
    """What FlexAttention makes of a block mask: all of the full blocks, and of the others what `mask_mod` lets by."""
    seen = torch.zeros(size, size, dtype=torch.bool)
    places = torch.arange(size)
    allowed = mask.mask_mod(None, None, places[:, None], places[None, :])
    for full, numbers, indices in (
        (False, mask.kv_num_blocks, mask.kv_indices),
        (True, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for query in range(numbers.shape[-1]):
            for key in indices[0, 0, query, : numbers[0, 0, query]].tolist():
                block = slice(query * step, (query + 1) * step), slice(key * step, (key + 1) * step)
                assert not seen[block].any()
                assert not full or allowed[block].shape == (step, step)  # the last block is filled up, and never full
                seen[block] = True if full else allowed[block]
    return seen


@given(FORESTS, st.none() | st.integers(1, 16), st.sampled_from([2, 4, 8]))
@settings(deadline=None, max_examples=60)
def test_the_block_mask_lets_by_what_the_mask_does(sequences, window, step):
    forest = TokenForest.from_sequences(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK_SIZE", step)
        mask = attention_of(forest).block_mask(window)
    assert torch.equal(seen_by_blocks(mask, len(forest), step), brute_force_mask(forest, window))


@pytest.mark.parametrize("size", [1, 127, 128, 200, 256, 257, 384])
def test_a_forest_is_filled_up_to_blocks_with_roots_that_see_themselves_alone(size):
    forest = TokenForest.from_sequences([list(range(size)), [*range(size // 2), 999]])
    rows = torch.tensor(forest.input_ids), torch.tensor(forest.position_ids), torch.tensor(forest.subtree_end)
    filled = [row[0] for row in flex.fill_blocks(*(row[None] for row in rows))]
    given, total = len(forest), len(filled[0])
    assert total % 128 == 0
    assert 256 <= total < max(257, given + 128)
    assert all(torch.equal(row[:given], before) for row, before in zip(filled, rows, strict=True))
    expected = torch.eye(total, dtype=torch.bool)
    expected[:given, :given] = brute_force_mask(forest, None)
    assert torch.equal(attention.ForestAttention(*filled[1:]).mask(None)[0, 0], expected)
    chains = chains_of(*(row.numpy() for row in filled[1:]))  # where the blocks backend finds the tree
    assert [chain.start for chain in chains if chain.start >= given] == list(range(given, total))
    assert {chain.parent for chain in chains if chain.start >= given} <= {-1}


def test_flex_refuses_dropout_rather_than_leave_it_out():
    heads = torch.zeros(1, 2, 4, 16)
    with pytest.raises(ValueError, match="no dropout"):
        flex.attend_flex(heads, heads, heads, None, ScoreRules(1.0, dropout=0.1))


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("window", [None, 700])
def test_a_block_mask_skips_what_it_can_and_never_holds_the_whole_mask(window):
    prompt, rest = list(range(3000)), [[10**6 * n + k for k in range(1000)] for n in range(1, 5)]
    forest = TokenForest.from_sequences([prompt + each for each in rest])
    forest_attention, size = attention_of(forest), len(forest)
    with Largest() as largest:
        mask = forest_attention.block_mask(window)
    assert largest.numbers <= 2 * size
    exact = forest_attention.mask(window)[0, 0]
    exact = nn.functional.pad(exact, (0, -size % 128, 0, -size % 128)).view(-(-size // 128), 128, -1, 128)
    blocks = exact.any(3).any(1), exact.all(3).all(1)
    partial, full = mask.kv_num_blocks.sum(), mask.full_kv_num_blocks.sum()
    assert full == blocks[1].sum()
    # At the edges of a window it may compute a block too many for each block of queries.
    assert blocks[0].sum() <= partial + full <= blocks[0].sum() + (0 if window is None else len(exact))


def test_blocks_are_cut_for_the_device_of_the_forest():
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
    with pytest.raises(ConfigError, match="attention backend: expected one of blocks, dense, flex, got 'flash'"):
        enable(model, "flash")
    assert enabled_backend(model) is None


def test_the_attention_before_may_have_colons_in_its_name(make_model):
    # As kernels of the hub do: owner/kernel:function.
    called = []

    def kernel(module, query, key, value, attention_mask, **options):
        called.append(1)
        return query.transpose(1, 2), None

    AttentionInterface.register("owner/kernel:function", kernel)
    model = make_model()
    model.config._attn_implementation_internal = "owner/kernel:function"
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
    "qwen3_next": (TINY | EXPERTS, "Qwen3Next"),  # for the one reason or the other
    "minimax": (
        TINY | EXPERTS | {"layer_types": ["linear_attention", "full_attention"]},
        "has layers of the kind linear_attention, which cannot share a prefix this way",
    ),
    "t5": ({"vocab_size": 99, "d_model": 32, "num_layers": 1, "num_heads": 4, "num_labels": 1}, "T5ForSeq"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_is_refused_with_the_reason(kind):
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
def test_a_configuration_that_speaks_against_it_is_refused(change, reason, make_model):
    model = make_model()
    for name, value in change.items():
        setattr(model.config, name, value)
    assert reason in unsupported_reason(model)
    with pytest.raises(ModelError, match=reason):
        enable(model)


# Proof on first use


@pytest.fixture
def claims_support(monkeypatch):
    """Makes a class of models say that it supports what it does not."""

    def claim(model):
        monkeypatch.setattr(type(model), "_supports_attention_backend", True)
        monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: True))
        return model

    return claim


def refusal_of(model):
    """What the first forest raises; it leaves nothing proven."""
    bind_reward_forward(model)
    enable(model, "blocks")
    with torch.no_grad(), pytest.raises(ModelError) as caught:
        model(**BATCH)
    assert not model.forest_is_proven
    return str(caught.value)


def test_a_model_that_accepts_the_setting_and_never_calls_it_is_found_out(claims_support):
    falcon = claims_support(model_of("falcon", **UNGROUPED))
    assert refusal_of(falcon) == (
        "no token forest: 0 of the 2 attention layers of FalconForSequenceClassification called it."
    )


def test_a_model_that_tells_positions_by_itself_is_refused(claims_support):
    assert "does not take positions" in unsupported_reason(claims_support(model_of("bloom", **REFUSED["bloom"][0])))


def test_a_model_that_transformers_will_not_set_is_refused(monkeypatch):
    # `set_attn_implementation` only warns, and leaves the attention as it was.
    falcon = model_of("falcon", **UNGROUPED)
    monkeypatch.setattr(type(falcon), "_supports_attention_backend", True)
    assert "does not take its attention from" in unsupported_reason(falcon)


def test_nemotron_which_picks_its_attention_by_class_is_found_out():
    assert "0 of the 2 attention layers" in refusal_of(model_of("nemotron", **TINY))


def test_doge_which_makes_its_own_mask_is_found_out():
    assert "DogeAttention makes an attention mask of its own" in refusal_of(model_of("doge", **TINY))


def test_one_layer_that_does_not_call_is_found_out(make_model):
    model = make_model()
    attend = model.base_model.layers[1].self_attn
    attend.forward = lambda hidden_states, **_: (hidden_states, None)
    assert "1 of the 2 attention layers" in refusal_of(model)


def test_a_sliding_layer_that_does_not_say_its_window_is_found_out():
    # Both mask a window, and do not tell the attention function of it.
    phi = model_of("phimoe", **TINY | EXPERTS | {"sliding_window": 4})
    assert "layer 0 of PhimoeForSequenceClassification does not say its sliding window" in refusal_of(phi)
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    qwen = model_of("qwen2_moe", **TINY | EXPERTS | sliding | {"shared_expert_intermediate_size": 16})
    assert "layer 0 of Qwen2MoeForSequenceClassification does not say its sliding window" in refusal_of(qwen)


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
    """Our function as a layer calls it, with queries for `size` tokens of a forest of three."""
    forest = attention_of(TokenForest.from_sequences([[1, 2], [1, 3]]))
    tensors = [torch.randn(1, 2, size, 4) for _ in range(3)]
    function = AttentionInterface()[f"plaudit:{options.pop('backend', 'blocks')}:sdpa"]
    return function(module or nn.Module().eval(), *tensors, mask, forest=forest, **options)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_forest_cannot_express_is_refused(backend, make_model):
    enable(make_model(), backend)
    with pytest.raises(ModelError, match="adds a bias for each two positions to its scores"):
        call(position_bias=torch.zeros(1, 2, 3, 3), backend=backend)
    with pytest.raises(ModelError, match="makes an attention mask of its own"):
        call(mask=torch.zeros(1, 1, 3, 3), backend=backend)
    both_ways = nn.Module()
    both_ways.is_causal = False
    with pytest.raises(ModelError, match="attends in both directions"):
        call(both_ways, backend=backend)
    with pytest.raises(ModelError, match=r"queries of shape \(1, 2, 4, 4\) for 3 tokens"):
        call(size=4, backend=backend)


def test_the_scale_of_the_scores_is_the_layers_or_else_that_of_the_heads_size(make_model):
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
        rate = rate if backend == "blocks" or module.training else 0.0  # stock functions leave that to the layer
        results.append(call(module, backend=backend, dropout=rate))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", ["blocks", "dense"])
def test_attention_under_autocast_is_in_its_precision(backend, make_model):
    enable(make_model(), backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(backend=backend).dtype == torch.bfloat16
    assert call(backend=backend).dtype == torch.float32


def test_a_model_loaded_with_flash_attention_is_refused_by_name(make_model):
    model = make_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ModelError, match="attn_implementation='flash_attention_2'"):
        enable(model)


def test_a_forest_is_gone_when_nobody_holds_it():
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
