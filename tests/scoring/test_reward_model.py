"""`RewardModel`: sequences, prompts with completions, streams and long inputs."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    RobertaConfig,
    set_seed,
)

from plaudit import RewardModel
from plaudit.errors import ConfigError, DataError
from plaudit.quickstart.synthetic import PreferenceWorld


def texts_of(rows, side="chosen"):
    return [row["prompt"] + row[side] for row in rows]


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


def test_500_conversations_score_as_plain_transformers_scores_each_alone(make_model, tokenizer, tmp_path):
    """Of many lengths, the responses of a prompt far apart in the list, rewards of the size that training gives."""
    pairs = PreferenceWorld(0).pairs(250, "test")
    asked = [[{"role": "user", "content": each.prompt * (1 + n % 7)}] for n, each in enumerate(pairs)]
    replies = [each.chosen for each in pairs] + [each.rejected for each in pairs]
    told = [[{"role": "assistant", "content": reply}] for reply in replies]
    conversations = [prompt + reply for prompt, reply in zip(asked * 2, told, strict=True)]
    model = make_model(max_position_embeddings=2048, num_hidden_layers=1)
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


def test_scoring_needs_no_pad_token(make_model, new_tokenizer, tokenizer):
    bare = new_tokenizer()
    bare.pad_token = None
    assert RewardModel(make_model(), bare).score(SENTENCES) == pytest.approx(
        RewardModel(make_model(), tokenizer).score(SENTENCES), abs=2e-6
    )


@pytest.mark.parametrize("single", ["a text", [{"role": "user", "content": "Hi"}]])
def test_a_single_sequence_is_not_taken_for_many(scorer, single):
    with pytest.raises(DataError, match=r"Wrap it: score\(\[\.\.\.\]\)"):
        scorer.score(single)
    with pytest.raises(DataError, match=r"got a single prompt. For one prompt with several completions: rank\("):
        scorer.score(single, ["a", "b"])


def test_rows_are_not_taken_for_messages(scorer):
    with pytest.raises(DataError, match="row 0: expected a string or a list of messages, got dict {'prompt'"):
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
    monkeypatch.setattr(
        scorer.engine, "score_columns", lambda ids, _: np.array(far, dtype=np.float32)[: len(ids), None]
    )
    with np.errstate(all="raise", under="ignore"):
        assert scorer.preference_probability("a", "b", "c") == probability
        assert [each.win_probability for each in scorer.rank("a", ["b", "c"])] == [1.0, 0.0]


# Streams and long inputs


def test_a_stream_is_read_in_chunks_and_scored_before_its_end(scorer):
    scorer.chunk_size = 3
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


def test_a_bad_sequence_of_a_later_chunk_is_named_by_its_number(scorer):
    scorer.chunk_size = 3
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
    assert scorer.truncated == 1
    assert "1 of 2 sequences had more than 10 tokens and were truncated from the left" in caplog.text
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
    assert scorer.truncated == 0


def test_importing_it_loads_neither_peft_nor_the_modelling_code_of_transformers():
    code = "import sys; from plaudit import RewardModel; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"peft", "accelerate", "datasets", "bitsandbytes", "transformers.modeling_utils"}.intersection(loaded)


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

    monkeypatch.setattr("plaudit.scoring.base_reward_model.tqdm", Bar)
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


GEMMA = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "pad_token_id": 1}
