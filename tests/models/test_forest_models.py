"""Whole models over a forest against plain transformers: one unpadded sequence at a time, by the stock forward."""

import copy
import pickle
import shutil

import pytest
import torch
from architectures import (
    MODELS,
    ROWS,
    SEQUENCES,
    alone,
    assert_gradients_close,
    forest_batch,
    forest_gradients,
    forest_model,
    gradients_error,
    gradients_of,
    long_sequences,
    make,
    padded_batch,
    relative,
    rewards,
)
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, set_seed

from plaudit.errors import ModelError
from plaudit.forest.attention import enable, enabled_backend
from plaudit.forest.filling import fill_forest, filled_size
from plaudit.models.adapters import add_adapter
from plaudit.models.reward_head import bind_reward_forward


@pytest.fixture(scope="module", params=MODELS)
def reference(request):
    """A kind of model, with the rewards and gradients of the untouched one."""
    stock = make(request.param)
    return request.param, *gradients_of(stock, lambda: alone(stock))


@pytest.mark.parametrize("backend", [None, "blocks", "dense"])
def test_rewards_and_gradients_are_those_of_each_sequence_alone(reference, backend):
    kind, expected, gradients = reference
    assert expected.std() > 0.3  # else any attention would do
    model = forest_model(kind, backend)
    given, own = forest_gradients(model)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    assert_gradients_close(own, gradients)


@pytest.mark.parametrize("kind", ["llama", "mistral with a window"])
def test_the_dense_backend_hands_its_mask_to_eager_attention_too(kind):
    stock = make(kind)
    expected, gradients = gradients_of(stock, lambda: alone(stock))
    model = make(kind)
    model.set_attn_implementation("eager")
    bind_reward_forward(model)
    enable(model, "dense")
    given, own = forest_gradients(model)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    assert_gradients_close(own, gradients)


compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention compiles, and there is no g++")


@pytest.mark.parametrize("kind", ["qwen3", "mistral with a window", "gemma2 with softcap and window", "gpt_neox"])
def test_flex_and_dense_reward_alike(kind):
    # Uncompiled, without gradients and sinks, which FlexAttention has on a GPU only; over several blocks of 128 tokens.
    sizes = {"max_position_embeddings": 1024} | ({"sliding_window": 100} if "window" in kind else {})
    batch = forest_batch(*long_sequences())
    with torch.compiler.set_stance("force_eager"):
        flex = rewards(forest_model(kind, "flex", **sizes), batch)
    torch.testing.assert_close(flex, rewards(forest_model(kind, "dense", **sizes), batch), atol=1e-5, rtol=1e-5)


@compiles
@pytest.mark.slow
def test_filled_forests_of_all_sizes_share_their_kernels():
    # The first forest has a kernel of its own; at the second it is seen that sizes change.
    sizes = {"num_hidden_layers": 1, "sliding_window": 100, "max_position_embeddings": 1024}
    flex, dense = (forest_model("gemma2 with softcap and window", each, **sizes) for each in ("flex", "dense"))
    sequences, rows = long_sequences()

    def score(count, length=None):
        batch = forest_batch([sequence[:length] for sequence in sequences[:count]], rows[:count])
        names = ("input_ids", "position_ids", "subtree_end")
        size = filled_size(batch["input_ids"].shape[1], torch.device("cuda"), torch.float32)
        filled = batch | dict(zip(names, fill_forest(*(batch[name] for name in names), size), strict=True))
        torch.testing.assert_close(rewards(flex, filled), rewards(dense, batch), atol=1e-5, rtol=1e-5)

    score(4)
    score(1)
    with torch.compiler.set_stance("fail_on_recompile"):
        for count, length in ((2, None), (3, None), (4, 30), (1, 5), (1, 128), (3, 250)):
            score(count, length)


# Both layouts through one model


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "kind", ["qwen3", "mistral with a window", "gemma2 with softcap and window", "gpt_oss with sinks and window", "opt"]
)
def test_an_enabled_model_runs_padded_batches_bit_for_bit_as_before(kind, side):
    before, model = make(kind), forest_model(kind)
    bind_reward_forward(before)
    batch = padded_batch(side=side)
    assert torch.equal(rewards(model, batch), rewards(before, batch))


