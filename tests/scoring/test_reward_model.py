import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    FNetConfig,
    ModernBertDecoderConfig,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    T5GemmaConfig,
    set_seed,
)
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.integrations import deepspeed
from transformers.modeling_outputs import SequenceClassifierOutput

from plaudit import RewardFunction, RewardModel
from plaudit.data.synthetic import PreferenceWorld
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.models.inputs import forest_inputs, padded_inputs
from plaudit.scoring import reward_model as module


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


SMALL = {
    "vocab_size": 330, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_labels": 1, "initializer_range": 0.3,
}  # fmt: skip
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


def test_500_conversations_score_as_plain_transformers_scores_each_alone(make_model, tokenizer, tmp_path):
    """Of many lengths, the responses of a prompt far apart in the list, rewards of the size that training gives."""
    pairs = PreferenceWorld(0).pairs(250, "test")
    asked = [[{"role": "user", "content": each.prompt * (1 + n % 7)}] for n, each in enumerate(pairs)]
    replies = [each.chosen for each in pairs] + [each.rejected for each in pairs]
    told = [[{"role": "assistant", "content": reply}] for reply in replies]
    conversations = [prompt + reply for prompt, reply in zip(asked * 2, told, strict=True)]
    model = make_model(max_position_embeddings=2048)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in conversations]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        alone = [plain(input_ids=torch.tensor([each])).logits.item() for each in ids]
    rewards = RewardModel.from_pretrained(tmp_path, device="cpu").score(conversations)
    assert len({len(each) for each in ids}) > 50
    assert np.std(alone) > 0.3
    np.testing.assert_allclose(rewards, alone, rtol=0, atol=1e-5)


def test_an_adapters_folder_scores_what_the_trainer_predicted(make_trainer, base_folder, text_rows):
    trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig(), max_steps=2, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    loaded = RewardModel.from_pretrained(trainer.args.output_dir, dtype="float32", device="cpu")
    assert loaded.name == trainer.args.output_dir  # and not its base's
    assert RewardFunction(loaded).__name__ == Path(loaded.name).name
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
    config = BertConfig(**SMALL | {"num_labels": 2})
    for part in (AutoModelForSequenceClassification.from_config(config), tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="2 labels, but .* It tells classes apart, and gives no reward"):
        RewardModel.from_pretrained(tmp_path)
    replaced = {"model_init_kwargs": {"ignore_mismatched_sizes": True}}
    with pytest.raises(ModelError, match=r"has no head \(classifier.bias, classifier.weight\)"):
        RewardModel.from_pretrained(tmp_path, **replaced)
    RewardModel.from_pretrained(tmp_path, allow_random_head=True, **replaced)
    assert "its scores are RANDOM" in caplog.text


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


@pytest.mark.parametrize("single", ["a text", [{"role": "user", "content": "Hi"}]])
def test_a_single_sequence_is_not_taken_for_many(scorer, single):
    with pytest.raises(DataError, match=r"Wrap it: score\(\[\.\.\.\]\)"):
        scorer.score(single)
    with pytest.raises(DataError, match=r"got a single prompt. For one prompt with several completions: rank\("):
        scorer.score(single, ["a", "b"])


def test_rows_are_not_taken_for_messages(scorer):
    with pytest.raises(DataError, match=r"got a dict with 'prompt', 'completion'. Of rows with prompt and completion"):
        scorer.score([{"prompt": "a", "completion": "b"}])


@pytest.mark.parametrize("table", [{"text": ["a", "b"]}, pd.DataFrame({"text": ["a", "b"]})])
def test_a_table_is_not_taken_for_the_names_of_its_columns(scorer, table):
    with pytest.raises(DataError, match="got a (dict|DataFrame). Pass one of its columns"):
        scorer.score(table)
    with pytest.raises(DataError, match="Pass one of its columns"):
        scorer.score(["a"], table)
    assert scorer.score(table["text"]).shape == (2,)


def test_a_single_completion_is_not_taken_for_its_letters(scorer):
    for call in (scorer.score, scorer.rank, scorer.best_of):
        with pytest.raises(DataError, match="expected a list of completions, got a single one: 'Yes'. Wrap it"):
            call(["Is", "it", "?"], "Yes")


