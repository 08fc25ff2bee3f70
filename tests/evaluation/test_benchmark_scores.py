"""Benchmarks scored by a model: their score files give the figures of their rows, without the texts."""

import math

import pytest
from benchmark_rows import WRITERS

from plaudit.errors import ConfigError, ModelError
from plaudit.evaluation.benchmark_scores import official_figures, score_benchmark
from plaudit.evaluation.benchmarks import BENCHMARKS
from plaudit.evaluation.evaluate import evaluate_scores
from plaudit.evaluation.score_files import read_scores, write_scores


def by_text(conversations):
    """A reward of the response's text alone, without a pattern and with ties."""
    return [sum(map(ord, each[-1]["content"])) % 7 for each in conversations]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_score_file_gives_the_official_figures_of_the_rows(name, tmp_path):
    WRITERS[name](tmp_path / "copy")
    scores = score_benchmark(by_text, name, tmp_path / "copy")
    write_scores(tmp_path / "scores.jsonl", scores)
    again = read_scores(tmp_path / "scores.jsonl")
    rows = BENCHMARKS[name].load(tmp_path / "copy")
    expected = BENCHMARKS[name].figures(rows, [by_text(BENCHMARKS[name].sequences(row)) for row in rows])
    for figures in (official_figures(scores), official_figures(again)):
        assert figures["parts"] == expected["parts"]
        assert figures["overall"] == expected["overall"] or math.isnan(expected["overall"])
        assert figures["rule"] == BENCHMARKS[name].rule
    evaluation = evaluate_scores(again)
    assert evaluation.dataset == name
    assert evaluation.official["parts"] == expected["parts"]
    assert 0 <= evaluation.overall["accuracy"] <= 1


def test_the_scores_of_responses_are_gold_for_best_of_n(tmp_path):
    WRITERS["ppe-correctness"](tmp_path / "copy")
    rows = score_benchmark(by_text, "ppe-correctness", tmp_path / "copy").rows
    assert all(len(row.gold) == len(row.rewards) for row in rows)


def test_rows_that_belong_together_have_one_prompt_key(tmp_path):
    WRITERS["rewardbench-2"](tmp_path / "copy")
    keys = {row.id: row.prompt_key for row in score_benchmark(by_text, "rewardbench-2", tmp_path / "copy").rows}
    pairs = [name for name in keys if name.startswith("ref:")]
    assert pairs
    assert all(keys[name] == keys[name.replace("ref:", "tied:")] for name in pairs)


def test_a_reward_that_is_not_finite_names_its_row(tmp_path):
    WRITERS["llmbar"](tmp_path / "copy")
    with pytest.raises(ModelError, match="llmbar, row 0, response 0"):
        score_benchmark(lambda each: [math.nan] * len(each), "llmbar", tmp_path / "copy")


def test_an_unknown_benchmark_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="no benchmark 'rewardbench3': expected one of rewardbench, rewardbench-2"):
        score_benchmark(by_text, "rewardbench3")
