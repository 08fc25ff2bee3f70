"""`plaudit.evaluate`: figures worked by hand on rewards that a test chooses, and real models from end to end."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import plaudit
from plaudit import RewardModel
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.evaluation.evaluate import mean_of
from plaudit.evaluation.figures import METRICS
from plaudit.metrics import wilson_interval

COUNTS = ("rows", "prompts", "comparisons", "ties", "identical")


class Fixed(RewardModel):
    """A reward for each text, by a function."""

    def __init__(self, reward):
        self.reward, self.cut = reward, 0

    def score(self, sequences, **_):
        return np.array([self.reward(sequence) for sequence in sequences], dtype=np.float32)


def number_in(text):
    """The reward that a row says its response has."""
    return float(text.split("=")[1])


def pair(prompt, chosen, rejected, **columns):
    return {"prompt": prompt, "chosen": f" ={chosen}", "rejected": f" ={rejected}"} | columns


def random_rows(size=120, seed=0):
    draw = np.random.default_rng(seed)
    values = draw.integers(-32, 32, (size, 2)) / 8 + [0.75, 0]  # in float32 exactly, also moved and doubled
    return [
        pair(f"Q{n // 3}", *value, subset="even" if n % 2 else "odd", weight=float(n % 4 + 1))
        for n, value in enumerate(values.tolist())
    ]


def test_the_figures_are_those_worked_by_hand():
    rows = [
        pair("a", 2.0, 1.0, subset="x"),  # right; equally long
        pair("b", 1.0, 1.0, subset="x") | {"rejected": "  =1.0"},  # equal rewards; the shorter is chosen
        pair("b", -1.5, 0.5, subset="y"),  # wrong; the longer is chosen
        pair("c", 0, 0.5, subset="y", tie=True),
        pair("d", 3, 3, subset="y"),
    ]
    result = plaudit.evaluate(Fixed(number_in), rows)
    figures = result.overall
    assert list(figures) == list(METRICS)
    assert [figures[name] for name in COUNTS] == [5, 2, 3, 1, 1]
    assert figures["accuracy"] == pytest.approx(1.5 / 3)
    assert figures["reward_ties"] == 1
    assert figures["longer_wins"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert figures["shorter_wins"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert figures["margin"] == pytest.approx((1 + 0 - 2) / 3)
    losses = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(2))]
    assert figures["log_loss"] == pytest.approx(sum(losses) / 3)
    confidences = [1 / (1 + math.exp(-1)), 0.5, 1 / (1 + math.exp(-2))]
    assert figures["calibration_error"] == pytest.approx(sum(confidences) / 3 - 0.5)
    assert result.calibration == [
        {"confidence": pytest.approx(sum(confidences) / 3), "accuracy": pytest.approx(0.5), "share": 1.0}
    ]
    assert figures["temperature"] == math.inf
    assert figures["calibrated_log_loss"] == pytest.approx(math.log(2))
    # 1, 0, -2 and -1, 0, 2 against 0, -1, 1 and 0, 1, -1: ranks 5 3.5 1 2 3.5 6 and 3.5 1.5 5.5 3.5 5.5 1.5.
    assert figures["length_correlation"] == pytest.approx(-10 / math.sqrt(17 * 16))
    rewards = [2, 1, 1, 1, -1.5, 0.5, 0, 0.5, 3, 3]
    assert figures["mean_reward"] == pytest.approx(np.mean(rewards))
    assert figures["std_reward"] == pytest.approx(np.std(rewards))
    assert (figures["min_reward"], figures["max_reward"]) == (-1.5, 3)
    assert {name: [each[c] for c in COUNTS] for name, each in result.subsets.items()} == {
        "x": [2, 2, 2, 0, 0],
        "y": [3, 1, 1, 1, 1],
    }
    assert result.subsets["x"]["accuracy"] == 0.75
    assert result.subsets["x"]["min_reward"] == 1
    assert result.subsets["y"]["mean_reward"] == pytest.approx(np.mean(rewards[4:]))
    assert (result.subsets["y"]["accuracy_low"], result.subsets["y"]["accuracy_high"]) == wilson_interval(0, 1)


def test_a_group_counts_as_one_pair_does():
    group = {"prompt": "g", "completions": [" =3", " =2", " =1"], "ranks": [0, 1, 2]}
    figures = plaudit.evaluate(Fixed(number_in), [group, pair("p", 0, 1)]).overall
    assert figures["comparisons"] == 4
    assert figures["accuracy"] == pytest.approx(1 / 2)
    assert figures["margin"] == pytest.approx((4 / 3 - 1) / 2)
    assert figures["mean_reward"] == pytest.approx(7 / 5)  # each response once


def test_soft_labels_count_for_the_better_one_and_as_shares_in_the_loss():
    rows = [pair("a", 0, 1, label=0.25), pair("b", 5, 0, label=0.5)]
    figures = plaudit.evaluate(Fixed(number_in), rows).overall
    assert (figures["comparisons"], figures["accuracy"], figures["margin"]) == (2, 1.0, 1.0)
    better, worse = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    undecided = (math.log(1 + math.exp(-5)) + math.log(1 + math.exp(5))) / 2
    assert figures["log_loss"] == pytest.approx((0.75 * better + 0.25 * worse + undecided) / 2)


def test_where_nobody_prefers_anything_there_is_no_accuracy_but_a_loss():
    result = plaudit.evaluate(Fixed(number_in), [pair("a", 0, 1, label=0.5)])
    assert math.isnan(result.overall["accuracy"])
    assert result.overall["log_loss"] > math.log(2)
    assert result.to_dict()["overall"]["accuracy"] is None


def test_a_subset_without_a_comparison_has_no_figures():
    rows = [pair("a", 1, 0, subset="x"), pair("b", 0, 1, subset="ties", tie=True), pair("c", 1, 0)]
    result = plaudit.evaluate(Fixed(number_in), rows)
    assert list(result.subsets) == ["x"]
    assert (result.overall["rows"], result.overall["ties"]) == (3, 1)


def test_the_interval_takes_the_rows_of_a_prompt_together():
    apart = [pair(f"Q{n}", int(n < 280), 0.5) for n in range(400)]
    together = [row | {"prompt": f"Q{n // 100}"} for n, row in enumerate(apart)]
    wide, narrow = (plaudit.evaluate(Fixed(number_in), rows) for rows in (together, apart))
    assert wide.overall["accuracy"] == narrow.overall["accuracy"] == 0.7
    assert (narrow.overall["accuracy_low"], narrow.overall["accuracy_high"]) == wilson_interval(0.7, 400)
    assert wide.overall["accuracy_high"] - wide.overall["accuracy_low"] > 0.6


# What must and must not change the figures


def test_swapping_chosen_and_rejected_turns_all_verdicts_round():
    rows = random_rows()
    forth = plaudit.evaluate(Fixed(number_in), rows).overall
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    back = plaudit.evaluate(Fixed(number_in), swapped).overall
    for name in ("accuracy", "longer_wins", "shorter_wins"):
        assert back[name] == pytest.approx(1 - forth[name])
    assert back["accuracy_low"] == pytest.approx(1 - forth["accuracy_high"])
    assert back["margin"] == pytest.approx(-forth["margin"])
    assert forth["temperature"] < math.inf == back["temperature"]
    for name in ("mean_reward", "std_reward", "reward_ties", "length_correlation"):  # nothing that people said
        assert back[name] == pytest.approx(forth[name])


def test_turning_the_rewards_round_turns_the_correlation_with_length_round():
    rows = random_rows()
    forth = plaudit.evaluate(Fixed(number_in), rows).overall
    back = plaudit.evaluate(Fixed(lambda text: -number_in(text)), rows).overall
    assert abs(forth["length_correlation"]) > 0.1
    assert back["length_correlation"] == pytest.approx(-forth["length_correlation"])
    assert back["accuracy"] == pytest.approx(1 - forth["accuracy"])
    assert back["longer_wins"] == forth["longer_wins"] != pytest.approx(0.5)
    assert forth["shorter_wins"] == pytest.approx(1 - forth["longer_wins"])


def test_the_order_of_the_rows_changes_nothing():
    rows = random_rows()
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    one, other = (plaudit.evaluate(Fixed(number_in), each) for each in (rows, shuffled))
    assert other.overall == pytest.approx(one.overall)
    assert list(other.subsets) == list(one.subsets) == ["even", "odd"]
    for name in one.subsets:
        assert other.subsets[name] == pytest.approx(one.subsets[name])


def test_adding_to_all_rewards_moves_their_level_alone():
    rows = random_rows()
    one = plaudit.evaluate(Fixed(number_in), rows).overall
    more = plaudit.evaluate(Fixed(lambda text: number_in(text) + 64), rows).overall
    moved = {name for name in METRICS if more[name] != pytest.approx(one[name])}
    assert moved == {"mean_reward", "min_reward", "max_reward"}
    assert more["mean_reward"] == pytest.approx(one["mean_reward"] + 64)


def test_doubling_all_rewards_doubles_the_temperature_and_no_verdict():
    rows = random_rows()
    one = plaudit.evaluate(Fixed(number_in), rows).overall
    twice = plaudit.evaluate(Fixed(lambda text: 2 * number_in(text)), rows).overall
    assert twice["temperature"] == pytest.approx(2 * one["temperature"])
    for name in ("accuracy", "accuracy_low", "accuracy_high", "calibrated_log_loss", "length_correlation"):
        assert twice[name] == pytest.approx(one[name])


def test_a_row_of_weight_two_counts_as_two_of_its_prompt():
    rows = [pair("a", 1, 0), pair("b", 0, 1), pair("c", 3, 0)]
    weighted = plaudit.evaluate(Fixed(number_in), [rows[0] | {"weight": 2.0}, *rows[1:]]).overall
    twice = plaudit.evaluate(Fixed(number_in), [rows[0], *rows]).overall
    for name in ("accuracy", "accuracy_low", "margin", "log_loss", "temperature", "longer_wins", "calibration_error"):
        assert weighted[name] == pytest.approx(twice[name]), name


# Models and data of every kind


@pytest.fixture
def scorer(make_model, tokenizer):
    return RewardModel(make_model(), tokenizer)


def test_the_accuracy_is_the_one_of_the_trainers_evaluation(make_trainer, text_rows):
    trainer = make_trainer(max_steps=2, eval_dataset=text_rows)
    trainer.train()
    expected = trainer.evaluate()
    figures = plaudit.evaluate(RewardModel(trainer.model, trainer.processing_class), text_rows).overall
    assert figures["accuracy"] == expected["eval_accuracy"]
    assert figures["log_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert figures["margin"] == pytest.approx(expected["eval_margin"], abs=1e-5)
    assert figures["mean_reward"] == pytest.approx(expected["eval_mean_reward"], abs=1e-5)


def test_a_path_a_list_and_a_dataset_say_the_same(make_trainer, text_rows, tmp_path):
    trainer = make_trainer(max_steps=1)
    trainer.save_model()
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, text_rows)))
    of_paths = plaudit.evaluate(trainer.args.output_dir, path, device="cpu", max_tokens_per_batch=64)
    assert (of_paths.dataset, of_paths.split) == (str(path), "train")
    scorer = RewardModel.from_pretrained(trainer.args.output_dir, device="cpu")
    for rows in (text_rows, Dataset.from_list(text_rows), Dataset.from_list(text_rows).to_iterable_dataset()):
        result = plaudit.evaluate(scorer, rows)
        assert (result.dataset, result.split) == (None, None)
        assert result.overall == pytest.approx(of_paths.overall, abs=1e-5)


def test_template_options_reach_the_model(scorer, chat_rows):
    loud = [row | {"chat_template_kwargs": {"shout": True}} for row in chat_rows]
    quiet, loud = (plaudit.evaluate(scorer, rows).overall["mean_reward"] for rows in (chat_rows, loud))
    assert quiet != pytest.approx(loud, abs=1e-3)


def test_the_split_is_test_or_validation_or_the_only_one_or_the_one_named(scorer, text_rows, tmp_path):
    splits = DatasetDict({name: Dataset.from_list(text_rows) for name in ("train", "test", "validation")})
    splits.save_to_disk(tmp_path / "three")
    assert plaudit.evaluate(scorer, tmp_path / "three").split == "test"
    first = plaudit.evaluate(scorer, tmp_path / "three", split="train[:3]")
    assert (first.split, first.overall["rows"]) == ("train[:3]", 3)
    del splits["test"]
    splits.save_to_disk(tmp_path / "two")
    assert plaudit.evaluate(scorer, tmp_path / "two").split == "validation"
    splits["odd"] = splits.pop("validation")
    splits.save_to_disk(tmp_path / "odd")
    with pytest.raises(DataError, match="has the splits train, odd; name the one to evaluate on"):
        plaudit.evaluate(scorer, tmp_path / "odd")
    with pytest.raises(DataError, match="expected one split, got train, odd"):
        plaudit.evaluate(scorer, splits)


def test_the_configuration_reaches_the_dataset(scorer, text_rows, monkeypatch):
    splits = {name: DatasetDict({"test": Dataset.from_list(text_rows[:size])}) for name, size in (("a", 2), ("b", 3))}
    monkeypatch.setattr("plaudit.evaluation.evaluate.load_source", lambda path, *, config: splits[config])
    for name in splits:
        figures = plaudit.evaluate(scorer, "someone/pairs", dataset_config=name).overall
        assert figures["rows"] == len(splits[name]["test"])
    with pytest.raises(ConfigError, match="for a dataset that is loaded by its name"):
        plaudit.evaluate(scorer, text_rows, dataset_config="a")


def test_a_published_layout_is_converted_and_its_ties_are_counted(scorer):
    row = {"prompt": '["Is it?"]', "response_a": '["Yes"]', "response_b": '["No"]'}
    row |= {"winner_model_a": 1, "winner_model_b": 0}
    rows = [row | {"winner_tie": 0}, row | {"winner_model_a": 0, "winner_tie": 1}]
    figures = plaudit.evaluate(scorer, rows, dataset_format="arena").overall
    assert (figures["rows"], figures["comparisons"], figures["ties"]) == (2, 1, 1)


def test_options_of_what_is_loaded_already_are_refused(scorer, text_rows):
    with pytest.raises(ConfigError, match="max_length: the reward model is loaded already"):
        plaudit.evaluate(scorer, text_rows, max_length=5)
    with pytest.raises(ConfigError, match="for a dataset that is loaded by its name"):
        plaudit.evaluate(scorer, text_rows, split="test")


# What goes wrong is said of the row


def test_a_sequence_that_is_too_long_is_cut_and_counted_or_named(make_model, tokenizer, text_rows):
    rows = [*text_rows[:2], text_rows[2] | {"rejected": " No" * 40}]
    longest = len(tokenizer(rows[2]["prompt"] + rows[2]["rejected"])["input_ids"])  # and EOS: one too many
    cutting = RewardModel(make_model(), tokenizer, max_length=longest)
    assert [plaudit.evaluate(cutting, rows).cut for _ in range(2)] == [1, 1]
    strict = RewardModel(make_model(), tokenizer, max_length=longest, overlong="error")
    with pytest.raises(DataError, match=r"^row 2, column 'rejected' has \d+ tokens, more than"):
        plaudit.evaluate(strict, rows)


def test_a_conversation_that_the_template_refuses_is_named(make_model, tokenizer, chat_rows):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ raise_exception('No Hm.') if m['content'] == 'Hm' }}{% endfor %}"
    )
    row = {"completions": [[{"role": "assistant", "content": word}] for word in ("Yes", "Hm")], "ranks": [0, 1]}
    with pytest.raises(DataError, match=r"^row 4, column 'completions\[1\]': the tokenizer's chat template refuses it"):
        plaudit.evaluate(RewardModel(make_model(), tokenizer), [*chat_rows, row])


def test_rewards_that_are_not_finite_are_refused_and_their_rows_named():
    rows = [pair("a", 1, 0), pair("b", 1, "nan")]
    with pytest.raises(ModelError, match="1 of 4 rewards are not finite.*row 1, column 'rejected'"):
        plaudit.evaluate(Fixed(number_in), rows)


def test_an_error_in_a_file_names_the_file_too(tmp_path):
    for column, value in (("label", 2), ("chosen", " =inf")):
        path = tmp_path / f"{column}.jsonl"
        path.write_text(json.dumps(pair("a", 1, 0) | {column: value}))
        with pytest.raises(ValueError, match=f"{column}.jsonl, .*row 0, column '{column}'"):
            plaudit.evaluate(Fixed(number_in), path)


# Several


def test_the_mean_counts_datasets_not_rows():
    good = plaudit.evaluate(Fixed(number_in), [pair(f"Q{n}", 1, 0) for n in range(9)])
    bad = plaudit.evaluate(Fixed(number_in), [pair("a", 0, 1)])
    means = mean_of([good, bad])
    assert means["accuracy"] == 0.5
    assert means["log_loss"] == pytest.approx((good.overall["log_loss"] + bad.overall["log_loss"]) / 2)


def test_everything_can_be_written_as_strict_json():
    result = plaudit.evaluate(Fixed(number_in), random_rows())
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["overall"] == result.overall
    assert written["subsets"] == result.subsets
    assert math.isclose(sum(each["share"] for each in written["calibration"]), 1)
    undefined = replace(result, overall={"temperature": math.inf}, calibration=[{"accuracy": math.nan, "share": 0.0}])
    written = undefined.to_dict()
    assert written["overall"] == {"temperature": None}
    assert written["calibration"] == [{"accuracy": None, "share": 0.0}]