def test_options_and_names_must_be_as_many_as_the_sequences(scorer):
    with pytest.raises(DataError, match="options: expected one for each sequence, and there are only 1"):
        scorer.score(["a", "b"], options=[{}])
    with pytest.raises(DataError, match="names: expected one for each sequence, and there are only 1"):
        scorer.score(["a", "b"], names=["x"])


def test_what_holds_no_sequences_is_refused(scorer):
    with pytest.raises(DataError, match="expected a list of texts or of conversations, got 3"):
        scorer.score(3)


@pytest.mark.parametrize("wrong", [5, None, "", [{"rol": "user"}], [{"role": "user", "content": "Hi"}]])
def test_what_is_no_sequence_is_refused_and_named(scorer, wrong):
    with pytest.raises(DataError, match="row 1"):
        scorer.score(["fine", wrong])


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


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(tmp_path, device):
    with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used here .* There is: cpu"):
        RewardModel.from_pretrained(tmp_path, device=device)


# What a person may have


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


def test_a_random_head_must_be_asked_for_and_is_warned_of(base_folder, caplog):
    with caplog.at_level("WARNING", logger="plaudit"):
        loaded = RewardModel.from_pretrained(base_folder, device="cpu", allow_random_head=True)
    assert "its scores are RANDOM" in caplog.text
    assert np.isfinite(loaded.score(["some text"])).all()


def test_others_way_of_writing_text_can_be_had(make_model, new_tokenizer):
    """As docs/scoring.md says: a pair of texts for an encoder, and OpenRLHF's end of a conversation."""
    tokenizer = new_tokenizer(bos="<s>", extra=("[SEP]",))
    tokenizer.sep_token = "[SEP]"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <eos>", pair="<s> $A [SEP] $B <eos>",
        special_tokens=[(each, tokenizer.convert_tokens_to_ids(each)) for each in ("<s>", "[SEP]", "<eos>")],
    )  # fmt: skip
    scorer = RewardModel(make_model(vocab_size=340), tokenizer)
    (ids,) = scorer.token_ids(["Is it?" + tokenizer.sep_token + "Yes"])
    assert ids == tokenizer("Is it?", "Yes")["input_ids"]
    chat = tokenizer.apply_chat_template(CHAT + REPLY, tokenize=False)
    ended = "<s>" + chat.rstrip("\n") + " " + tokenizer.eos_token
    assert scorer.token_ids([ended]) == [tokenizer(ended, add_special_tokens=False)["input_ids"]]


@pytest.fixture(params=["whole", "an adapter"])
def saved(request, make_trainer, base_folder):
    """A trainer that has saved its model; the base of the adapter has no head of its own."""
    options = {} if request.param == "whole" else {"model": str(base_folder), "peft_config": LoraConfig()}
    trainer = make_trainer(max_steps=2, **options)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(params=["FSDP", "ZeRO-3"])
def sharding(request, monkeypatch, tmp_path, saved):
    """The second process of a machine on which a trainer shards its policy."""
    if request.param == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        monkeypatch.setenv("LOCAL_RANK", "1")
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        assert is_fsdp_enabled()
        yield is_fsdp_enabled
        torch.distributed.destroy_process_group()
    else:
        config = Mock(config={}, **{"is_zero3.return_value": True})
        deepspeed.set_hf_deepspeed_config(config)
        yield lambda: deepspeed.deepspeed_config() is config.config
        deepspeed.unset_hf_deepspeed_config()


def test_beside_a_policy_in_shards_a_reward_model_is_whole(saved, sharding):
    loaded = RewardModel.from_pretrained(saved.args.output_dir, device="cpu")
    np.testing.assert_allclose(loaded.score(SENTENCES), rewards_of(saved), atol=2e-6)
    assert sharding()  # as before, for the policy


def rewards_of(trainer):
    return RewardModel(trainer.model, trainer.processing_class).score(SENTENCES)


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error_that_says_so(make_model, tokenizer):
    greatest = max(tokenizer(SENTENCES[0])["input_ids"])
    with pytest.raises(ModelError, match=f"the token id {greatest}, and the model's embedding ends at {greatest - 1}"):
        RewardModel(make_model(vocab_size=greatest), tokenizer).score(SENTENCES[:1])
    assert RewardModel(make_model(vocab_size=greatest + 1), tokenizer).score(SENTENCES[:1]).shape == (1,)


