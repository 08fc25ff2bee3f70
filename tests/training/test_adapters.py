"""Adapters from training to a reload, in the ways that their configurations allow."""

import logging

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig, set_seed

from plaudit import RewardModel
from plaudit.errors import ConfigError, ModelError
from plaudit.models.load import load_model

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 256, "pad_token_id": None,
    "tie_word_embeddings": False,
}  # fmt: skip
MIXTURES = {
    "mixtral": lambda: MixtralConfig(num_local_experts=4, **SIZES),
    "qwen3_moe": lambda: Qwen3MoeConfig(num_experts=4, moe_intermediate_size=16, head_dim=8, **SIZES),
}
CONFIGS = {
    "plain": (LoraConfig, {}, ["self_attn.q_proj", "self_attn.v_proj"]),
    "head named": (LoraConfig, {"modules_to_save": ["score"]}, ["self_attn.q_proj", "self_attn.v_proj"]),
    "all-linear": (LoraConfig, {"target_modules": "all-linear"},
                   ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{n}_proj" for n in "koqv")]),
    "dora": (LoraConfig, {"use_dora": True}, ["self_attn.q_proj", "self_attn.v_proj"]),
    "rslora": (LoraConfig, {"use_rslora": True}, ["self_attn.q_proj", "self_attn.v_proj"]),
    "prefix": (PrefixTuningConfig, {"num_virtual_tokens": 2}, []),
    "prompt": (PromptTuningConfig, {"num_virtual_tokens": 2}, []),
}  # fmt: skip
OF_EXPERTS = {
    "plain": ({}, ["self_attn.q_proj", "self_attn.v_proj"]),
    "all-linear": ({"target_modules": "all-linear"}, ["mlp.experts", *(f"self_attn.{n}_proj" for n in "koqv")]),
    "parameters": ({"target_modules": ["q_proj"], "target_parameters": EXPERTS}, ["mlp.experts", "self_attn.q_proj"]),
}


@pytest.fixture
def folder_of(tmp_path, tokenizer):
    """Saves a language model of a configuration, as the hub would give it."""

    def saved(config, dtype=torch.float32):
        set_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return saved


def adapted(trainer):
    names = [name for name, _ in trainer.model.named_parameters() if "lora_A" in name and "layers.0." in name]
    return sorted({name.split("layers.0.")[1].split(".lora_A")[0].replace(".base_layer", "") for name in names})


def rewards_differ_by(trainer, rows, expected):
    """How far the rewards of the saved folder are from those expected, in Plaudit and in plain PEFT."""
    folder, texts = trainer.args.output_dir, [row["prompt"] + row["chosen"] for row in rows]
    ours = RewardModel.from_pretrained(folder, dtype="float32", device="cpu")
    plain = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, pad_token_id=trainer.processing_class.pad_token_id
    ).eval()
    with torch.no_grad():  # one by one: from a padded batch the stock forward reads prompt tuning at a pad
        stock = [
            plain(**trainer.processing_class(text + trainer.processing_class.eos_token, return_tensors="pt")).logits[0]
            for text in texts
        ]
    stock = torch.cat(stock).numpy()
    return max(abs(rewards - expected).max() for rewards in (ours.score(texts), stock))


@pytest.mark.parametrize("case", CONFIGS)
def test_what_an_adapter_learns_is_there_after_a_reload(make_trainer, base_folder, text_rows, case):
    kind, options, targets = CONFIGS[case]
    trainer = make_trainer(model=str(base_folder), peft_config=kind(**options), max_steps=3, learning_rate=3e-2)
    before = trainer.predict(trainer.train_dataset).predictions
    trainer.train()
    after = trainer.predict(trainer.train_dataset).predictions
    assert abs(after - before).max() > 0.1
    assert adapted(trainer) == targets
    assert trainer.layout == ("forest" if targets else "padded")
    trainer.save_model()
    assert rewards_differ_by(trainer, text_rows, after[:, 0]) < 2e-6


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("case", OF_EXPERTS)
def test_experts_are_adapted_saved_and_merged(make_trainer, folder_of, text_rows, mixture, case):
    options, targets = OF_EXPERTS[case]
    trainer = make_trainer(
        model=folder_of(MIXTURES[mixture]()),
        peft_config=LoraConfig(lora_dropout=0.05, **options),
        max_steps=3,
        learning_rate=3e-2,
    )
    before = trainer.predict(trainer.train_dataset).predictions
    trainer.train()
    after = trainer.predict(trainer.train_dataset).predictions
    assert abs(after - before).max() > 0.1
    assert [name for name in adapted(trainer) if name != "mlp.gate"] == targets
    trainer.save_model()
    assert rewards_differ_by(trainer, text_rows, after[:, 0]) < 2e-6
    merged = load_model(trainer.args.output_dir, is_trainable=False).merge_and_unload()
    texts = [row["prompt"] + row["chosen"] for row in text_rows]
    assert RewardModel(merged, trainer.processing_class).score(texts) == pytest.approx(after[:, 0], abs=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_trains_in_float32_and_is_saved_so(make_trainer, base_folder, dtype):
    trainer = make_trainer(
        model=str(base_folder), peft_config=LoraConfig(), max_steps=1, model_init_kwargs={"dtype": dtype}
    )
    head = trainer.model.get_base_model().score.modules_to_save["default"].weight
    before = head.detach().clone()
    trainer.train()
    assert trainer.model.get_base_model().model.norm.weight.dtype == getattr(torch, dtype)
    assert head.dtype == torch.float32
    assert not torch.equal(head, before)
    trainer.save_model()
    saved = load_file(f"{trainer.args.output_dir}/adapter_model.safetensors")
    assert torch.equal(saved["base_model.model.score.weight"], head)
    assert {value.dtype for value in saved.values()} == {torch.float32}  # the adapter's own weights too


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_that_were_saved_cannot_train_on(make_trainer, base_folder, kind):
    trainer = make_trainer(model=str(base_folder), peft_config=kind(num_virtual_tokens=2), max_steps=1)
    trainer.save_model()
    with pytest.raises(ModelError, match="prefix and prompt tuning cannot train on"):
        make_trainer(model=trainer.args.output_dir)


@pytest.mark.parametrize(("rate", "said"), [({}, 1), ({"learning_rate": 1e-3}, 0)])
def test_the_learning_rate_of_full_training_is_remarked_on_once(make_trainer, caplog, rate, said):
    with caplog.at_level(logging.INFO, "plaudit"):
        make_trainer(peft_config=LoraConfig(), max_steps=1, **rate).train()
        make_trainer(max_steps=1)  # all weights: nothing to remark on
    hint = "learning_rate=0.0001 is the default for training all weights; an adapter usually wants about 1e-3"
    assert [record.getMessage() for record in caplog.records].count(hint) == said


def test_a_second_adapter_is_refused(make_trainer, base_folder):
    trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig(), max_steps=1)
    trainer.save_model()
    with pytest.raises(ConfigError, match="the model already has an adapter"):
        make_trainer(model=trainer.args.output_dir, peft_config=LoraConfig())
