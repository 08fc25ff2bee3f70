import copy
import json

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, set_seed

from plaudit import ModelConfig, RewardModel, get_peft_config
from plaudit.errors import ConfigError, ModelError
from plaudit.models.adapters import add_adapter, check_head_is_trained
from plaudit.models.load import load_model
from plaudit.training.preparation import disable_dropout


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def trained(make_trainer, base_folder):
    """A trainer that has trained an adapter on a base model of the hub and saved it."""
    trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig(), max_steps=3, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    return trainer


@torch.no_grad()
def plain_rewards(model, tokenizer, texts):
    tokenizer.padding_side = "right"
    batch = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


def test_a_plain_lora_config_trains_adapter_and_head_and_nothing_else(make_model):
    model = add_adapter(make_model(), LoraConfig())
    names = trained_names(model)
    assert any("lora_A" in name for name in names)
    assert {name for name in names if "lora_" not in name} == {"base_model.model.score.modules_to_save.default.weight"}


@pytest.mark.parametrize("kind", ["bert", "modernbert", "roberta", "gpt_neox"])
def test_the_head_trains_whatever_it_is_called(kind):
    config = AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    base = AutoModelForSequenceClassification.from_config(config)
    model = add_adapter(base, LoraConfig(target_modules="all-linear"))
    head = [name for name in trained_names(model) if "modules_to_save" in name and "lora_" not in name]
    assert head
    assert any(parameter.shape[0] == 1 for name, parameter in model.named_parameters() if name in head)
    assert not [
        name for name, _ in model.named_parameters() if "lora_" in name and not name.startswith(backbone(model))
    ]


ENCODERS = {
    "bert": "bert.pooler.dense",  # in the backbone, and not in the checkpoint of a masked language model
    "deberta-v2": "pooler.dense",
    "distilbert": "pre_classifier",
    "modernbert": "head.dense",
    "roberta": "classifier.dense",
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_all_that_is_new_in_an_encoder_is_saved_with_its_adapter(kind, tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = AutoConfig.for_model(kind, num_attention_heads=2, pad_token_id=0, **sizes)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "base")
    set_seed(1)
    model = add_adapter(load_model(str(tmp_path / "base")), LoraConfig(target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if name in trained_names(model):
            torch.nn.init.normal_(parameter, std=0.1)  # as if trained
    assert any(f"base_model.model.{ENCODERS[kind]}" in name.replace(".modules_to_save.default", "")
               for name in trained_names(model))  # fmt: skip
    model.save_pretrained(tmp_path / "adapter")
    batch = {"input_ids": torch.arange(3, 23).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    set_seed(2)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        for again in (
            load_model(str(tmp_path / "adapter"), is_trainable=False),
            AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1),
        ):
            assert torch.equal(again.eval()(**batch).logits, expected)


def backbone(model):
    return f"base_model.model.{model.get_base_model().base_model_prefix}."


@pytest.mark.parametrize("targets", [["q_proj", "score"], ".*(q_proj|score)", "all-linear"])
def test_the_head_is_never_adapted_even_if_it_is_named(make_model, targets):
    model = add_adapter(make_model(), LoraConfig(target_modules=targets))
    names = [name for name, _ in model.named_parameters() if ".score." in name]
    assert names == [f"base_model.model.score.{part}.weight" for part in ("original_module", "modules_to_save.default")]
    assert any("q_proj.lora_A" in name for name in trained_names(model))


@pytest.mark.parametrize("targets", [["score"], ["no_such_layer"]])
def test_a_lora_that_fits_nothing_but_the_head_is_an_error(make_model, targets):
    with pytest.raises(ConfigError, match=r"does not fit Qwen3For.*the head \(score\) trains in full and is never"):
        add_adapter(make_model(), LoraConfig(target_modules=targets))


def test_a_ready_made_peft_model_whose_head_is_adapted_is_refused(make_model):
    with pytest.raises(ModelError, match=r"the head \(score\) of this PeftModel has an adapter"):
        check_head_is_trained(get_peft_model(make_model(), LoraConfig(target_modules=["q_proj", "score"])))


def test_the_adapter_names_the_commit_of_its_base(make_model):
    assert add_adapter(make_model(), LoraConfig(), revision="abc").peft_config["default"].revision == "abc"
    assert add_adapter(make_model(), LoraConfig()).peft_config["default"].revision is None


def test_a_base_at_a_named_commit_is_loaded_at_it(trained, monkeypatch):
    path = f"{trained.args.output_dir}/adapter_config.json"
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | {"revision": "abc"}, file)
    asked = []
    stock = AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained",
        lambda name, revision=None, **options: asked.append(revision) or stock(name, **options),
    )  # fmt: skip
    load_model(trained.args.output_dir)
    assert asked == ["abc"]


def test_the_config_of_the_user_is_not_changed(make_model):
    config = LoraConfig(modules_to_save=["norm"])
    before = copy.deepcopy(config.to_dict())
    model = add_adapter(make_model(), config)
    assert config.to_dict() == before
    used = model.peft_config["default"]
    assert used.task_type == TaskType.SEQ_CLS
    assert {"norm", "score"} <= set(used.modules_to_save)


@pytest.mark.parametrize("task", ["CAUSAL_LM", TaskType.TOKEN_CLS])
def test_another_task_is_refused(make_model, task):
    with pytest.raises(ConfigError, match="a reward model is a sequence classifier.*Use 'SEQ_CLS', or leave it out"):
        add_adapter(make_model(), LoraConfig(task_type=task))


def test_a_peft_model_whose_head_is_frozen_is_refused(make_model):
    frozen = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"]))  # no task type: the head is left out
    with pytest.raises(ModelError, match=r"the head \(score\) of this PeftModel would neither train nor be saved"):
        check_head_is_trained(frozen)
    check_head_is_trained(get_peft_model(make_model(), LoraConfig(task_type="SEQ_CLS")))


def test_the_trainer_refuses_a_peft_model_whose_head_is_frozen(make_trainer, make_model, tokenizer):
    frozen = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="would neither train nor be saved"):
        make_trainer(model=frozen, processing_class=tokenizer)