# Prompts with completions

CHAT = [{"role": "user", "content": "Is the sky blue?"}]
REPLY = [{"role": "assistant", "content": "Yes, it is."}]


@pytest.mark.parametrize(
    ("prompt", "completion", "whole"),
    [
        ("Is the sky blue?", " Yes.", "Is the sky blue? Yes."),
        (CHAT, REPLY, CHAT + REPLY),
        (CHAT, "Yes, it is.", CHAT + REPLY),
        ("Is the sky blue?", REPLY, CHAT + REPLY),
    ],
)
def test_a_prompt_and_a_completion_are_one_sequence_whatever_their_form(scorer, prompt, completion, whole):
    assert scorer.score([prompt, "x"], [completion, "y"])[0] == pytest.approx(scorer.score([whole])[0], abs=2e-6)


def test_prompts_and_completions_must_be_as_many(scorer):
    with pytest.raises(DataError, match="one of the two ends after 1, and the other goes on"):
        scorer.score(["a", "b"], ["c"])
    with pytest.raises(DataError, match="one of the two ends after 1, and the other goes on"):
        scorer.score(["a"], ["c", "d"])
    with pytest.raises(DataError, match="row 1: expected the completion to be a string or a list of messages, got 5"):
        scorer.score(["a", "b"], ["c", 5])


def test_a_prompt_runs_once_for_all_its_completions(make_model, tokenizer):
    model, prompt = make_model(), "Is the sky blue? " * 12
    seen = []
    model.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    scorer = RewardModel(model, tokenizer)
    completions = [f" Yes, {number}." for number in range(16)]
    alone = np.array([scorer.score([prompt + completion])[0] for completion in completions])
    seen.clear()
    np.testing.assert_allclose(scorer.score([prompt] * 16, completions), alone, atol=2e-6)
    lengths = [len(tokenizer(prompt + completion)["input_ids"]) + 1 for completion in completions]
    assert len(seen) == 1
    assert seen[0] < len(tokenizer(prompt)["input_ids"]) + 16 * 12 < sum(lengths) / 3


def test_a_budget_counts_a_shared_prompt_once_however_its_completions_are_strewn(make_model, tokenizer):
    prompts = [f"Is the {word} dog lazy? " * 8 for word in ("quick", "brown", "blue")]
    asked = prompts * 8
    answers = [f" Yes, {number}." for number in range(len(asked))]
    texts = [prompt + answer for prompt, answer in zip(asked, answers, strict=True)]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    family = len(tokenizer(prompts[0])["input_ids"]) + 8 * 12
    assert sum(lengths) > 3 * 2 * family
    model, seen = make_model(), []
    scorer = RewardModel(model, tokenizer, max_tokens_per_batch=family)
    alone = np.concatenate([scorer.score([text]) for text in texts])
    model.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    np.testing.assert_allclose(scorer.score(asked, answers), alone, atol=2e-6)
    assert max(seen) <= family
    assert sum(seen) <= 4 * family  # a family may be cut once between batches, never strewn


def test_ranking_is_best_first_and_its_probabilities_are_plackett_luces(scorer):
    completions = [" Yes.", " No, sorry.", " Yes.", " It is green!"]
    rewards = scorer.score(["Is it?"] * 4, completions).astype(np.float64)
    ranked = scorer.rank("Is it?", completions)
    assert [each.reward for each in ranked] == sorted(rewards.tolist(), reverse=True)
    assert [completions[each.index] for each in ranked] == [each.completion for each in ranked]
    places = [each.index for each in ranked]
    assert places.index(0) + 1 == places.index(2)  # equals, in the order given
    expected = np.exp(rewards) / np.exp(rewards).sum()
    assert [each.win_probability for each in ranked] == pytest.approx([expected[n] for n in places], rel=1e-5)
    assert scorer.best_of("Is it?", completions) == ranked[0].completion
    two = scorer.rank("Is it?", completions[:2])
    probability = scorer.preference_probability("Is it?", two[0].completion, two[1].completion)
    assert probability == pytest.approx(two[0].win_probability, rel=1e-5)
    assert 0.5 < probability < 1
    assert scorer.rank("Is it?", []) == []
    with pytest.raises(DataError, match="one or more completions"):
        scorer.best_of("Is it?", [])


