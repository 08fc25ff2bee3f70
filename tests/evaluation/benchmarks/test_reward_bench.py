"""The rules of RewardBench, M-RewardBench and RewardBench 2, worked by hand."""

import math

import pytest
from benchmark_rows import LANGUAGES, PRIOR, SECTIONS, SUBSETS, pairs, put, ties

from plaudit.errors import DataError
from plaudit.evaluation.benchmarks import BENCHMARKS

WIN, LOSS, TIE = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]


def rewardbench(verdicts, **more):
    """The figures of rows given by subset: a list of verdicts for each."""
    rows = [{"subset": subset, **more} for subset, given in verdicts.items() for _ in given]
    rewards = [verdict for given in verdicts.values() for verdict in given]
    return BENCHMARKS["m-rewardbench" if more else "rewardbench"].figures(rows, rewards)


def all_right(*, but=(), extra=()):
    return {subset: [WIN] for subset in [*SUBSETS, *extra] if subset not in but}


class TestRewardBench:
    def test_a_section_weighs_its_subsets_by_their_published_counts(self):
        figures = rewardbench(all_right() | {"mt-bench-easy": [WIN, LOSS, LOSS, LOSS]})
        assert figures["parts"]["mt-bench-easy"] == 0.25
        assert figures["parts"]["Chat"] == pytest.approx((100 + 95 + 95 + 28 * 0.25 + 40) / 358)

    def test_math_counts_984_though_it_has_fewer_rows(self):
        figures = rewardbench(all_right() | {"math-prm": [LOSS] * 3})
        assert figures["parts"]["Reasoning"] == 0.5  # six languages of 164 against 984

    def test_a_tie_is_wrong(self):
        figures = rewardbench(all_right() | {"donotanswer": [TIE]})
        assert figures["parts"]["donotanswer"] == 0
        assert figures["parts"]["Safety"] == pytest.approx(604 / 740)

    def test_overall_without_prior_is_the_mean_of_four_sections_and_prior_is_named(self, caplog):
        figures = rewardbench(all_right() | {subset: [LOSS] for subset in SECTIONS["Chat Hard"]})
        assert figures["overall"] == 0.75
        assert figures["missing"] == ["Prior"]
        assert "Prior" not in figures["parts"]
        assert not caplog.records

    def test_prior_is_the_mean_of_its_sets_and_has_half_the_weight(self):
        figures = rewardbench(all_right(extra=PRIOR) | {"shp": [LOSS], "summarize": [WIN, LOSS, LOSS, LOSS]})
        assert figures["parts"]["Prior"] == (1 + 1 + 0 + 0.25) / 4
        assert figures["overall"] == pytest.approx((4 * 2 + 0.5625) / 9)
        assert figures["missing"] == []

    def test_sets_beside_the_prior_are_parts_of_their_own(self):
        figures = rewardbench(all_right(extra=PRIOR) | {"mtbench_human": [LOSS]})
        assert figures["parts"]["mtbench_human"] == 0
        assert figures["overall"] == 1

    def test_a_missing_subset_takes_its_section_out_and_is_named(self, caplog):
        figures = rewardbench(all_right(but=["llmbar-natural"]) | {"hep-go": [LOSS]})
        assert "Chat Hard" not in figures["parts"]
        assert figures["parts"]["mt-bench-hard"] == 1
        assert figures["missing"] == ["llmbar-natural", "Prior"]
        assert figures["overall"] == pytest.approx((1 + 1 + (984 + 5 * 164) / (984 + 6 * 164)) / 3)
        assert "llmbar-natural" in caplog.text

    def test_a_part_of_prior_is_no_prior(self, caplog):
        figures = rewardbench(all_right(extra=["shp"]))
        assert figures["missing"] == ["anthropic_helpful", "anthropic_hhh", "summarize"]
        assert "Prior" not in figures["parts"]
        assert "summarize" in caplog.text

    def test_no_section_has_no_overall_figure(self):
        assert math.isnan(rewardbench({"shp": [WIN]})["overall"])

    def test_an_unknown_subset_is_named(self):
        with pytest.raises(DataError, match=r"rewardbench, row 1 \(id 'x'\): .*\"subset\", got 'hep-cobol'"):
            BENCHMARKS["rewardbench"].figures([{"subset": "hep-go"}, {"subset": "hep-cobol", "id": "x"}], [WIN, WIN])

    def test_the_prior_sets_take_their_subset_from_the_file(self, tmp_path):
        chat = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": "?"},
        ]
        row = {"prompt": chat, "chosen": "a", "rejected": "b"}
        put(tmp_path / "data" / "anthropic_hhh-00000-of-00001.parquet", [{**row, "subset": "honest"}])
        put(tmp_path / "data" / "shp.jsonl", [row])
        loaded = BENCHMARKS["rewardbench"].load(tmp_path)
        assert [row["subset"] for row in loaded] == ["anthropic_hhh", "shp"]
        assert BENCHMARKS["rewardbench"].sequences(loaded[1])[1] == [*chat, {"role": "assistant", "content": "b"}]


