"""bitsandbytes runs its layers on the CPU: what holds there is tested there. What CUDA does is in the `gpu` tests."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    set_seed,
)

from plaudit import ModelConfig, RewardModel, get_quantization_config
from plaudit.errors import ConfigError, ModelError
from plaudit.models.adapters import add_adapter, base_model
from plaudit.models.load import load_model
from plaudit.models.precision import is_quantized_layer
from plaudit.models.quantization import (
    dequantize,
    describe_quantization,
    exclude_head,
    quantization_config_from,
)
from plaudit.models.reward_head import RewardHead, bind_reward_forward, outside_backbone
from plaudit.models.saved_adapter import SavedAdapter

pytest.importorskip("bitsandbytes")

CONFIGS = {
    "nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "fp4 nested": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "nf4 stored in bf16": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage="bfloat16"
    ),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
}
every_kind = pytest.mark.parametrize("kind", CONFIGS)
IDS = torch.arange(3, 43).view(4, 10)
MASK = torch.ones_like(IDS)


@pytest.fixture
def quantized(base_folder):
    """Loads the base model quantised, with an adapter that does something."""

    def loaded(kind, **options):
        set_seed(1)
        model = load_model(str(base_folder), quantization_config=CONFIGS[kind]())
        return add_adapter(model, LoraConfig(init_lora_weights=False, **options))

    return loaded


def layers_of(model):
    return [name for name, module in model.named_modules() if is_quantized_layer(module)]


@torch.no_grad()
def rewards_of(model):
    bind_reward_forward(base_model(model))
    return model.eval()(input_ids=IDS, attention_mask=MASK).logits


def say(folder, description):
    """What `reward.json` says of the quantisation: an adapter's own files say nothing."""
    path = Path(folder, "reward.json")
    told = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(told | {"quantization": description}))


# The head


@every_kind
def test_the_backbone_is_quantised_and_the_head_is_not(quantized, kind):
    model = quantized(kind).get_base_model()
    assert len(layers_of(model)) == 14
    bind_reward_forward(model)
    for head in (model.score.original_module, model.score.modules_to_save["default"]):
        assert isinstance(head, RewardHead)
        assert head.weight.dtype == torch.float32


@pytest.mark.parametrize("skipped", [None, [], ["q_proj"]])
@pytest.mark.parametrize("encoder", ["bert", "deberta-v2", "distilbert", "modernbert", "roberta"])
def test_no_part_of_a_head_is_quantised_whatever_it_is_called(tmp_path, encoder, skipped):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = AutoConfig.for_model(encoder, num_attention_heads=2, pad_token_id=0, **sizes)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    wanted = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    model = load_model(str(tmp_path), quantization_config=wanted)
    assert wanted.llm_int8_skip_modules == skipped  # the caller's is left alone
    assert layers_of(model)
    assert all(name.startswith(f"{model.base_model_prefix}.") for name in layers_of(model))
    new = [name for name in model.new_modules if name not in outside_backbone(model)]
    assert not set(layers_of(model)) & set(new)  # BERT's pooler: it has nothing to quantise yet
    assert all(torch.isfinite(rewards_of(model)))


def test_stock_quantisation_would_have_taken_the_head(tmp_path):
    config = AutoConfig.for_model("roberta", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=1, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    assert {"classifier.dense", "classifier.out_proj"} <= set(layers_of(stock))


def test_modules_that_the_user_spares_stay_spared(base_folder):
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["up_proj"])
    names = layers_of(load_model(str(base_folder), quantization_config=config))
    assert not [name for name in names if name.endswith(("up_proj", "score"))]
    assert len(names) == 12


def test_a_config_that_names_no_modules_is_passed_on(tiny_config):
    other = object()
    assert exclude_head(other, tiny_config()) is other


def test_without_bitsandbytes_the_command_to_get_it_is_named(base_folder, monkeypatch):
    monkeypatch.setattr("plaudit.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'plaudit\[quantization\]'"):
        load_model(str(base_folder), quantization_config=CONFIGS["nf4"]())


# Scoring computes what training computes