@pytest.mark.parametrize(("far", "probability"), [([1000.0, -1000.0], 1.0), ([-1000.0, 1000.0], 0.0)])
def test_probabilities_of_far_rewards_do_not_overflow(scorer, monkeypatch, far, probability):
    monkeypatch.setattr(scorer.engine, "score", lambda ids, _: np.array(far, dtype=np.float32)[: len(ids)])
    with np.errstate(all="raise", under="ignore"):
        assert scorer.preference_probability("a", "b", "c") == probability
        assert [each.win_probability for each in scorer.rank("a", ["b", "c"])] == [1.0, 0.0]


# Streams and long inputs


def test_a_stream_is_read_in_pieces_and_scored_before_its_end(scorer, monkeypatch):
    monkeypatch.setattr(module, "_WINDOW", 3)
    read = []

    def sentences():
        for text in SENTENCES:
            read.append(text)
            yield text

    stream = scorer.stream(sentences())
    first = next(stream)
    assert len(read) == 3
    rewards = [first, *stream]
    assert rewards == pytest.approx(scorer.score(SENTENCES).tolist(), abs=2e-6)
    assert scorer.score(iter(SENTENCES)) == pytest.approx(rewards, abs=2e-6)
    assert scorer.score(iter(["Is it?"] * 4), (" Yes", " No", " Yes", " No")).shape == (4,)


def test_a_bad_sequence_of_a_later_piece_is_named_by_its_number(scorer, monkeypatch):
    monkeypatch.setattr(module, "_WINDOW", 3)
    with pytest.raises(DataError, match="row 7"):
        scorer.score([*SENTENCES[:7], 5])


def test_what_is_too_long_is_cut_from_the_left_and_counted(make_model, new_tokenizer, caplog):
    tokenizer = new_tokenizer(bos="<s>")
    scorer = RewardModel(make_model(vocab_size=330), tokenizer, max_length=10)
    long, ids = "Is the sky blue? " * 9 + "Yes.", []
    ids = tokenizer(long)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        expected = scorer.model(input_ids=torch.tensor([ids[:1] + ids[-9:]])).logits.item()
    with caplog.at_level("WARNING", logger="plaudit"):
        rewards = scorer.score(["Yes", long])
    assert rewards[1] == pytest.approx(expected, abs=2e-6)
    assert scorer.cut == 1
    assert "1 of 2 sequences had more than 10 tokens and were cut from the left" in caplog.text
    strict = RewardModel(make_model(vocab_size=330), tokenizer, max_length=10, overlong="error")
    with pytest.raises(DataError, match="row 1 has .* tokens, more than 10"):
        strict.score(["Yes", long])


@pytest.mark.parametrize(("config", "most"), [(BertConfig, 20), (RobertaConfig, 18)])
def test_an_encoder_keeps_the_token_that_it_reads_and_its_positions_suffice(new_tokenizer, config, most):
    tokenizer = new_tokenizer(bos="<s>")
    tokenizer.bos_token, tokenizer.cls_token = None, "<s>"
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        config(**SMALL, max_position_embeddings=20, pad_token_id=1 if most == 18 else 0)
    )
    long = "Is the sky blue? " * 9 + "Yes."
    ids = [*tokenizer(long)["input_ids"], tokenizer.eos_token_id]
    scorer = RewardModel(model, tokenizer)
    assert scorer.max_length == most
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids[:1] + ids[1 - most :]])).logits.item()
    assert scorer.score([long]) == pytest.approx([expected], abs=1e-6)


def test_without_a_bos_nothing_of_the_beginning_is_kept(make_model, tokenizer):
    scorer = RewardModel(make_model(), tokenizer, max_length=10)
    long = "Two plus two? " + "Is the sky blue? " * 9 + "Yes."
    (ids,) = scorer.token_ids([long])
    assert ids == [*tokenizer(long)["input_ids"], tokenizer.eos_token_id][-10:]