@pytest.mark.parametrize(
    "kind", ["qwen3", "mistral with a window", "gemma2 with softcap and window", "gpt_oss with sinks and window"]
)
def test_the_backbone_of_an_enabled_model_stays_causal_and_windowed_without_a_mask(kind):
    # The mask interface is asked for a mask, and gets the stock one: eager attention and windows need it.
    ids = torch.tensor([SEQUENCES[4]])
    with torch.no_grad():
        expected = make(kind).base_model(ids).last_hidden_state
        assert torch.equal(forest_model(kind).base_model(ids).last_hidden_state, expected)


def test_a_batch_may_come_in_either_layout_at_any_time():
    model = forest_model("qwen3")
    expected = alone(make("qwen3"))
    for batch in (padded_batch(), forest_batch(), padded_batch(side="left"), forest_batch()):
        torch.testing.assert_close(rewards(model, batch), expected, atol=1e-5, rtol=1e-5)


def test_a_forest_needs_an_enabled_model():
    model = make("qwen3")
    bind_reward_forward(model)
    with pytest.raises(ModelError, match=r"a batch is a token forest, but .*enable` was not called"):
        rewards(model)


def test_what_is_saved_does_not_tell_of_the_forest(tmp_path):
    model = forest_model("qwen3")
    model.save_pretrained(tmp_path)
    assert "plaudit" not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == make("qwen3").config._attn_implementation
    torch.testing.assert_close(alone(loaded), rewards(model), atol=1e-5, rtol=1e-5)


