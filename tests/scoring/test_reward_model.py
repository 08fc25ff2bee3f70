import numpy as np
import pytest
import torch
from peft import LoraConfig

from plaudit import RewardModel
from plaudit.errors import DataError, ModelError


def texts_of(rows, side="chosen"):
    return [row["prompt"] + row[side] for row in rows]


@pytest.fixture
def trainer(make_trainer):
    trainer = make_trainer(max_steps=2)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture
def scorer(make_model, tokenizer):
    return RewardModel(make_model(), tokenizer)


SENTENCES = [("Is the sky blue? " * n + "Yes.")[: 5 + 7 * n] for n in (3, 0, 9, 1, 6, 2, 8, 4)]


def test_scores_come_in_the_order_of_the_sequences_however_they_are_batched(make_model, scorer, tokenizer):
    alone = np.concatenate([scorer.score([text]) for text in SENTENCES])
    assert alone.dtype == np.float32
    assert len(set(alone.round(3))) == len(SENTENCES)
    for budget in (1, 20, 60, 100, 10_000):
        other = RewardModel(make_model(), tokenizer, max_tokens_per_batch=budget)
        np.testing.assert_allclose(other.score(SENTENCES), alone, atol=2e-6)  # float32, in other company


def test_nothing_is_scored_to_nothing(scorer):
    assert scorer.score([]).shape == (0,)


def test_a_text_and_a_conversation_score_as_the_ids_that_they_are(scorer, tokenizer):
    messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    text, chat = "Is it? Yes", tokenizer.apply_chat_template(messages, tokenize=False)
    expected = []
    for ids in (tokenizer(text)["input_ids"] + [tokenizer.eos_token_id], tokenizer(chat)["input_ids"]):
        with torch.no_grad():
            expected.append(scorer.model(input_ids=torch.tensor([ids])).logits.item())
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    assert scorer.score([text, messages]) == pytest.approx(expected, abs=2e-6)


def test_options_reach_the_chat_template(scorer):
    messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    plain, shouted = scorer.score([messages, messages], options=[{}, {"shout": True}])
    assert plain == pytest.approx(scorer.score([messages])[0], abs=2e-6)
    assert plain != pytest.approx(shouted, abs=1e-3)


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
    expected = trainer.predict(trainer.train_dataset).predictions[:, 0]
    np.testing.assert_allclose(loaded.score(texts_of(text_rows)), expected, atol=1e-5)


def test_scoring_needs_no_pad_token(make_model, new_tokenizer, tokenizer):
    bare = new_tokenizer()
    bare.pad_token = None
    assert RewardModel(make_model(), bare).score(SENTENCES) == pytest.approx(
        RewardModel(make_model(), tokenizer).score(SENTENCES), abs=2e-6
    )


def test_a_checkpoint_without_a_head_is_refused(base_folder):
    with pytest.raises(ModelError, match="is no reward model: its checkpoint has no head"):
        RewardModel.from_pretrained(base_folder)


def test_a_model_without_its_tokenizer_is_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "bare")  # transformers would make an empty tokenizer: all texts the same
    with pytest.raises(ModelError, match="bare: there are no tokenizer files"):
        RewardModel.from_pretrained(tmp_path / "bare")


def test_the_precision_can_be_chosen_and_is_the_checkpoints_otherwise(trainer):
    assert RewardModel.from_pretrained(trainer.args.output_dir, device="cpu").model.dtype == torch.float32
    half = RewardModel.from_pretrained(trainer.args.output_dir, dtype="bfloat16", device="cpu")
    assert half.model.dtype == torch.bfloat16
    assert half.score(SENTENCES).dtype == np.float32


@pytest.mark.parametrize("single", ["a text", [{"role": "user", "content": "Hi"}]])
def test_a_single_sequence_is_not_taken_for_many(scorer, single):
    with pytest.raises(DataError, match=r"Wrap it: score\(\[\.\.\.\]\)"):
        scorer.score(single)


@pytest.mark.parametrize("wrong", [5, None, "", [{"rol": "user"}], [{"role": "user", "content": "Hi"}]])
def test_what_is_no_sequence_is_refused_and_named(scorer, wrong):
    with pytest.raises(DataError, match="row 1"):
        scorer.score(["fine", wrong])