def test_a_model_without_positions_takes_any_length(tokenizer):
    set_seed(0)
    config = BloomConfig(vocab_size=330, hidden_size=32, n_layer=2, n_head=4, num_labels=1)
    scorer = RewardModel(AutoModelForSequenceClassification.from_config(config), tokenizer)
    assert scorer.max_length is None
    assert len(set(scorer.score(["Is it? " * 100 + end for end in ("Yes.", "No.")]).round(4))) == 2
    assert scorer.cut == 0


def test_a_model_with_few_positions_is_not_asked_for_more(make_model, tokenizer):
    assert RewardModel(make_model(max_position_embeddings=20), tokenizer).max_length == 20


def test_options_that_cannot_be_are_refused(make_model, tokenizer):
    with pytest.raises(ConfigError, match="overlong: expected one of truncate, error, got 'drop'"):
        RewardModel(make_model(), tokenizer, overlong="drop")
    with pytest.raises(ConfigError, match="max_length: expected a whole number above 1, got 1"):
        RewardModel(make_model(), tokenizer, max_length=1)  # which would leave the BOS alone
    with pytest.raises(ConfigError, match=r"no option 'device_map'.*model_init_kwargs=\{'device_map': ...\}"):
        RewardModel.from_pretrained("nowhere", device_map="auto")  # before anything is loaded
    with pytest.raises(ConfigError, match="max_tokens_per_batch"):
        RewardModel(make_model(), tokenizer, max_tokens_per_batch=0)
    with pytest.raises(ConfigError, match="normalize: the model was saved without"):
        RewardModel(make_model(), tokenizer).score(["a"], normalize=True)
    with pytest.raises(ConfigError, match="normalize: the model was saved without"):
        RewardModel(make_model(), tokenizer, scale=(1.0, 0.0)).normalization()  # all rewards were the same


def test_progress_is_told_batch_by_batch_as_far_as_a_stream_has_come(make_model, tokenizer, monkeypatch):
    told, total = [], []

    class Bar:
        def __init__(self, **options):
            total.append(options["total"])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            told.append(count)

    monkeypatch.setattr(module, "tqdm", Bar)
    scorer = RewardModel(make_model(), tokenizer, max_tokens_per_batch=60)
    scorer.score(SENTENCES)
    assert len(told) > 1
    assert sum(told) == len(SENTENCES)
    scorer.score(iter(SENTENCES))
    assert total == [len(SENTENCES), None]


def test_keys_that_arrow_filled_with_none_are_not_there(scorer):
    scorer.tokenizer.chat_template += "{% for m in messages %}{{ '!' if 'tool_calls' in m }}{% endfor %}"
    messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    padded, called = ([message | {"tool_calls": calls} for message in messages] for calls in (None, []))
    plain = scorer.score([messages])[0]
    assert scorer.score([padded])[0] == plain
    assert scorer.score([called])[0] != pytest.approx(plain, abs=1e-3)


def test_a_conversation_may_end_with_the_answer_of_a_tool(scorer):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
    answers = [[{"role": "user", "content": "2+2?"}, call, {"role": "tool", "content": each}] for each in "45"]
    four, five = scorer.score(answers)
    assert four != pytest.approx(five, abs=1e-3)


@pytest.fixture
def in_memory_of(scorer, monkeypatch):
    """A device with room for so many tokens; returns the sizes of the batches that it ran."""

    def limit(tokens, *, compared=True):
        run, sizes = scorer.engine._run, []

        def limited(sequences, layout):
            if sum(map(len, sequences)) > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            sizes.append(len(sequences))
            return run(sequences, layout)

        if compared:
            scorer.score(SENTENCES[:1])
        monkeypatch.setattr(scorer.engine, "_run", limited)
        return sizes

    return limit


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_batches_that_do_not_fit_into_memory_become_smaller_for_good(scorer, in_memory_of, layout, caplog):
    expected = scorer.score(SENTENCES)
    scorer.engine.layout = layout
    sizes = in_memory_of(100)
    told = []
    with caplog.at_level("WARNING", logger="plaudit"):
        rewards = scorer.engine.score(scorer.token_ids(SENTENCES), told.append)
    np.testing.assert_allclose(rewards, expected, atol=2e-6)
    assert told == sizes
    assert sum(sizes) == len(SENTENCES)
    assert 1 < max(sizes) < len(SENTENCES)
    budget = scorer.engine.max_tokens_per_batch
    assert f"does not fit into the memory of cpu: going on with max_tokens_per_batch={budget}" in caplog.text
    caplog.clear()
    scorer.score(SENTENCES)
    assert not caplog.text
    assert scorer.engine.max_tokens_per_batch == budget


