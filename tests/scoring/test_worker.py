"""Chunks in, scored chunks out, with a tiny model."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, set_seed

from plaudit import RewardModel
from plaudit.data.reader import Unreadable
from plaudit.engine import ScoringEngine
from plaudit.errors import ConfigError, ModelError
from plaudit.scoring.reward_columns import RewardColumns
from plaudit.scoring.worker import ScoringConfig, Worker


@pytest.fixture
def make_worker(model_folder):
    def make(model=model_folder, **options):
        return Worker(ScoringConfig(str(model), **{"device": "cpu", "skip_bad_rows": True} | options))

    return make


@pytest.fixture
def loaded(model_folder):
    return RewardModel.from_pretrained(model_folder, device="cpu")


def texts(count):
    return [{"text": f"Is it {number}? " + "Yes, the sky. " * (number % 5)} for number in range(count)]


def numbers_of(rejected):
    return [row["row"] for row in rejected]


def close(rewards):
    return pytest.approx(rewards, abs=3e-6)  # float32, in another batch


def test_rewards_are_those_of_the_reward_model_in_as_few_digits_as_tell_them(make_worker, loaded, chunk_of):
    scored = make_worker().score(chunk_of(texts(6)))
    expected = loaded.score([row["text"] for row in texts(6)])
    written = [row["reward"] for row in scored.rows]
    assert np.array_equal(np.float32(written), expected)
    assert max(len(str(reward)) for reward in written) <= 13


def test_options_of_the_chat_template_reach_it(make_worker, loaded, chunk_of):
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]
    rows = [{"messages": chat}, {"messages": chat, "tools": [{"name": "add"}]}]
    rewards = [row["reward"] for row in make_worker().score(chunk_of(rows)).rows]
    assert rewards == close(loaded.score([chat, chat], options=[{}, {"tools": [{"name": "add"}]}]).tolist())
    assert rewards[0] != close(rewards[1])


def test_normalized_rewards_use_the_scale_that_was_saved_with_the_model(make_worker, chunk_of):
    raw, normal = (
        [row["reward"] for row in make_worker(normalize=normalize).score(chunk_of(texts(3))).rows]
        for normalize in (False, True)
    )
    assert normal == close([(reward - 1.5) / 0.25 for reward in raw])


@pytest.mark.parametrize(
    "options", [{}, {"aggregate": "min"}, {"aggregate": "mean-std", "k": 2.0}, {"normalize": True}]
)
def test_an_ensemble_gives_rewards_with_their_deviations(make_worker, chunk_of, ensemble_folder, options):
    pair = {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No, the sky is blue."}
    group = {"prompt": "Is it?", "completions": [" Yes.", " No.", " It is the dog."]}
    scored = make_worker(ensemble_folder, **options).score(chunk_of([pair, group])).rows
    model = RewardModel.from_pretrained(ensemble_folder, device="cpu")
    whole = ["Is it?" + each for each in (pair["chosen"], pair["rejected"], *group["completions"])]
    rewards, stds = model.score(whole, return_std=True, **options)
    assert list(scored[0])[3:] == ["chosen_reward", "rejected_reward", "chosen_reward_std", "rejected_reward_std"]
    assert list(scored[0].values())[3:] == close([*rewards[:2], *stds[:2]])
    assert list(scored[1])[2:] == ["reward", "reward_std"]
    assert scored[1]["reward"] == close(rewards[2:])
    assert scored[1]["reward_std"] == close(stds[2:])
    (best,) = make_worker(ensemble_folder, columns=RewardColumns(best_of=True), **options).score(chunk_of([group])).rows
    place = int(np.argmax(rewards[2:]))
    assert best["completion"] == group["completions"][place]
    assert (best["reward"], best["reward_std"]) == (close(rewards[2 + place]), close(stds[2 + place]))


def test_members_that_were_never_measured_give_rewards_alone(make_worker, chunk_of, unmeasured_folder):
    (row,) = make_worker(unmeasured_folder).score(chunk_of([{"text": "Yes, the sky"}])).rows
    assert row.keys() == {"text", "reward"}
    with pytest.raises(ConfigError, match="saved without them"):
        make_worker(unmeasured_folder, aggregate="min")


def test_a_column_of_deviations_is_in_the_way_of_an_ensemble_alone(make_worker, chunk_of, ensemble_folder):
    rows = [{"text": "Is it? Yes.", "reward_std": 1}]
    assert make_worker().score(chunk_of(rows)).rows[0]["reward_std"] == 1
    with pytest.raises(ConfigError, match="row 0 has a column 'reward_std' already"):
        make_worker(ensemble_folder).score(chunk_of(rows))


def test_a_conservative_reward_of_a_single_model_is_refused_before_any_row(make_worker):
    with pytest.raises(ConfigError, match="aggregate='min': .* is a single model"):
        make_worker(aggregate="min")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aggregate": "median"}, "aggregate: expected one of mean, min"),
        ({"aggregate": "min", "k": -1.0}, "k: expected a finite number of at least 0"),
        ({"aggregate": "min", "normalize": True}, "normalize: .* standard deviations of the rewards already"),
    ],
)
def test_options_of_a_conservative_reward_are_checked_before_a_model_is_loaded(options, said):
    with pytest.raises(ConfigError, match=said):
        ScoringConfig("there is no such model", **options)


def test_a_model_without_a_scale_cannot_normalize(make_model, tokenizer, make_worker, tmp_path):
    model = make_model(pad_token_id=0)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="normalize: the model was saved without"):
        make_worker(tmp_path, normalize=True)


def test_a_model_that_is_not_there_is_an_error(make_worker, tmp_path):
    with pytest.raises((ModelError, OSError)):
        make_worker(tmp_path / "modle")


def test_the_threads_of_the_job_are_set(make_worker):
    before = torch.get_num_threads()
    try:
        make_worker(threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# The same layout in every process


def test_sequences_with_a_common_prefix_are_scored_before_any_row(make_worker, monkeypatch):
    scored, plain = [], ScoringEngine.score

    def noted(engine, ids, *more):
        scored.append([len(each) for each in ids])
        return plain(engine, ids, *more)

    monkeypatch.setattr(ScoringEngine, "score", noted)
    make_worker(model_options={"overlong": "error", "max_length": 40})
    assert scored == [[40, 40, 40]]


def test_a_model_with_few_positions_can_be_loaded(make_worker, tokenizer, chunk_of, tmp_path):
    set_seed(0)
    config = GPT2Config(vocab_size=330, n_positions=24, n_embd=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0)
    for part in (AutoModelForSequenceClassification.from_config(config), tokenizer):
        part.save_pretrained(tmp_path)
    assert len(make_worker(tmp_path).score(chunk_of([{"text": "Is it? Yes."}])).rows) == 1


# Rows that cannot be scored


@pytest.fixture
def refusing(make_model, tokenizer, tmp_path):
    """A model whose chat template refuses a role."""
    refusal = "{% if messages[0]['role'] == 'ghost' %}{{ raise_exception('no ghosts') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    for part in (make_model(pad_token_id=0), tokenizer):
        part.save_pretrained(tmp_path / "refusing")
    return tmp_path / "refusing"


BAD = [
    (Unreadable("line 2: expected a JSON object, got list", "[1]"), "row 8: line 2: expected a JSON object, got list"),
    ({"chosen": "Is it?"}, "row 8: expected"),
    ({"text": "Is it? " + "Yes. " * 200}, "row 8, column 'text' has 806 tokens, more than 256"),
    ({"text": "half \ud800"}, "row 8"),
    (
        {"messages": [{"role": "ghost", "content": "Boo"}, {"role": "assistant", "content": "No."}]},
        "the tokenizer's chat template refuses it",
    ),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_row_is_set_aside_with_its_number_its_reason_and_its_content(
    make_worker, refusing, chunk_of, bad, reason
):
    worker = make_worker(refusing, model_options={"overlong": "error"})
    good = [texts(1)[0], *texts(3)]
    scored = worker.score(chunk_of([good[0], bad, *good[1:]], first=7))
    (rejected,) = scored.rejected
    assert rejected["row"] == 8
    assert reason in rejected["reason"]
    assert rejected["content"] == getattr(bad, "content", bad)
    assert scored.rows == worker.score(chunk_of(good)).rows


def test_rows_that_are_set_aside_stay_in_order_whatever_is_wrong_with_them(make_worker, chunk_of, monkeypatch):
    worker, plain = make_worker(), ScoringEngine.score_columns

    def last_is_infinite(engine, ids, *more):
        rewards = plain(engine, ids, *more)
        rewards[-1] = np.inf
        return rewards

    monkeypatch.setattr(ScoringEngine, "score_columns", last_is_infinite)
    half, broken = {"text": "half \ud800"}, Unreadable("line 4 is not valid JSON", "{")
    scored = worker.score(chunk_of([half, *texts(2), broken, half, {"text": ""}, *texts(1), broken]))
    assert numbers_of(scored.rejected) == [0, 3, 4, 5, 6, 7]
    assert len(scored.rows) == 2


def test_rewards_that_are_not_finite_are_no_rewards(make_worker, chunk_of, monkeypatch):
    worker = make_worker()
    monkeypatch.setattr(
        ScoringEngine, "score_columns",
        lambda _, ids, *__: np.float32([[1.5 if len(each) < 12 else np.nan] for each in ids]),
    )  # fmt: skip
    scored = worker.score(chunk_of(texts(3)))
    assert [row["reward"] for row in scored.rows] == [1.5]
    assert numbers_of(scored.rejected) == [1, 2]
    assert scored.rejected[0]["reason"] == "row 1: expected finite rewards, got [nan]. Try --dtype float32."


def test_unless_bad_rows_are_skipped_the_model_does_not_run_on_a_chunk_with_one(make_worker, chunk_of, monkeypatch):
    worker = make_worker(skip_bad_rows=False)
    monkeypatch.setattr(ScoringEngine, "score_columns", lambda *_: pytest.fail("the model ran"))
    for bad in ({"text": ""}, {"text": "half \ud800"}):
        scored = worker.score(chunk_of([*texts(3), bad]))
        assert (scored.rows, numbers_of(scored.rejected)) == ([], [3])


def test_a_column_of_rewards_that_is_there_ends_the_run(make_worker, chunk_of):
    with pytest.raises(ConfigError, match="row 1 has a column 'r' already"):
        make_worker(columns=RewardColumns(reward_column="r")).score(
            chunk_of([{"text": "Yes."}, {"text": "No.", "r": 1}])
        )


# What is counted


def test_tokens_are_those_of_the_sequences(make_worker, chunk_of, tokenizer):
    rows = [{"text": "Is it? Yes."}, {"prompt": "Is it?", "completions": [" Yes.", " No."]}]
    sequences = ["Is it? Yes.", "Is it? Yes.", "Is it? No."]
    scored = make_worker().score(chunk_of(rows))
    assert scored.tokens == sum(len(tokenizer(text)["input_ids"]) + 1 for text in sequences)  # an EOS each


def test_sequences_that_are_truncated_are_counted_once(make_worker, chunk_of):
    long = {"text": "Is it? " + "Yes. " * 200}
    rows = [long, *texts(2), {"text": "half \ud800"}, long]  # for which each row is tried again alone
    worker = make_worker(model_options={"max_length": 60})
    assert worker.score(chunk_of(rows)).truncated == 2
    assert worker.score(chunk_of(rows[:3])).truncated == 1


def test_each_batch_is_reported_with_the_fraction_that_is_scored(make_worker, chunk_of):
    fractions = []
    make_worker(model_options={"max_tokens_per_batch": 32}).score(chunk_of(texts(12)), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert len(fractions) > 2