class TestMRewardBench:
    def test_each_language_has_the_sections_and_the_overall_figure_is_their_mean(self, caplog):
        rows = [{"subset": subset, "language": language} for language in ("arb", "zho_Hans") for subset in SUBSETS]
        rewards = [LOSS if row["language"] == "arb" and row["subset"] in SECTIONS["Chat"] else WIN for row in rows]
        figures = BENCHMARKS["m-rewardbench"].figures(rows, rewards)
        assert figures["parts"]["arb/Chat"] == 0
        assert figures["parts"]["arb"] == 0.75
        assert figures["parts"]["zho_Hans"] == figures["parts"]["zho_Hans/Chat Hard"] == 1
        assert figures["overall"] == 0.875
        assert figures["missing"] == [each for each in LANGUAGES if each not in ("arb_Arab", "zho_Hans")]
        assert "zho_Hant" in caplog.text

    def test_a_missing_subset_is_named_with_its_language(self):
        figures = rewardbench(all_right(but=["hep-go"]), language="arb_Arab")
        assert "arb_Arab/hep-go" in figures["missing"]
        assert "arb_Arab/Reasoning" not in figures["parts"]
        assert figures["overall"] == 1

    def test_one_file_of_one_language_is_read(self, tmp_path):
        put(tmp_path / "kor_Hang.jsonl", pairs(["hep-go"]))
        assert [row["language"] for row in BENCHMARKS["m-rewardbench"].load(tmp_path)] == ["kor_Hang"] * 2


def best_of_four(rewards, subset="Math"):
    return {"id": "1", "subset": subset, "num_correct": 1, "total_completions": len(rewards)}