def test_layouts_are_compared_on_short_sequences_where_whole_ones_do_not_fit(make_model, scorer, in_memory_of):
    long = ["Is the sky blue? " * n for n in (24, 25, 26)]
    expected = RewardModel(make_model(), scorer.tokenizer).score(long)
    assert sum(map(len, scorer.token_ids(long))) > 310
    sizes = in_memory_of(310, compared=False)
    np.testing.assert_allclose(scorer.score(long), expected, atol=2e-6)
    assert scorer.engine.layout == "forest"
    assert max(sizes) > 3  # the sequences that were made to share tokens ran too


def test_a_sequence_that_does_not_fit_into_memory_alone_is_an_error_with_ways_out(scorer, in_memory_of):
    in_memory_of(20)
    with pytest.raises(ModelError, match=r"a sequence of \d+ tokens alone does not fit.*Lower `max_length`"):
        scorer.score(SENTENCES)


# Beside other code


def test_threads_that_share_a_model_take_turns(make_model, tokenizer):
    """In bf16 the first call widens the weights for a while: another one would meet them half way."""
    expected = RewardModel(make_model().to(torch.bfloat16), tokenizer).score(SENTENCES)
    scorer = RewardModel(make_model().to(torch.bfloat16), tokenizer)
    compare, compared = scorer.engine._compare, []

    def slowly(arrays):
        compared.append(len(arrays))
        time.sleep(0.1)
        return compare(arrays)

    scorer.engine._compare = slowly
    with ThreadPoolExecutor(4) as pool:
        rewards = list(pool.map(scorer.score, [SENTENCES] * 4))
    assert compared == [len(SENTENCES)]
    for each in rewards:
        np.testing.assert_array_equal(each, expected)


def test_autocast_around_a_call_changes_no_reward(scorer):
    expected = scorer.score(SENTENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(scorer.score(SENTENCES), expected)


def test_a_model_that_is_being_trained_is_scored_without_dropout_and_trains_on(make_model, tokenizer):
    scorer = RewardModel(make_model(attention_dropout=0.5), tokenizer)
    expected = scorer.score(SENTENCES)
    scorer.model.train()
    scorer.model.model.layers[0].eval()  # one that someone has frozen
    np.testing.assert_array_equal(scorer.score(SENTENCES), expected)
    assert scorer.model.training
    assert scorer.model.model.layers[1].self_attn.training
    assert not scorer.model.model.layers[0].self_attn.training


# Which layout


def test_a_model_that_cannot_run_forests_is_scored_padded(tokenizer):
    set_seed(0)
    config = BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_labels=1)
    scorer = RewardModel(AutoModelForSequenceClassification.from_config(config), tokenizer, max_tokens_per_batch=60)
    assert scorer.engine.layout == "padded"
    alone = np.concatenate([scorer.score([text]) for text in SENTENCES])
    np.testing.assert_allclose(scorer.score(SENTENCES), alone, atol=2e-6)


def test_layouts_that_differ_are_found_out_and_padded_it_is(scorer, monkeypatch, caplog):
    run = scorer.engine._run
    monkeypatch.setattr(scorer.engine, "_run", lambda ids, layout: run(ids, "padded") + (layout == "forest"))
    with caplog.at_level("WARNING", logger="plaudit"):
        rewards = scorer.score(SENTENCES)
    assert scorer.engine.layout == "padded"
    assert "scoring padded batches, since on 6 sequences the rewards of the two layouts differ" in caplog.text
    np.testing.assert_allclose(rewards, np.concatenate([scorer.score([text]) for text in SENTENCES]), atol=2e-6)


