import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from plaudit import RewardConfig
from plaudit.errors import ConfigError, ModelError
from plaudit.models.load import embedding_rows
from plaudit.training.preparation import disable_dropout, prepare_model


def config(**options):
    return RewardConfig("out", bf16=False, gradient_checkpointing=False, **options)


def pads_with_eos(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# The pad token


def test_a_pad_that_is_not_eos_is_kept_and_said_to_the_model(make_model, tokenizer):
    model, settled = prepare_model(make_model(), config(), tokenizer=tokenizer)
    assert settled.pad_token == "<pad>"
    assert model.config.pad_token_id == settled.pad_token_id
    assert model.config.eos_token_id == settled.eos_token_id
    assert embedding_rows(model) == 320


def test_a_pad_that_is_eos_gives_way_to_a_token_that_was_set_aside(make_model, new_tokenizer):
    tokenizer = pads_with_eos(new_tokenizer(pad=None, extra=("<|reserved_0|>",)))
    model, settled = prepare_model(make_model(), config(), tokenizer=tokenizer)
    assert settled.pad_token == "<|reserved_0|>"
    assert model.config.pad_token_id == settled.pad_token_id != settled.eos_token_id
    assert embedding_rows(model) == 320


@pytest.mark.parametrize("pad", ["none", "eos"])
def test_a_spare_row_of_the_embedding_is_taken_before_the_embedding_grows(make_model, new_tokenizer, pad):
    tokenizer = new_tokenizer(pad=None)
    tokenizer = pads_with_eos(tokenizer) if pad == "eos" else tokenizer
    vocabulary = len(tokenizer)
    assert vocabulary < 320
    model, settled = prepare_model(make_model(), config(), tokenizer=tokenizer)
    assert settled.pad_token_id == vocabulary  # the first row without a token
    assert embedding_rows(model) == 320


def test_a_new_row_is_added_where_there_is_no_spare_one(make_model, new_tokenizer):
    tokenizer = pads_with_eos(new_tokenizer(pad=None))
    rows = len(tokenizer)
    model, settled = prepare_model(make_model(vocab_size=rows), config(), tokenizer=tokenizer)
    assert settled.pad_token_id == rows
    assert embedding_rows(model) == rows + 1
    assert model.config.vocab_size == rows + 1


def test_a_grown_embedding_trains_and_is_saved(make_trainer, make_model, new_tokenizer):
    tokenizer = pads_with_eos(new_tokenizer(pad=None))
    rows = len(tokenizer)
    trainer = make_trainer(model=make_model(vocab_size=rows), processing_class=tokenizer, max_steps=1)
    trainer.train()
    trainer.save_model()
    again = AutoModelForSequenceClassification.from_pretrained(trainer.args.output_dir, num_labels=1)
    assert embedding_rows(again) == rows + 1
    assert AutoTokenizer.from_pretrained(trainer.args.output_dir).pad_token_id == rows == again.config.pad_token_id


def test_an_embedding_never_grows_under_peft_and_the_option_to_set_is_named(make_model, new_tokenizer):
    tokenizer = pads_with_eos(new_tokenizer(pad=None))
    with pytest.raises(ModelError, match=r"needs 1 more embedding rows.*Set `pad_token` to a token of the vocabulary"):
        prepare_model(make_model(vocab_size=len(tokenizer)), config(), tokenizer=tokenizer, peft_config=LoraConfig())


def test_the_option_that_the_error_names_helps(make_model, new_tokenizer):
    tokenizer = pads_with_eos(new_tokenizer(pad=None))
    model, settled = prepare_model(
        make_model(vocab_size=len(tokenizer)), config(pad_token="<|im_start|>"), tokenizer=tokenizer,
        peft_config=LoraConfig(),
    )  # fmt: skip
    assert settled.pad_token == "<|im_start|>"
    assert model.config.pad_token_id == settled.pad_token_id


def test_a_pad_asked_for_that_is_eos_is_obeyed_with_a_warning_and_rewards_are_right(
    make_trainer, make_model, tokenizer, caplog
):
    plain = make_trainer()
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        trainer = make_trainer(model=make_model(), processing_class=tokenizer, pad_token="<eos>")
    assert "pad_token='<eos>' is also the EOS token" in caplog.text
    assert trainer.processing_class.pad_token_id == trainer.processing_class.eos_token_id
    rewards = [each.predict(each.train_dataset).predictions for each in (plain, trainer)]
    assert rewards[0] == pytest.approx(rewards[1], abs=2e-6)


def test_the_collator_pads_with_the_pad_that_was_settled(make_trainer, make_model, new_tokenizer):
    trainer = make_trainer(
        model=make_model(), processing_class=pads_with_eos(new_tokenizer(pad=None)), batch_layout="padded"
    )
    batch = trainer.data_collator([{"chosen_ids": [5], "rejected_ids": [5, 6]}])
    assert batch["input_ids"].tolist() == [[5, trainer.model.config.pad_token_id], [5, 6]]


# EOS and the chat template


def test_the_eos_token_asked_for_closes_every_text(make_trainer):
    trainer = make_trainer(eos_token="<|im_end|>")
    ids = trainer.processing_class.convert_tokens_to_ids("<|im_end|>")
    assert {row[side][-1] for row in trainer.train_dataset for side in ("chosen_ids", "rejected_ids")} == {ids}
    assert trainer.model.config.eos_token_id == ids


def test_a_jinja_file_is_the_chat_template(make_trainer, chat_rows, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}|{% endfor %}")
    trainer = make_trainer(train_dataset=chat_rows, chat_template_path=str(template))
    decoded = trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"])
    assert decoded == "Is the sky?|Yes, the sky|"
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(trainer.args.output_dir).chat_template == template.read_text()


def test_a_missing_jinja_file_is_said(make_trainer, tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        make_trainer(chat_template_path=str(tmp_path / "none.jinja"))


@pytest.fixture
def other_tokenizer(new_tokenizer, tmp_path):
    """The folder of a tokenizer whose template writes tokens of its own, of which it has twenty."""
    other = new_tokenizer(extra=tuple(f"<|turn{n}|>" for n in range(20)))
    other.chat_template = "{% for message in messages %}<|turn0|>{{ message['content'] }}<|turn19|>{% endfor %}"
    other.eos_token = "<|turn19|>"
    other.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_another_tokenizers_template_brings_its_tokens_and_its_eos(make_trainer, chat_rows, other_tokenizer):
    trainer = make_trainer(train_dataset=chat_rows, chat_template_path=str(other_tokenizer))
    tokenizer, model = trainer.processing_class, trainer.model
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<|turn0|>", "<|turn19|>")]
    chosen = trainer.train_dataset[0]["chosen_ids"]
    assert (chosen[0], chosen[-1], tokenizer.eos_token_id, model.config.eos_token_id) == (ids[0], *[ids[1]] * 3)
    assert embedding_rows(model) >= len(tokenizer)
    assert max(ids) < embedding_rows(model)
    trainer.train()


def test_a_template_whose_tokens_need_new_rows_is_refused_under_peft(make_model, new_tokenizer, other_tokenizer):
    tokenizer = new_tokenizer()
    model = make_model(vocab_size=len(tokenizer))
    with pytest.raises(ModelError, match=r"chat_template_path=.* needs 20 more embedding rows.*under PEFT"):
        prepare_model(
            model, config(chat_template_path=str(other_tokenizer)), tokenizer=tokenizer, peft_config=LoraConfig()
        )


# Dropout

DROPOUTS = {
    "qwen3": {"attention_dropout": 0.2, "head_dim": 8, "num_key_value_heads": 2},
    "bert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "modernbert": {"attention_dropout": 0.2, "mlp_dropout": 0.2, "classifier_dropout": 0.2},
    "gpt_neox": {"attention_dropout": 0.2, "hidden_dropout": 0.2},
    "opt": {"dropout": 0.2, "attention_dropout": 0.2, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "gpt2": {"attn_pdrop": 0.2, "resid_pdrop": 0.2, "embd_pdrop": 0.2},
}


def with_dropout(kind):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(
            kind, vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_labels=1, pad_token_id=0, **DROPOUTS[kind],
        )
    ).train()  # fmt: skip


@torch.no_grad()
def repeats(model):
    batch = {"input_ids": torch.arange(3, 23).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    first = model(**batch).logits
    return all(torch.equal(model(**batch).logits, first) for _ in range(3))


@pytest.mark.parametrize("kind", DROPOUTS)
def test_without_dropout_the_network_is_the_same_at_every_call(kind):
    model = with_dropout(kind)
    assert not repeats(model)
    disable_dropout(model)
    assert repeats(model)


@pytest.mark.parametrize("disable", [True, False])
def test_the_option_decides_about_dropout(tokenizer, disable):
    model, _ = prepare_model(with_dropout("qwen3"), config(disable_dropout=disable), tokenizer=tokenizer)
    assert repeats(model.train()) is disable
    other, _ = prepare_model(with_dropout("bert"), config(disable_dropout=disable), tokenizer=tokenizer)
    rates = {module.p for module in other.modules() if isinstance(module, nn.Dropout)}
    assert rates == ({0.0} if disable else {0.2})


def test_dropout_of_an_adapter_follows_the_option(make_model, tokenizer):
    for disable in (True, False):
        model, _ = prepare_model(
            make_model(), config(disable_dropout=disable), tokenizer=tokenizer, peft_config=LoraConfig(lora_dropout=0.5)
        )
        rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
        assert rates == (set() if disable else {0.5})
        assert model.peft_config["default"].lora_dropout == (0.0 if disable else 0.5)  # what it was trained with


def test_dropout_of_a_ready_made_adapter_follows_the_option(make_model, tokenizer):
    made = get_peft_model(make_model(), LoraConfig(lora_dropout=0.5, task_type="SEQ_CLS"))
    model, _ = prepare_model(made, config(), tokenizer=tokenizer)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}


# The tokenizer


def test_a_model_object_without_a_name_needs_its_tokenizer(make_model):
    with pytest.raises(ConfigError, match="pass its tokenizer as `processing_class`"):
        prepare_model(make_model(), config())


def test_a_folder_without_a_tokenizer_is_named(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"bare: there are no tokenizer files.*Pass .*`processing_class`"):
        prepare_model(str(tmp_path / "bare"), config())


def test_the_tokenizer_comes_from_where_the_model_came_from(base_folder, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    for source in (str(base_folder), model):
        _, found = prepare_model(source, config())
        assert found.get_vocab() == tokenizer.get_vocab()


def test_options_for_loading_that_cannot_act_are_said(make_model, tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        prepare_model(make_model(), config(model_init_kwargs={"dtype": "bfloat16"}), tokenizer=tokenizer)
    assert "`model_init_kwargs` is ignored: the model is already loaded" in caplog.text