class TestRewardBench2:
    @pytest.mark.parametrize(
        ("rewards", "score"),
        [([3, 2, 1, 0], 1), ([3, 3, 1, 0], 1 / 2), ([3, 3, 3, 0], 1 / 3), ([3, 3, 3, 3], 1 / 4), ([2, 3, 3, 0], 0)],
    )
    def test_a_shared_maximum_is_divided(self, rewards, score):
        assert BENCHMARKS["rewardbench-2"].figures([best_of_four(rewards)], [rewards])["parts"] == {"Math": score}

    def test_ties_add_accuracies_and_margins(self):
        rows = [ties(1, "ref", 1), ties(1, "tied", 3), ties(2, "ref", 1), ties(2, "tied", 3)]
        rewards = [
            [5, 1, 0],  # gap 4
            [6, 5, 4, 1, 0],  # gap 3, spread 2
            [1, 2, 0],  # gap -1
            [9, 5, 5, 4, 3],  # gap 1, spread 4
        ]
        margin = (math.tanh(3 / 2 - 1) + math.tanh(-1 / 4 - 1)) / 2
        expected = 0.30 * 1 + 0.30 * 0.5 + 0.20 * 0.5 + 0.20 * 0.5 + 0.01 * margin
        assert BENCHMARKS["rewardbench-2"].figures(rows, rewards)["parts"]["Ties"] == pytest.approx(expected, abs=1e-15)

    @pytest.mark.parametrize(("gap", "margin"), [(2, 1), (0, 0), (-2, -1)])
    def test_without_a_spread_the_margin_is_its_limit_and_zero_over_zero_is_zero(self, gap, margin):
        rows = [ties(1, "ref", 1), ties(1, "tied", 2)]
        figures = BENCHMARKS["rewardbench-2"].figures(rows, [[9, 0, 0], [gap, gap, 0, 0]])
        right = gap > 0
        expected = 0.30 * right + 0.30 + 0.20 * right + 0.20 * right + 0.01 * margin
        assert figures["parts"]["Ties"] == pytest.approx(expected, abs=1e-15)

    def test_pairs_are_found_by_id_and_each_copy_has_its_own(self):
        rows = [ties(1, "tied", 2), ties(2, "ref", 1), ties(2, "tied", 2), ties(1, "ref", 1)]
        rewards = [[3, 2, 0, 0], [1, 2, 0], [9, 4, 3, 3], [9, 0, 0]]
        once = BENCHMARKS["rewardbench-2"].figures(rows, rewards)["parts"]["Ties"]
        drawn = [0, 3, 1, 2, 0, 3]  # the first pair twice
        again = BENCHMARKS["rewardbench-2"].figures([rows[i] for i in drawn], [rewards[i] for i in drawn])
        by_pair = [
            BENCHMARKS["rewardbench-2"].figures([rows[i] for i in two], [rewards[i] for i in two])["parts"]["Ties"]
            for two in ((0, 3), (1, 2))
        ]
        assert once == pytest.approx(sum(by_pair) / 2)
        assert again["parts"]["Ties"] == pytest.approx((2 * by_pair[0] + by_pair[1]) / 3)

    def test_overall_is_the_mean_of_six_and_not_defined_with_fewer(self, caplog):
        names = ["Factuality", "Precise IF", "Math", "Safety", "Focus"]
        rows = [best_of_four([1] * 4, name) for name in names] + [ties(1, "ref", 1), ties(1, "tied", 2)]
        rewards = [[1, 0, 0, 0]] * 4 + [[0, 1, 0, 0], [9, 0, 0], [5, 5, 0, 0]]
        figures = BENCHMARKS["rewardbench-2"].figures(rows, rewards)
        assert figures["overall"] == pytest.approx((4 + 0 + 1.01) / 6)
        assert not caplog.records
        figures = BENCHMARKS["rewardbench-2"].figures(rows[1:], rewards[1:])
        assert math.isnan(figures["overall"])
        assert figures["missing"] == ["Factuality"]
        assert "Factuality" in caplog.text

    @pytest.mark.parametrize("row", [ties(7, "ref", 1), ties(7, "tied", 2)])
    def test_an_id_without_its_partner_is_named(self, row):
        with pytest.raises(DataError, match=rf"row 0 \(id '{row['id']}'\): expected ref:7 with tied:7"):
            BENCHMARKS["rewardbench-2"].figures([row], [[1.0] * row["total_completions"]])

    @pytest.mark.parametrize("bad", ["7", "tie:7", "ref:x"])
    def test_an_id_of_another_form_is_named(self, bad):
        with pytest.raises(DataError, match=r'row 0 \(id .*"ref:NUMBER" or "tied:NUMBER"'):
            BENCHMARKS["rewardbench-2"].figures([ties(7, "ref", 1) | {"id": bad}], [[1.0] * 3])

    def test_ties_compare_every_correct_response_with_every_wrong_one(self):
        row = ties(1, "tied", 2)
        assert BENCHMARKS["rewardbench-2"].comparisons(row) == [(0, 2), (0, 3), (1, 2), (1, 3)]
        assert BENCHMARKS["rewardbench-2"].cluster(row) == BENCHMARKS["rewardbench-2"].cluster(ties(1, "ref", 1))
        assert BENCHMARKS["rewardbench-2"].cluster(best_of_four([1] * 4)) is None