def test_enabling_again_changes_the_backend_and_keeps_the_attention_for_padded_batches():
    model = forest_model("gemma2 with softcap and window")
    expected, batch = rewards(model), padded_batch()
    padded = rewards(model, batch)
    for backend in ("blocks", "blocks", "dense", None):
        enable(model, backend)
        assert enabled_backend(model) == (backend or "auto")
        torch.testing.assert_close(rewards(model), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(rewards(model, batch), padded)


def test_copies_of_an_enabled_model_are_independent_and_reward_alike():
    model = forest_model("qwen3")
    expected = rewards(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        model.score.weight.zero_()
    for other in copies:
        assert torch.equal(rewards(other), expected)


def test_a_reward_does_not_depend_on_what_else_is_in_the_forest():
    model = forest_model("mistral with a window")
    together = rewards(model)
    apart = torch.cat([rewards(model, forest_batch([sequence], [0])) for sequence in SEQUENCES])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    turned = rewards(model, forest_batch(SEQUENCES[::-1], ROWS[::-1])).flip(0)
    torch.testing.assert_close(together, turned, atol=1e-5, rtol=1e-5)


# Checkpointing, precision, adapters, compilation


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["qwen3", "gpt_oss with sinks and window", "gpt2"])
def test_gradients_under_checkpointing_are_the_same_to_the_last_bit(kind, reentrant):
    model = forest_model(kind, **{"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if kind == "gpt2" else {}).train()
    expected, gradients = forest_gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layer = model.base_model.h[0].attn if kind == "gpt2" else model.base_model.layers[0].self_attn
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    given, own = forest_gradients(model)
    assert len(calls) == 2  # forward, and again in the backward pass
    assert torch.equal(given, expected)
    assert own.keys() == gradients.keys()
    assert all(torch.equal(own[name], gradients[name]) for name in gradients)


NARROW = ["qwen3", "mistral with a window", "gemma2 with softcap and window", "gpt_neox", "gpt2"]


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("how", ["bf16 autocast", "bf16 weights", "float16 weights"])
def test_in_narrow_precision_a_forest_is_as_exact_as_a_padded_batch(kind, how):
    stock = make(kind)
    expected, gradients = gradients_of(stock, lambda: alone(stock))
    kinds = {"bf16 autocast": torch.float32, "bf16 weights": torch.bfloat16, "float16 weights": torch.float16}
    model = forest_model(kind, "blocks", kinds[how])  # without experts and ReLU, which a rounding may flip
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "bf16 autocast"):
        padded, padded_gradients = forest_gradients(model, padded_batch())
        forest, forest_own = forest_gradients(model)
    assert forest.dtype == torch.float32
    # bf16 rounds by up to 0.004, float16 by 0.0005: eight roundings in a reward, twelve in a gradient.
    rounding = torch.finfo(torch.float16 if how.startswith("float16") else torch.bfloat16).eps / 2
    assert relative(forest, expected) < min(8 * rounding, 2 * relative(padded, expected))
    assert gradients_error(forest_own, gradients) < min(12 * rounding, 2 * gradients_error(padded_gradients, gradients))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_gets_the_rewards_and_gradients_of_the_padded_layout(checkpointing):
    model = make("qwen3 with a window")
    bind_reward_forward(model)
    wrapped = add_adapter(model, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))
    enable(wrapped.get_base_model(), "blocks")
    if checkpointing:
        wrapped.train()
        wrapped.enable_input_require_grads()
        wrapped.activation_checkpointing_enable({"use_reentrant": True})
    padded, expected = forest_gradients(wrapped, padded_batch())
    forest, gradients = forest_gradients(wrapped)
    torch.testing.assert_close(forest, padded, atol=1e-5, rtol=1e-5)
    assert any("lora_A" in name for name in gradients)
    assert any("score" in name for name in gradients)
    assert_gradients_close(gradients, expected)


@pytest.mark.parametrize("kind", ["mistral with a window", "qwen3"])
def test_a_compiled_model_rewards_and_learns_alike_and_is_not_compiled_for_every_forest(kind):
    # Traced and differentiated as by every backend; what a backend makes of the graph is torch's own.
    model = forest_model(kind, num_hidden_layers=1)
    expected = rewards(model)
    compiled = torch.compile(model, backend="aot_eager")

    def check(count):
        batch = forest_batch(SEQUENCES[:count], ROWS[:count])
        given, own = gradients_of(model, lambda: compiled(**batch).logits.squeeze(-1))
        torch.testing.assert_close(given, expected[:count], atol=1e-5, rtol=1e-5)
        _, gradients = forest_gradients(model, batch)
        assert_gradients_close(own, gradients)
        torch.testing.assert_close(rewards(compiled, batch), expected[:count], atol=1e-5, rtol=1e-5)

    check(len(SEQUENCES))
    check(6)  # where it sees that sizes change
    with torch.compiler.set_stance("fail_on_recompile"):
        check(9)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_in_bf16_on_a_cpu_the_layers_run_forests_of_few_sizes(weights):
    model, sizes = forest_model("llama", dtype=weights), []
    model.base_model.layers[0].register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    batches = [forest_batch(SEQUENCES[:count], ROWS[:count]) for count in range(1, len(SEQUENCES))]
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        for batch in batches:
            rewards(model, batch)
    assert sizes == [16 * -(-batch["input_ids"].shape[1] // 16) for batch in batches]


def test_a_compiled_model_of_many_layers_does_not_compile_each_of_them_anew():
    model = forest_model("qwen3", num_hidden_layers=torch._dynamo.config.recompile_limit + 2)
    rewards(model)  # after which the layers are known to call
    compiled = torch.compile(model, backend="aot_eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), torch.autocast("cpu", torch.bfloat16):
        for count in range(len(SEQUENCES), 1, -1):
            compiled(**forest_batch(SEQUENCES[:count], ROWS[:count])).logits.sum().backward()


# Dropout


def test_a_shared_prefix_shares_its_dropout():
    model = forest_model("qwen3", attention_dropout=0.3).train()
    twice = [SEQUENCES[0], SEQUENCES[4], SEQUENCES[0]]
    set_seed(1)
    first = rewards(model, forest_batch(twice, [0, 1, 0]))
    assert first[0] == first[2]  # one and the same token
    padded = rewards(model, padded_batch(twice))
    assert padded[0] != padded[2]
    # Siblings with the same first token still drop the same in what they share, and no longer below.
    assert first[0] != rewards(model, forest_batch(twice, [0, 1, 0]))[0]
    set_seed(1)
    assert torch.equal(rewards(model, forest_batch(twice, [0, 1, 0])), first)
    model.eval()
    assert torch.equal(rewards(model), rewards(model))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_drops_the_same_weights_again(reentrant):
    model = forest_model("qwen3", "blocks", attention_dropout=0.3).train()
    set_seed(1)
    expected, gradients = forest_gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    set_seed(1)
    given, own = forest_gradients(model)
    assert torch.equal(given, expected)
    assert all(torch.equal(own[name], gradients[name]) for name in gradients)
