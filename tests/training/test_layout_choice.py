"""Which layout a run takes, and the comparison of both at its start."""

import logging
import random

import numpy as np
import pytest
import torch
from by_hand import weights_of
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForSequenceClassification,
    BloomForSequenceClassification,
    set_seed,
)

from plaudit import DataCollatorForPreference, RewardTrainer
from plaudit.errors import ConfigError
from plaudit.forest.attention import ForestAttention
from plaudit.training import layout_choice
from plaudit.training.dataloaders import make_batch_sampler
from plaudit.training.layout_choice import confirm_layout

SIZES = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "bert": SIZES | {"intermediate_size": 48, "max_position_embeddings": 64},
    "falcon": SIZES | {"alibi": False},
    "bloom": SIZES | {"n_layer": 2, "n_head": 4},
}
EXPERTS = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 8} | {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


def make(kind, options, dtype=torch.float32):
    set_seed(0)
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(kind, **options, num_labels=1), dtype=dtype
    )


class OwnLoss(RewardTrainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def said(caplog):
    return [record.message for record in caplog.records if record.message.startswith("batch layout")]


# The choice

CANNOT = {
    "encoder": (lambda: {"model": make("bert", OTHERS["bert"])}, "BertForSequenceClassification is an encoder"),
    "falcon": (lambda: {"model": make("falcon", OTHERS["falcon"])}, "FalconForSequenceClassification does not take"),
    "bloom": (lambda: {"model": make("bloom", OTHERS["bloom"])}, "BloomForSequenceClassification does not take"),
    "collator": (lambda: {"data_collator": DataCollatorForPreference(0)}, "`data_collator` expects TRL's batches"),
    "loss": (lambda: {"trainer_class": OwnLoss}, "`compute_loss` expects TRL's batches"),
    "prompt": (lambda: {"peft_config": PromptTuningConfig(num_virtual_tokens=2)}, "prefix and prompt tuning put"),
    "prefix": (lambda: {"peft_config": PrefixTuningConfig(num_virtual_tokens=2)}, "prefix and prompt tuning put"),
}


@pytest.fixture
def make_one(make_trainer, tokenizer):
    """`make_trainer`, with a tokenizer also where the model is given."""

    def made(**options):
        if "model" in options:
            options["processing_class"] = tokenizer
        return make_trainer(**options)

    return made


def test_a_decoder_takes_the_forest_and_says_so_once(make_trainer, caplog, text_rows):
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_trainer(max_steps=2, eval_dataset=text_rows)
        trainer.train()
        trainer.evaluate()
    assert trainer.layout == "forest"
    assert said(caplog) == ["batch layout: token forest (no padding, each shared prefix runs once)"]


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_take_the_forest_trains_padded_and_says_why_once(make_one, caplog, case):
    options, reason = CANNOT[case]
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_one(max_steps=1, **options())
        trainer.train()
    assert trainer.layout == "padded"
    (message,) = said(caplog)
    assert message.startswith(f"batch layout: padded, since {reason}")


@pytest.mark.parametrize("case", CANNOT)
def test_a_forest_that_cannot_be_is_an_error_that_says_why(make_one, case):
    options, reason = CANNOT[case]
    with pytest.raises(ConfigError, match=f"batch_layout='forest' is not possible: {reason}"):
        make_one(batch_layout="forest", **options())


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_under_checkpointing_are_an_error(make_trainer, config, layout):
    with pytest.raises(ConfigError, match="prefix and prompt tuning do not work under checkpointing"):
        make_trainer(peft_config=config(num_virtual_tokens=2), gradient_checkpointing=True, batch_layout=layout)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_score_and_train_as_the_stock_forward_does(make_trainer, config):
    trainer = make_trainer(peft_config=config(num_virtual_tokens=2), max_steps=2, learning_rate=0.1)
    before = weights_of(trainer.model)
    trainer.train()
    moved = {name for name, weight in weights_of(trainer.model).items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == {"prompt_encoder", "base_model"}
    rewards = trainer.predict(trainer.train_dataset).predictions
    model = trainer.model.eval()
    del vars(model.get_base_model())["forward"]
    with torch.no_grad():
        by_hand = [
            [model(input_ids=torch.tensor([row[side]]), attention_mask=torch.ones(1, len(row[side]))).logits.item()]
            for row in trainer.train_dataset
            for side in ("chosen_ids", "rejected_ids")
        ]
    np.testing.assert_allclose(rewards, np.reshape(by_hand, (-1, 2)), atol=5e-6)


def test_an_adapter_takes_the_forest(make_trainer):
    assert make_trainer(peft_config=LoraConfig()).layout == "forest"


def test_a_model_that_accepts_the_setting_and_never_calls_it_is_found_out(make_trainer, caplog, monkeypatch):
    trainer = make_trainer(max_steps=1)
    assert trainer.layout == "forest"
    monkeypatch.setattr(AttentionInterface, "get_interface", lambda self, name, default: default)
    trainer.train()
    assert trainer.layout == "padded"
    assert "0 of the 2 attention layers of Qwen3ForSequenceClassification called the forest's attention" in caplog.text


def test_a_model_that_fails_on_a_forest_trains_padded(make_one, caplog, monkeypatch):
    monkeypatch.setattr("plaudit.forest.attention.unsupported_reason", lambda model: None)
    monkeypatch.setattr(BloomForSequenceClassification, "_can_set_attn_implementation", classmethod(lambda cls: True))
    trainer = make_one(model=make("bloom", OTHERS["bloom"]), max_steps=1)
    assert trainer.layout == "forest"
    trainer.train()
    assert trainer.layout == "padded"
    assert "the model fails on a forest (ValueError: too many values to unpack" in caplog.text


# The comparison at the start


def sees_everything_before(position_ids, subtree_end, **options):
    places = torch.arange(len(position_ids))
    return ForestAttention(places, torch.full_like(places, len(places)), **options)


@pytest.fixture
def broken(monkeypatch):
    """A forest's attention in which responses see each other."""
    monkeypatch.setattr("plaudit.forest.attention.ForestAttention", sees_everything_before)


def test_wrong_attention_falls_back_to_padded_and_shows_the_figures(make_trainer, broken, caplog):
    trainer, padded = make_trainer(max_steps=3), make_trainer(max_steps=3, batch_layout="padded")
    for each in (trainer, padded):
        each.train()
    assert trainer.layout == "padded"
    (message,) = said(caplog)
    assert "on 8 sequences the rewards of the two layouts differ by up to 1.15" in message
    assert "more than float32 explains (0.0001 of their size, 2.37)" in message
    assert same(weights_of(trainer.model), weights_of(padded.model))


def test_wrong_attention_is_an_error_where_the_forest_was_asked_for(make_trainer, broken):
    with pytest.raises(ConfigError, match="batch_layout='forest' is not possible: on 8 sequences .* differ by up to"):
        make_trainer(batch_layout="forest", max_steps=1).train()


def test_an_evaluation_before_training_falls_back_too(make_trainer, broken, text_rows, caplog):
    trainer, padded = (make_trainer(eval_dataset=text_rows, batch_layout=layout) for layout in ("auto", "padded"))
    assert trainer.evaluate()["eval_loss"] == padded.evaluate()["eval_loss"]
    assert trainer.layout == "padded"
    trainer.train()
    assert len(said(caplog)) == 1


def test_batches_by_tokens_are_planned_for_the_layout_fallen_back_to(make_trainer, broken):
    trainer, padded = (
        make_trainer(max_steps=1, max_tokens_per_batch=100, batch_layout=layout) for layout in ("auto", "padded")
    )
    for each in (trainer, padded):
        each.train()
    assert list(trainer.sampler) == list(padded.sampler)
    assert len(make_batch_sampler(trainer.train_dataset, trainer.args, "forest")) < len(padded.sampler)


def test_the_comparison_leaves_no_trace(make_trainer, make_model, tokenizer):
    runs = []
    for compared in (False, True):
        model = make_model(attention_dropout=0.2)
        trainer = make_trainer(model=model, processing_class=tokenizer, max_steps=3, disable_dropout=False)
        trainer.layout_is_confirmed = compared
        trainer.train()
        runs.append(weights_of(trainer.model))
    assert same(*runs)


def test_the_comparison_leaves_every_random_state_as_it_was(make_trainer, monkeypatch):
    def draw(model, score, **_):
        assert trainer.model.training is False
        random.random(), np.random.rand(), torch.rand(1)

    monkeypatch.setattr(layout_choice, "layouts_differ", draw)
    trainer = make_trainer()
    trainer.model.train()

    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    confirm_layout(trainer, trainer.model)
    assert state() == before
    assert trainer.model.training


def test_the_comparison_does_not_use_up_a_stream(make_trainer, text_rows):
    runs = []
    for rows in (Dataset.from_list(text_rows), Dataset.from_list(text_rows).to_iterable_dataset()):
        trainer = make_trainer(train_dataset=rows, max_steps=2)
        trainer.train()
        runs.append(weights_of(trainer.model))
    assert same(*runs)
    assert trainer.reports["train"].pairs == 10  # 20 if the rows looked at had been counted


@pytest.mark.parametrize("evaluated_before", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_compared_in_float32_and_keep_their_weights(
    make_one, monkeypatch, text_rows, dtype, evaluated_before
):
    model = make("qwen3_moe", SIZES | EXPERTS, dtype=dtype)
    seen, compare = [], layout_choice.layouts_differ

    def spy(model, score, **options):
        def seeing(layout, float32):
            rewards = score(layout, float32)
            seen.append((float32, {p.dtype for p in model.parameters()}, rewards.tolist()))
            return rewards

        return compare(model, seeing, **options)

    trainer = make_one(model=model, max_steps=1, bf16=True, eval_dataset=text_rows)
    held = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    if evaluated_before:
        trainer.layout_is_confirmed = True
        trainer.evaluate()
        trainer.layout_is_confirmed = False
    monkeypatch.setattr(layout_choice, "layouts_differ", spy)
    confirm_layout(trainer, trainer.model)
    assert trainer.layout == "forest"
    (float32, types, rewards), _ = seen  # padded, and a forest
    assert (float32, types) == (True, {torch.float32})
    assert len({parameter.dtype for parameter in model.parameters()}) == (1 if dtype == torch.float32 else 2)
    assert held == {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    # and computed in it, not only held: the rewards are those of the float32 model without autocast
    reference = make("qwen3_moe", SIZES | EXPERTS, dtype=dtype).float()
    reference.score.load_state_dict(model.score.state_dict())
    sequences, _ = trainer.data_collator.sequences(trainer.train_dataset.select(range(4)).to_list())
    with torch.no_grad():
        by_hand = [type(reference).forward(reference, torch.tensor([ids])).logits.item() for ids in sequences]
    np.testing.assert_allclose(rewards, by_hand, atol=2e-6)