def test_a_ready_made_peft_model_trains_its_head(make_trainer, make_model, tokenizer):
    model = get_peft_model(make_model(), LoraConfig(task_type="SEQ_CLS"))
    trainer = make_trainer(model=model, processing_class=tokenizer, max_steps=1, gradient_checkpointing=True)
    head = model.get_base_model().score.modules_to_save["default"]
    before = head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(head.weight, before)
    assert torch.equal(model.get_base_model().score.original_module.weight, before)


def test_plain_peft_loads_the_saved_adapter_with_its_head(trained, text_rows, base_folder):
    folder = trained.args.output_dir
    tokenizer = trained.processing_class
    texts = [row["prompt"] + row["chosen"] for row in text_rows]
    expected = torch.from_numpy(trained.predict(trained.train_dataset).predictions[:, 0])
    assert expected.std() > 0.01
    set_seed(99)  # the base's own head is drawn anew, and must not matter
    base = AutoModelForSequenceClassification.from_pretrained(
        base_folder, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
    )
    for model in (
        PeftModel.from_pretrained(base, folder),
        AutoPeftModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
        ),
    ):
        torch.testing.assert_close(plain_rewards(model.eval(), tokenizer, texts), expected, atol=1e-5, rtol=1e-5)


def test_a_saved_adapter_scores_through_reward_model_and_trains_on(trained, text_rows, make_trainer):
    folder = trained.args.output_dir
    texts = [row["prompt"] + row["chosen"] for row in text_rows]
    expected = trained.predict(trained.train_dataset).predictions[:, 0]
    scores = RewardModel.from_pretrained(folder, dtype="float32", device="cpu").score(texts)
    assert scores == pytest.approx(expected, abs=1e-5)
    again = make_trainer(model=folder, max_steps=1)
    assert again.predict(trained.train_dataset).predictions[:, 0] == pytest.approx(expected, abs=1e-5)
    names = trained_names(again.model)
    assert any("lora_" in name for name in names)
    assert any("score" in name for name in names)
    before = {name: parameter.detach().clone() for name, parameter in again.model.named_parameters() if name in names}
    again.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in again.model.named_parameters()
               if name in names)  # fmt: skip


def test_an_adapter_for_scoring_does_not_train(trained):
    assert not trained_names(load_model(trained.args.output_dir, is_trainable=False, new_head=False))


def test_the_file_of_an_adapter_holds_the_trained_head(trained):
    weights = load_file(f"{trained.args.output_dir}/adapter_model.safetensors")
    (head,) = [weights[name] for name in weights if "score" in name]
    assert torch.equal(head, trained.model.get_base_model().score.modules_to_save["default"].weight)


def test_dropout_of_an_adapter_is_turned_off_too(make_model):
    model = add_adapter(make_model(), LoraConfig(lora_dropout=0.5))
    assert any(isinstance(module, torch.nn.Dropout) and module.p == 0.5 for module in model.modules())
    disable_dropout(model)
    assert all(module.p == 0.0 for module in model.modules() if isinstance(module, torch.nn.Dropout))


# The options of a script


def test_without_use_peft_there_is_no_adapter():
    assert get_peft_config(ModelConfig(lora_r=4)) is None


def test_the_options_of_a_script_become_a_lora_config():
    config = get_peft_config(
        ModelConfig(
            use_peft=True, lora_r=4, lora_alpha=8, lora_dropout=0.25, lora_target_modules=["q_proj", "v_proj"],
            lora_modules_to_save=["norm"], use_rslora=True,
        )
    )  # fmt: skip
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.25, True)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert (config.modules_to_save, config.task_type) == (["norm"], "SEQ_CLS")


def test_one_target_module_may_be_a_pattern(make_model):
    config = get_peft_config(ModelConfig(use_peft=True, lora_target_modules=["all-linear"]))
    assert config.target_modules == "all-linear"
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name in trained_names(add_adapter(make_model(), config))
               if "lora_A" in name}  # fmt: skip
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