@every_kind
def test_a_reward_does_not_depend_on_the_mode_nor_on_the_company(quantized, kind):
    model = quantized(kind)
    expected = rewards_of(model)
    with torch.no_grad():
        assert torch.equal(model.train()(input_ids=IDS, attention_mask=MASK).logits, expected)
        alone = torch.cat([model.eval()(input_ids=row[None], attention_mask=MASK[:1]).logits for row in IDS])
    torch.testing.assert_close(alone, expected, atol=1e-6, rtol=1e-6)


@every_kind
def test_after_an_evaluation_gradients_are_what_they_were(quantized, kind):
    def gradients(model):
        model.train()
        model.zero_grad()
        model(input_ids=IDS, attention_mask=MASK).logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model = quantized(kind)
    bind_reward_forward(base_model(model))
    before = gradients(model)
    rewards_of(model)
    after = gradients(model)
    assert before.keys() == after.keys()
    assert any("layers.0" in name for name in after)  # through every layer, down to the first
    assert all(torch.equal(after[name], before[name]) and before[name].abs().sum() > 0 for name in before)


def test_weights_repacked_for_inference_are_refused(quantized):
    model = quantized("nf4")
    layer = base_model(model).get_submodule(layers_of(base_model(model))[3])
    layer.weight.quant_state.packing_format_for_cpu = True  # as a stock evaluation leaves it
    with pytest.raises(ModelError, match="has repacked these 4-bit weights for inference.*Load the model again"):
        bind_reward_forward(base_model(model))


def test_binding_twice_adds_no_second_hook(quantized, monkeypatch):
    model = base_model(quantized("int8"))
    bind_reward_forward(model)
    monkeypatch.setattr(torch.nn.Module, "register_forward_pre_hook", lambda *_: pytest.fail("a second hook"))
    bind_reward_forward(model)


# What is said of it, and the way back


@every_kind
def test_a_quantisation_is_described_in_json_and_read_again(quantized, base_folder, kind):
    model = quantized(kind)
    described = json.loads(json.dumps(describe_quantization(model)))
    set_seed(1)
    again = load_model(str(base_folder), quantization_config=quantization_config_from(described))
    assert describe_quantization(again) == described
    for name in layers_of(again):
        wrapped = name if name in layers_of(base_model(model)) else f"{name}.base_layer"
        one, other = again.get_submodule(name).weight, base_model(model).get_submodule(wrapped).weight
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name


def test_a_plain_model_has_no_quantisation(make_model):
    assert describe_quantization(make_model()) is None
    assert describe_quantization(get_peft_model(make_model(), LoraConfig(task_type="SEQ_CLS"))) is None


def test_a_description_of_nothing_is_refused():
    with pytest.raises(ModelError, match="the description of the quantisation cannot be read"):
        quantization_config_from({"quant_method": "none such"})


@every_kind
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_on_a_dequantised_base_scores_the_same_and_merges(quantized, kind, dora, tmp_path):
    model = quantized(kind, use_dora=dora)
    expected = rewards_of(model)
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    model.save_pretrained(tmp_path / "adapter")
    base = dequantize(model.unload())
    assert not layers_of(base)
    assert describe_quantization(base) is None
    plain = SavedAdapter.read(str(tmp_path / "adapter")).attach_to(base, is_trainable=True)
    after = dict(plain.named_parameters())
    assert {name for name, value in after.items() if value.requires_grad} == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())  # adapter and head, to the bit
    torch.testing.assert_close(rewards_of(plain), expected, atol=2e-6, rtol=2e-6)
    merged = plain.merge_and_unload()
    assert not [name for name, _ in merged.named_parameters() if "lora_" in name]
    torch.testing.assert_close(rewards_of(merged), expected, atol=2e-6, rtol=2e-6)
    merged.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", num_labels=1).eval()
    with torch.no_grad():
        rewards = torch.cat([stock(input_ids=row[None]).logits for row in IDS])
    torch.testing.assert_close(rewards, expected, atol=2e-6, rtol=2e-6)


def test_a_dequantised_model_scores_the_same(base_folder):
    model = load_model(str(base_folder), quantization_config=CONFIGS["nf4"]())
    expected = rewards_of(model)
    torch.testing.assert_close(rewards_of(dequantize(model)), expected, atol=2e-6, rtol=2e-6)


