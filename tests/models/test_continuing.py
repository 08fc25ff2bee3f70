"""A reward model trains on from where it was, however it is handed over."""

import json
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from plaudit.errors import ModelError
from plaudit.models.adapters import add_adapter, base_model
from plaudit.models.load import load_model
from plaudit.models.reward_head import bind_reward_forward

IDS = torch.arange(3, 43).view(4, 10)
MASK = torch.ones_like(IDS)


@torch.no_grad()
def rewards_of(model):
    bind_reward_forward(base_model(model))
    return model.eval()(input_ids=IDS, attention_mask=MASK).logits


def weights_of(model):
    return {name: value for name, value in model.named_parameters() if "lora_" in name or "score" in name}


@pytest.fixture
def adapter(base_folder, tokenizer, tmp_path):
    """A reward adapter's folder as Plaudit saves it, and its rewards. The head is large, so that it matters."""
    model = add_adapter(load_model(str(base_folder)), LoraConfig(init_lora_weights=False))
    torch.nn.init.normal_(base_model(model).score.modules_to_save["default"].weight)
    return saved(model, tokenizer, tmp_path / "adapter")


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, rewards_of(model)


def as_trl_saves_it(base_folder, tokenizer, folder, **options):
    """TRL 1.16 adds no task type and no head: it hands the configuration to PEFT as it is."""
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **options))
    torch.nn.init.normal_(base_model(model).score.weight)
    return saved(model, tokenizer, folder)


def rewrite(folder, **changes):
    path = Path(folder, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def everything_trains(model):
    return all(value.requires_grad for name, value in weights_of(model).items() if "original_module" not in name)


# A path


def test_a_path_resumes_the_adapter_and_its_head(adapter):
    folder, expected = adapter
    model = load_model(str(folder))
    assert torch.equal(rewards_of(model), expected)
    assert everything_trains(model)


@pytest.mark.parametrize("options", [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["score"]}])
def test_the_path_of_an_adapter_that_trl_saved_will_do(base_folder, tokenizer, tmp_path, options):
    folder, expected = as_trl_saves_it(base_folder, tokenizer, tmp_path / "trl", **options)
    model = load_model(str(folder))
    assert torch.equal(rewards_of(model), expected)
    assert everything_trains(model)


def test_an_adapter_with_a_head_may_name_another_task(adapter):
    folder, expected = adapter
    rewrite(folder, task_type="CAUSAL_LM")  # as TRL's default was while PEFT still took it
    model = load_model(str(folder))
    assert torch.equal(rewards_of(model), expected)
    assert everything_trains(model)


def test_the_path_of_an_adapter_that_was_saved_without_its_head_is_refused(base_folder, tokenizer, tmp_path):
    folder, _ = as_trl_saves_it(base_folder, tokenizer, tmp_path / "trl")
    with pytest.raises(ModelError, match=r"trl: this adapter has no reward head .*its base must have one"):
        load_model(str(folder))


def test_without_its_own_head_an_adapter_scores_with_that_of_its_base(make_model, tokenizer, tmp_path):
    saved(make_model(seed=3), tokenizer, tmp_path / "base")
    folder, expected = as_trl_saves_it_on_a_reward_model(tmp_path / "base", tokenizer, tmp_path / "adapter")
    assert torch.equal(rewards_of(load_model(str(folder), is_trainable=False, new_head=False)), expected)


def as_trl_saves_it_on_a_reward_model(base, tokenizer, folder):
    model = AutoModelForSequenceClassification.from_pretrained(base)
    return saved(get_peft_model(model, LoraConfig(init_lora_weights=False)), tokenizer, folder)


def test_saving_again_and_again_does_not_lengthen_the_configuration(adapter, tokenizer, tmp_path):
    folder, expected = adapter
    before = json.loads((folder / "adapter_config.json").read_text())["modules_to_save"]
    for round_ in range(2):
        folder, rewards = saved(load_model(str(folder)), tokenizer, tmp_path / f"round{round_}")
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == before
    assert torch.equal(rewards, expected)


# PEFT's own calls


@pytest.mark.parametrize("asks", ["num_labels=1", "a base with one label"])
def test_the_sequence_classifier_call_works(adapter, base_folder, asks):
    folder, expected = adapter
    options = {"num_labels": 1} if "num_labels" in asks else {}
    if not options:  # then it is the base's configuration that must say so
        path = base_folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "LABEL_0"}}))
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, is_trainable=True, dtype=torch.float32, **options
    )
    assert torch.equal(rewards_of(model), expected)
    assert everything_trains(model)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (AutoPeftModelForSequenceClassification, RuntimeError, "size mismatch for .*score"),
        (AutoPeftModelForCausalLM, ValueError, "Expected target PEFT class: PeftModelForSequenceClassification"),
    ],
)
def test_what_peft_refuses_by_itself_it_refuses_still(adapter, call, error, said):
    """As docs/adapters.md says; the day that one of them works, the docs can say so."""
    with pytest.raises(error, match=said):
        call.from_pretrained(adapter[0], is_trainable=True)


# A language model with the adapter on it


def on_language_model(folder, base_folder, call):
    if call == "AutoPeftModelForCausalLM":
        rewrite(folder, task_type="CAUSAL_LM")
        return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32, is_trainable=True)
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), folder, is_trainable=True
    )


@pytest.mark.parametrize("call", ["AutoPeftModelForCausalLM", "PeftModel"])
def test_an_adapter_on_a_language_model_is_refused_with_the_call_that_works(make_trainer, adapter, base_folder, call):
    tokenizer = AutoTokenizer.from_pretrained(adapter[0])
    with pytest.raises(ModelError, match=r"RewardTrainer\(model='the/adapter/folder'"):
        make_trainer(model=on_language_model(adapter[0], base_folder, call), processing_class=tokenizer)


def test_a_fresh_adapter_on_a_language_model_has_no_head(make_trainer, base_folder):
    fresh = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="a language model with an adapter and without a reward head"):
        make_trainer(model=fresh, processing_class=AutoTokenizer.from_pretrained(base_folder))