def test_a_wrong_mask_is_found_out_though_the_first_call_has_but_one_sequence(scorer, monkeypatch, caplog):
    def careless(sequences, rows):  # each token sees all before it: right for one sequence, and for no two
        inputs = forest_inputs(sequences, rows)
        return inputs | {"subtree_end": torch.full_like(inputs["subtree_end"], inputs["subtree_end"].shape[1])}

    monkeypatch.setattr("plaudit.engine.forest_inputs", careless)
    expected = RewardModel(scorer.model, scorer.tokenizer)
    expected.engine.layout, expected.engine._is_compared = "padded", True
    with caplog.at_level("WARNING", logger="plaudit"):
        np.testing.assert_allclose(scorer.score(SENTENCES[:1]), expected.score(SENTENCES[:1]), atol=2e-6)
    assert "the rewards of the two layouts differ" in caplog.text
    np.testing.assert_allclose(scorer.score(SENTENCES), expected.score(SENTENCES), atol=2e-6)


GEMMA = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (ModernBertDecoderConfig(**SMALL, pad_token_id=1, local_attention=64), "padded"),  # it looks for the pad token
        (T5GemmaConfig(encoder=GEMMA, decoder=GEMMA, num_labels=1, pad_token_id=1), "padded"),
        (FNetConfig(**{name: SMALL[name] for name in SMALL if "heads" not in name}), "alone"),  # mixes the padding in
    ],
    ids=["a decoder with a head of its own", "an encoder and a decoder", "an encoder without a mask"],
)
@pytest.mark.parametrize("first", [SENTENCES[:1], SENTENCES], ids=["one first", "all at once"])
def test_where_padding_would_change_rewards_it_does_not(tokenizer, config, layout, first):
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in SENTENCES]
    with torch.inference_mode():
        alone = [model(**padded_inputs([each], 0)).logits.item() for each in ids]
    assert np.std(alone) > 0.01
    scorer = RewardModel(model, tokenizer)
    scorer.score(first)
    np.testing.assert_allclose(scorer.score(SENTENCES), alone, atol=1e-5 * np.std(alone) + 1e-6)
    assert scorer.engine.layout == layout


class Minus(Qwen3ForSequenceClassification):
    """As a checkpoint with code of its own may read its head elsewhere, and with another sign."""

    def forward(self, input_ids, attention_mask=None):
        hidden = self.model(input_ids, attention_mask=attention_mask)[0]
        return SequenceClassifierOutput(logits=-self.score(hidden[:, 0]) - hidden[:, 1, :1])


class Same(Qwen3ForSequenceClassification):
    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options)


class Five(Qwen3ForSequenceClassification):
    def forward(self, input_ids, attention_mask=None):
        return SequenceClassifierOutput(logits=torch.zeros(len(input_ids), 5))


@pytest.mark.parametrize(("kind", "layout"), [(Minus, "padded"), (Same, "forest")])
def test_a_model_that_ships_its_own_forward_scores_as_that_does(make_model, tokenizer, caplog, kind, layout):
    model = make_model().eval()
    model.__class__ = kind
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in SENTENCES]
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([each])).logits.item() for each in ids]
    scorer = RewardModel(model, tokenizer)
    with caplog.at_level("WARNING", logger="plaudit"):
        np.testing.assert_allclose(scorer.score(SENTENCES), alone, atol=2e-6)
    assert scorer.engine.layout == layout
    assert ("scoring with the forward that Minus ships" in caplog.text) == (kind is Minus)
    assert pickle.loads(pickle.dumps(scorer)).score(SENTENCES) == pytest.approx(alone, abs=2e-6)


def test_a_model_whose_own_forward_gives_no_single_reward_is_refused(make_model, tokenizer):
    model = make_model()
    model.__class__ = Five
    with pytest.raises(ModelError, match=r"Five: expected `logits` with one reward for each of 1 sequences, got .*5\]"):
        RewardModel(model, tokenizer).score(SENTENCES)


def test_a_changed_template_is_warned_of(trainer, caplog):
    folder = trainer.args.output_dir
    with caplog.at_level("WARNING", logger="plaudit"):
        RewardModel.from_pretrained(folder, device="cpu")
        assert not caplog.text
        Path(folder, "chat_template.jinja").write_text("{{ messages }}")
        RewardModel.from_pretrained(folder, device="cpu")
    assert "its chat template is not the one it was trained with" in caplog.text