def test_dequantised_weights_can_train_in_full(base_folder, tokenizer, make_trainer):
    model = load_model(str(base_folder), quantization_config=CONFIGS["nf4"]())
    model = dequantize(model)
    assert not hasattr(model, "is_loaded_in_4bit")  # by which the Trainer and PEFT would still go
    trainer = make_trainer(model=model.requires_grad_(True), processing_class=tokenizer, max_steps=1)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert not any(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_a_plain_model_comes_back_as_it_is(make_model):
    model = make_model()
    assert dequantize(model) is model


# Checkpoints that are quantised already


@every_kind
def test_a_quantised_base_folder_gets_a_head_and_trains(
    base_folder, tmp_path, kind, make_trainer, tokenizer, text_rows
):
    language_model = AutoModelForCausalLM.from_pretrained(
        base_folder, dtype=torch.float32, quantization_config=CONFIGS[kind]()
    )
    language_model.save_pretrained(tmp_path / "quantised")
    tokenizer.save_pretrained(tmp_path / "quantised")
    trainer = make_trainer(model=str(tmp_path / "quantised"), peft_config=LoraConfig(), max_steps=2, learning_rate=1e-2)
    assert len(layers_of(base_model(trainer.model))) == 14
    trainer.train()
    expected = trainer.predict(trainer.train_dataset).predictions[:, 0]
    trainer.save_model()
    say(trainer.args.output_dir, describe_quantization(trainer.model))  # must not be given to a base that has its own
    texts = [row["prompt"] + row["chosen"] for row in text_rows]
    warnings.filterwarnings("error", message="You passed `quantization_config`")
    scores = RewardModel.from_pretrained(trainer.args.output_dir, dtype="float32", device="cpu").score(texts)
    assert scores == pytest.approx(expected, abs=2e-6)


def test_a_checkpoint_whose_head_is_quantised_is_refused(tmp_path):
    config = AutoConfig.for_model("roberta", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "plain")
    AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "plain", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    ).save_pretrained(tmp_path / "quantised")
    with pytest.raises(ModelError, match=r"checkpoint is quantised, and so would be `classifier`.*quantization_config"):
        load_model(str(tmp_path / "quantised"))


# An adapter's folder


@pytest.fixture
def adapter_folder(quantized, tmp_path):
    """Saves a quantised model's adapter, with the rewards that it gave."""

    def saved(kind, described):
        model = quantized(kind)
        expected = rewards_of(model)
        model.save_pretrained(tmp_path / "adapter")
        if described:
            say(tmp_path / "adapter", describe_quantization(model))
        return str(tmp_path / "adapter"), expected

    return saved


@every_kind
def test_an_adapter_comes_back_on_the_base_that_it_was_trained_on(adapter_folder, kind):
    folder, expected = adapter_folder(kind, described=True)
    torch.testing.assert_close(rewards_of(load_model(folder, is_trainable=False)), expected, atol=1e-6, rtol=1e-6)
    Path(folder, "reward.json").unlink()
    plain = load_model(folder, is_trainable=False)
    assert not layers_of(plain)
    assert (rewards_of(plain) - expected).abs().max() > 1e-4  # so it matters


def test_the_callers_config_wins_over_what_is_said(adapter_folder):
    folder, expected = adapter_folder("nf4", described=True)
    model = load_model(folder, quantization_config=CONFIGS["int8"]())
    assert describe_quantization(model)["load_in_8bit"]
    unsaid, _ = adapter_folder("nf4", described=False)
    again = load_model(unsaid, quantization_config=CONFIGS["nf4"](), is_trainable=False)
    torch.testing.assert_close(rewards_of(again), expected, atol=1e-6, rtol=1e-6)


# The options of a script


def test_without_options_nothing_is_quantised():
    assert get_quantization_config(ModelConfig()) is None


def test_the_options_of_a_script_become_a_config():
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    config = get_quantization_config(
        ModelConfig(
            load_in_4bit=True, dtype="bfloat16", bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True,
            bnb_4bit_quant_storage="bfloat16",
        )
    )  # fmt: skip
    assert config.load_in_4bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("fp4", True)
    assert config.bnb_4bit_compute_dtype == config.bnb_4bit_quant_storage == torch.bfloat16
    assert get_quantization_config(ModelConfig(load_in_4bit=True, dtype="auto")).bnb_4bit_compute_dtype == torch.float32
