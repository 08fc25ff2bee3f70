"""`plaudit.evaluate`: its arguments, subsets and errors, and real models from end to end."""

import json
import math
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import plaudit
from plaudit import RewardModel, evaluation
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.evaluation.evaluate import mean_figures


class Fixed(RewardModel):
    """A reward for each text, by a function."""

    def __init__(self, reward):
        self.reward, self.truncated = reward, 0

    def score(self, sequences, **_):
        return np.array([self.reward(sequence) for sequence in sequences], dtype=np.float32)


def number_in(text):
    """The reward that a row says its response has."""
    return float(text.split("=")[1])


def pair(prompt, chosen, rejected, **columns):
    return {"prompt": prompt, "chosen": f" ={chosen}", "rejected": f" ={rejected}"} | columns


def test_each_subset_with_a_comparison_has_figures():
    rows = [
        pair("a", 1, 0, subset="x"), pair("b", 0, 1, subset="ties", tie=True), pair("c", 1, 0),
        pair("d", 0, 1, subset=3),
    ]  # fmt: skip
    result = plaudit.evaluate(Fixed(number_in), rows)
    assert list(result.subsets) == ["3", "x"]
    assert (result.overall["rows"], result.overall["ties"]) == (4, 1)
    assert [result.subsets[name]["accuracy"] for name in result.subsets] == [0, 1]
    assert result.overall["accuracy"] == pytest.approx(2 / 3)


def test_names_of_the_package_in_docstrings_resolve():
    folder = Path(evaluation.__file__).parent
    names = {name for file in folder.glob("*.py") for name in re.findall(r"`(plaudit\.[\w.]+)`", file.read_text())}
    assert "plaudit.evaluation.figures.METRICS" in names
    assert [name for name in names if pkgutil.resolve_name(name) is None] == []


def test_the_function_is_imported_without_the_libraries_that_it_uses():
    code = "import sys; from plaudit import evaluate; print(sys.modules.keys() & {'torch', 'datasets', 'transformers'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# Models and data of every kind


@pytest.fixture
def scorer(make_model, tokenizer):
    return RewardModel(make_model(), tokenizer)


def weighted_pairs(rows):
    return [row | {"label": 0.25 if n < 3 else 1.0, "weight": n % 3 + 1.0} for n, row in enumerate(rows)]


def weighted_groups(rows):
    completions = [" Yes, the sky", " No, it is", " It is blue.", " Two"]
    ranks = [[0, 1, 2, 3], [1, 0, 0, 2], [0, 1, 1, 1]]
    return [
        {"prompt": row["prompt"], "completions": completions, "ranks": ranks[n % 3], "weight": n % 3 + 1.0}
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize("make_rows", [weighted_pairs, weighted_groups])
def test_the_figures_are_those_of_the_trainers_evaluation(make_trainer, text_rows, make_rows):
    rows = make_rows(text_rows)
    trainer = make_trainer(train_dataset=rows, eval_dataset=rows, max_steps=1)
    expected = trainer.evaluate()
    figures = plaudit.evaluate(RewardModel(trainer.model, trainer.processing_class), rows).overall
    names = {name for name in figures if f"eval_{name}" in expected}
    assert names == {
        "accuracy", "accuracy_low", "accuracy_high", "reward_ties", "margin", "mean_reward", "min_reward", "max_reward",
    }  # fmt: skip
    for name in names:
        assert figures[name] == pytest.approx(expected[f"eval_{name}"], abs=1e-5), name
    mean_weight = sum(row["weight"] for row in rows) / len(rows)  # a training loss is divided by the number of rows
    assert figures["log_loss"] * mean_weight == pytest.approx(expected["eval_loss"], abs=1e-5)


def test_a_path_a_list_and_a_dataset_have_the_same_figures(make_trainer, text_rows, tmp_path):
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
        assert result.overall == pytest.approx(of_paths.overall, abs=1e-5, nan_ok=True)


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
    with pytest.raises(DataError, match="has the splits train, odd; name one of them with `split`"):
        plaudit.evaluate(scorer, tmp_path / "odd")
    with pytest.raises(DataError, match="expected one split, got train, odd"):
        plaudit.evaluate(scorer, splits)


def test_the_configuration_reaches_the_dataset(scorer, text_rows, tmp_path):
    sizes = {"two": 2, "three": 3}
    for name, size in sizes.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, text_rows[:size])))
    configs = [{"config_name": name, "data_files": [{"split": "test", "path": f"{name}.jsonl"}]} for name in sizes]
    (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    for name, size in sizes.items():
        assert plaudit.evaluate(scorer, tmp_path, dataset_config=name).overall["rows"] == size
    with pytest.raises(ConfigError, match="for a dataset that is loaded by its name"):
        plaudit.evaluate(scorer, text_rows, dataset_config="a")


def test_a_published_layout_is_converted_and_its_ties_are_counted(scorer):
    row = {"prompt": '["Is it?"]', "response_a": '["Yes"]', "response_b": '["No"]'}
    row |= {"winner_model_a": 1, "winner_model_b": 0}
    rows = [row | {"winner_tie": 0}, row | {"winner_model_a": 0, "winner_tie": 1}]
    figures = plaudit.evaluate(scorer, rows, dataset_format="arena").overall
    assert (figures["rows"], figures["comparisons"], figures["ties"]) == (2, 1, 1)


def test_options_of_a_loaded_model_or_loaded_rows_are_refused(scorer, text_rows):
    with pytest.raises(ConfigError, match="max_length: the reward model is loaded already"):
        plaudit.evaluate(scorer, text_rows, max_length=5)
    with pytest.raises(ConfigError, match="max_length: the reward model is loaded already"):
        plaudit.evaluate(scorer, "no-such-file.jsonl", max_length=5)  # before the dataset is read
    with pytest.raises(ConfigError, match="for a dataset that is loaded by its name"):
        plaudit.evaluate(scorer, text_rows, split="test")


# Errors name the row


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
    means = mean_figures([good, bad])
    assert means["accuracy"] == 0.5
    assert means["log_loss"] == pytest.approx((good.overall["log_loss"] + bad.overall["log_loss"]) / 2)


def test_everything_can_be_written_as_strict_json():
    rows = [
        pair(f"Q{n // 3}", n % 8 + 0.75, n % 7 if n % 3 else f"{n % 7}.2500", subset="even" if n % 2 else "odd")
        for n in range(120)
    ]
    result = plaudit.evaluate(Fixed(number_in), rows)
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["overall"] == result.overall
    assert written["subsets"] == result.subsets
    assert math.isclose(sum(each["share"] for each in written["calibration"]), 1)
    undefined = replace(result, overall={"temperature": math.inf}, calibration=[{"accuracy": math.nan, "share": 0.0}])
    written = undefined.to_dict()
    assert written["overall"] == {"temperature": None}
    assert written["calibration"] == [{"accuracy": None, "share": 0.0}]
