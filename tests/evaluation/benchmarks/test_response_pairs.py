"""The rules of JudgeBench, LLMBar, EvalBiasBench, HelpSteer3 and Plan-RewardBench, worked by hand."""

import math

import pytest
from benchmark_rows import CATEGORIES, WRITERS, put

from plaudit.errors import DataError
from plaudit.evaluation.benchmarks import BENCHMARKS


class TestJudgeBench:
    @pytest.mark.parametrize(
        ("label", "rewards", "right"),
        [("A>B", [1, 0], 1), ("A>B", [0, 1], 0), ("B>A", [0, 1], 1), ("A>B", [1, 1], 0), ("B>A", [1, 1], 1)],
    )
    def test_a_tie_is_right_where_the_label_is_b(self, label, rewards, right):
        assert BENCHMARKS["judgebench"].figures([{"label": label, "source": "x"}], [rewards])["overall"] == right

    def test_overall_is_over_pairs_and_parts_are_sources_and_groups(self):
        sources = ["mmlu-pro-law", "mmlu-pro-law", "mmlu-pro-law", "mmlu-pro-math", "livecodebench"]
        rows = [{"label": "A>B", "source": source} for source in sources]
        figures = BENCHMARKS["judgebench"].figures(rows, [[1, 0]] * 2 + [[0, 1]] * 3)
        assert figures["overall"] == 2 / 5
        assert figures["parts"] == pytest.approx(
            {"mmlu-pro": 1 / 2, "mmlu-pro-law": 2 / 3, "mmlu-pro-math": 0, "livecodebench": 0}
        )
        assert figures["missing"] == ["livebench-reasoning", "livebench-math"]

    def test_another_label_is_named(self):
        with pytest.raises(DataError, match=r"judgebench, row 0 \(id 'p'\): .*'A=B'"):
            BENCHMARKS["judgebench"].figures([{"pair_id": "p", "label": "A=B", "source": "x"}], [[1, 0]])

    def test_the_better_response_is_that_of_the_label(self):
        assert BENCHMARKS["judgebench"].comparisons({"label": "B>A"}) == [(1, 0)]


class TestLLMBar:
    def test_subsets_are_averaged_and_a_tie_is_one_half(self):
        subsets = ["Natural", "Natural", "Neighbor", "GPTInst", "GPTOut", "Manual"]
        rows = [{"subset": subset, "label": 2} for subset in subsets]
        figures = BENCHMARKS["llmbar"].figures(rows, [[0, 1], [1, 0], [1, 1], [0, 1], [0, 1], [1, 0]])
        assert figures["parts"] == {"GPTInst": 1, "GPTOut": 1, "Manual": 0, "Natural": 0.5, "Neighbor": 0.5}
        assert figures["overall"] == pytest.approx(3 / 5)

    def test_one_published_file_has_an_overall_figure_as_it_is(self):
        rows = [{"label": 1}, {"label": 2}]
        assert BENCHMARKS["llmbar"].figures(rows, [[1, 0], [1, 0]]) == {"overall": 0.5, "parts": {}, "missing": []}

    def test_one_file_in_its_folder_has_its_subset(self, tmp_path):
        WRITERS["llmbar"](tmp_path)
        rows = BENCHMARKS["llmbar"].load(tmp_path / "Dataset" / "LLMBar" / "Adversarial" / "Manual" / "dataset.json")
        assert [row["subset"] for row in rows] == ["Manual", "Manual"]

    @pytest.mark.parametrize("label", [0, 3, "1"])
    def test_another_label_is_named(self, label):
        with pytest.raises(DataError, match=f"llmbar, row 0: expected one of 1, 2.*got {label!r}"):
            BENCHMARKS["llmbar"].figures([{"label": label}], [[1, 0]])


class TestEvalBiasBench:
    def test_biases_and_all_pairs(self):
        rows = [{"bias": bias, "label": 1} for bias in ("length bias", "length bias", "concreteness")]
        figures = BENCHMARKS["evalbiasbench"].figures(rows, [[1, 0], [0, 0], [1, 0]])
        assert figures["parts"] == {"concreteness": 1, "length bias": 0.5}
        assert figures["overall"] == pytest.approx(2 / 3)
        assert "nested_instruction" in figures["missing"]


class TestHelpSteer3:
    def test_the_sign_of_the_preference_and_no_ties(self):
        preferences = [-3, -1, 0, 2, 1]
        rows = [{"domain": "code", "overall_preference": each} for each in preferences]
        figures = BENCHMARKS["helpsteer3"].figures(rows, [[1, 0], [0, 1], [9, 0], [0, 1], [1, 1]])
        assert figures["overall"] == figures["parts"]["code"] == 2 / 4
        assert [BENCHMARKS["helpsteer3"].comparisons(row) for row in rows] == [
            [(0, 1)], [(0, 1)], [], [(1, 0)], [(1, 0)],
        ]  # fmt: skip

    def test_ties_alone_have_no_figure(self):
        figures = BENCHMARKS["helpsteer3"].figures([{"domain": "stem", "overall_preference": 0}], [[1, 0]])
        assert math.isnan(figures["overall"])
        assert "stem" in figures["missing"]


class TestPlanRewardBench:
    def test_a_small_difference_is_one_half_and_categories_are_averaged(self):
        rows = [{"subset": category} for category in CATEGORIES] + [{"subset": CATEGORIES[0]}] * 2
        rewards = [[0.0, 0.0001], *[[1, 0]] * 5, [0, 1], [0.0002, 0.0], [0.0, 0.0002]]
        figures = BENCHMARKS["plan-rewardbench"].figures(rows, rewards)
        assert figures["parts"][CATEGORIES[0]] == pytest.approx((0.5 + 1 + 0) / 3)
        assert figures["overall"] == pytest.approx((0.5 + 5 + 0) / 7)

    def test_a_missing_category_is_named(self):
        figures = BENCHMARKS["plan-rewardbench"].figures([{"subset": "safety_refusal"}], [[1, 0]])
        assert figures["missing"] == [each for each in CATEGORIES if each != "safety_refusal"]
        assert math.isnan(figures["overall"])

    def test_the_trajectory_is_one_turn_of_text_after_tools_and_query(self, tmp_path):
        WRITERS["plan-rewardbench"](tmp_path)
        row = BENCHMARKS["plan-rewardbench"].load(tmp_path / "benchmark" / "safety_refusal.jsonl")[0]
        (user, assistant), other = BENCHMARKS["plan-rewardbench"].sequences(row)
        assert user["content"].startswith('<tool_environment>\n[\n  {\n    "type": "function"')
        assert user["content"].endswith("\n</tool_environment>\n<user_query>\n1+1?\n</user_query>")
        assert assistant["content"] == (
            '[USER] 1+1?\n\n[TOOL_CALL] {"name": "add"}\n\n[TOOL_RESPONSE name=add] 2\n\n[ASSISTANT] 2'
        )
        assert other[1]["content"] == "[USER] 1+1?\n\n[ASSISTANT] 3"
        assert row["subset"] == "safety_refusal"


def test_rows_of_evalbiasbench_are_read_as_lines_too(tmp_path):
    row = {"bias": "concreteness", "instruction": "q", "response1": "a", "response2": "b", "label": 1}
    put(tmp_path / "rows.jsonl", [row])
    assert BENCHMARKS["evalbiasbench"].load(tmp_path / "rows.jsonl") == [row]
