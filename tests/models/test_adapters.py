import copy

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from plaudit import ModelConfig, RewardModel, get_peft_config
from plaudit.errors import ConfigError, ModelError
from plaudit.models.adapters import add_adapter, check_head_is_trained
from plaudit.models.load import load_model
from plaudit.training.setup import disable_dropout


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
