"""`RewardModel.from_pretrained`: what it loads, refuses and warns of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
)

from plaudit import RewardFunction, RewardModel
from plaudit.errors import ModelError

SENTENCES = [("Is the sky blue? " * n + "Yes.")[: 5 + 7 * n] for n in (3, 0, 9, 1, 6, 2, 8, 4)]


def texts_of(rows, side="chosen"):
    return [row["prompt"] + row[side] for row in rows]


@pytest.fixture
def trainer(make_trainer):
    trainer = make_trainer(max_steps=2)
    trainer.train()
    trainer.save_model()
    return trainer


def test_a_saved_model_scores_what_the_trainer_predicted(trainer, text_rows):
    loaded = RewardModel.from_pretrained(trainer.args.output_dir, device="cpu")
    expected = trainer.predict(trainer.train_dataset).predictions
    for column, side in enumerate(("chosen", "rejected")):
        np.testing.assert_allclose(loaded.score(texts_of(text_rows, side)), expected[:, column], atol=2e-6)
    assert not loaded.model.training


def test_conversations_score_what_the_trainer_predicted(make_trainer, chat_rows):
    trainer = make_trainer(train_dataset=chat_rows)
    expected = trainer.predict(trainer.train_dataset).predictions[:, 1]
    scorer = RewardModel(trainer.model, trainer.processing_class)
    scores = scorer.score([row["prompt"] + row["rejected"] for row in chat_rows])
    np.testing.assert_allclose(scores, expected, atol=2e-6)


def test_an_adapters_folder_scores_what_the_trainer_predicted(make_trainer, base_folder, text_rows):
    trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig(), max_steps=2, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    loaded = RewardModel.from_pretrained(trainer.args.output_dir, dtype="float32", device="cpu")
    assert loaded.name == trainer.args.output_dir  # and not its base's
    assert RewardFunction(loaded).__name__ == Path(loaded.name).name
    expected = trainer.predict(trainer.train_dataset).predictions[:, 0]
    np.testing.assert_allclose(loaded.score(texts_of(text_rows)), expected, atol=1e-5)


def test_a_checkpoint_without_a_head_is_refused(base_folder):
    with pytest.raises(ModelError, match="is no reward model: its checkpoint has no head"):
        RewardModel.from_pretrained(base_folder)


def test_a_random_head_must_be_asked_for_and_is_warned_of(base_folder, caplog):
    with caplog.at_level("WARNING", logger="plaudit"):
        loaded = RewardModel.from_pretrained(base_folder, device="cpu", allow_random_head=True)
    assert "its scores are RANDOM" in caplog.text
    assert np.isfinite(loaded.score(["some text"])).all()


@pytest.mark.parametrize("head", ["value_head", "v_head.summary"])
def test_a_head_under_another_name_is_pointed_to(make_model, tokenizer, tmp_path, head):
    for part in (make_model(), tokenizer):
        part.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[f"{head}.weight"] = weights.pop("score.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f'has no head .*It does hold {head}.weight.*"value_head_prefix": "{head}"'):
        RewardModel.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"value_head_prefix": head}))
    expected = RewardModel(make_model(), tokenizer).score(SENTENCES)
    np.testing.assert_allclose(
        RewardModel.from_pretrained(tmp_path, device="cpu").score(SENTENCES), expected, atol=2e-6
    )


def test_a_classifier_is_no_reward_model_however_its_head_is_replaced(tokenizer, tmp_path, caplog):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=330, num_labels=2, **sizes)
    for part in (AutoModelForSequenceClassification.from_config(config), tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="2 labels, but .* It tells classes apart, and gives no reward"):
        RewardModel.from_pretrained(tmp_path)
    replaced = {"model_init_kwargs": {"ignore_mismatched_sizes": True}}
    with pytest.raises(ModelError, match=r"has no head \(classifier.bias, classifier.weight\)"):
        RewardModel.from_pretrained(tmp_path, **replaced)
    RewardModel.from_pretrained(tmp_path, allow_random_head=True, **replaced)
    assert "its scores are RANDOM" in caplog.text


def test_a_checkpoint_in_openrlhfs_shape_scores_as_it_did(make_model, tokenizer, tmp_path):
    """A bare backbone and a linear `value_head`, an architecture that nobody else knows, mean and std in the config."""
    model = make_model()
    expected = RewardModel(model, tokenizer).score(SENTENCES)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["value_head.weight"] = weights.pop("score.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["RewardModel"], "value_head_prefix": "value_head", "mean": 2.0, "std": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = RewardModel.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_allclose(loaded.score(SENTENCES), expected, atol=2e-6)
    np.testing.assert_allclose(loaded.score(SENTENCES, normalize=True), (expected - 2) / 4, atol=2e-6)


def test_what_a_folder_says_is_read_where_its_model_is(trainer, tmp_path):
    """A revision of the hub has a scale of its own; a subfolder takes the same way."""
    folder = Path(trainer.args.output_dir)
    description = json.loads((folder / "reward.json").read_text())
    for where, mean in (("", 1.0), ("new", 2.0)):
        (tmp_path / "both" / where).mkdir(parents=True)
        for file in folder.iterdir():
            if file.is_file():
                (tmp_path / "both" / where / file.name).write_bytes(file.read_bytes())
        said = description | {"rewards": {"mean": mean, "std": 3.0}}
        (tmp_path / "both" / where / "reward.json").write_text(json.dumps(said))
    for file in (tmp_path / "both").glob("tokenizer*"):
        file.unlink()
    loaded = RewardModel.from_pretrained(tmp_path / "both", model_init_kwargs={"subfolder": "new"})
    assert loaded.normalization() == (2.0, 3.0)


def test_a_path_that_is_not_there_says_so(tmp_path):
    for path in ("runs/reward/lasst", tmp_path / "lasst"):
        with pytest.raises(ModelError, match="lasst: no model could be loaded from there.*no.* folder"):
            RewardModel.from_pretrained(path)


def test_a_model_without_its_tokenizer_is_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "bare")  # transformers would make an empty tokenizer: all texts the same
    with pytest.raises(ModelError, match="bare: there are no tokenizer files"):
        RewardModel.from_pretrained(tmp_path / "bare")


def test_the_precision_can_be_chosen_and_is_the_checkpoints_otherwise(trainer):
    for dtype in (None, "auto"):
        assert RewardModel.from_pretrained(trainer.args.output_dir, dtype=dtype).model.dtype == torch.float32
    half = RewardModel.from_pretrained(trainer.args.output_dir, dtype="bfloat16", device="cpu")
    assert half.model.dtype == torch.bfloat16
    assert half.score(SENTENCES).dtype == np.float32


@pytest.mark.parametrize("trained_on", ["texts", "conversations"])
def test_the_other_form_than_that_of_training_is_warned_of_once(make_trainer, text_rows, chat_rows, trained_on, caplog):
    trainer = make_trainer(train_dataset=text_rows if trained_on == "texts" else chat_rows, max_steps=1)
    trainer.train()
    trainer.save_model()
    loaded = RewardModel.from_pretrained(trainer.args.output_dir, device="cpu")
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    written = loaded.tokenizer.apply_chat_template(chat, tokenize=False)
    mine, other = {"texts": ("Is it? Yes", chat), "conversations": (chat, "Is it? Yes")}[trained_on]
    with caplog.at_level("WARNING", logger="plaudit"):
        loaded.score([mine, written])  # as the template writes it, a text is a conversation
        assert not caplog.text
        loaded.score([mine, mine, other])
        loaded.score([other])
    (record,) = caplog.records
    assert f"row 2 is a {'text' if trained_on == 'conversations' else 'conversation'}, and" in record.getMessage()
    assert f"the model was trained on {trained_on}" in record.getMessage()


def test_a_changed_template_is_warned_of(trainer, caplog):
    folder = trainer.args.output_dir
    with caplog.at_level("WARNING", logger="plaudit"):
        RewardModel.from_pretrained(folder, device="cpu")
        assert not caplog.text
        Path(folder, "chat_template.jinja").write_text("{{ messages }}")
        RewardModel.from_pretrained(folder, device="cpu")
    assert "the chat template is not the one that the model was trained with" in caplog.text
