"""The rules of RM-Bench, PPE, RewardMATH and RMB, worked by hand."""

import math

import pytest
from benchmark_rows import PPE_SETS, WRITERS, put, write_rewardmath

from plaudit.errors import DataError
from plaudit.evaluation.benchmarks import BENCHMARKS


class TestRMBench:
    # Only concise chosen beats concise rejected; plain chosen beats concise and plain; markdown chosen beats all.
    REWARDS = (1, 2, 3, 0.5, 1.5, 2.5)
    CHAT = {"hard": 0, "normal": 1, "easy": 1}  # noqa: RUF012

    def test_the_matrix_of_styles_makes_hard_normal_and_easy(self):
        domains = ["chat", "math", "code", "safety-refuse", "safety-response"]
        figures = BENCHMARKS["rm-bench"].figures([{"domain": each} for each in domains], [self.REWARDS] * 5)
        assert figures["parts"] == pytest.approx(
            {"chat": 2 / 3, "math": 2 / 3, "code": 2 / 3, "safety": 2 / 3, **self.CHAT}
        )

    def test_a_longer_style_that_wins_only_in_one_pair_is_hard(self):
        figures = BENCHMARKS["rm-bench"].figures(
            [{"domain": each} for each in ("chat", "math", "code", "safety-refuse")],
            [(2, 0, 0, 2, 1, 2)] + [self.REWARDS] * 3,  # concise chosen beats plain rejected alone
        )
        assert figures["parts"]["chat"] == pytest.approx((1 / 3 + 0 + 0) / 3)
        assert figures["parts"]["hard"] == pytest.approx(1 / 3 / 4)
        assert figures["parts"]["normal"] == pytest.approx(3 / 4)
        assert figures["overall"] == pytest.approx((1 / 9 + 3 * 2 / 3) / 4)

    def test_the_parts_of_safety_are_one_domain_by_their_rows(self):
        rows = [{"domain": each} for each in ("safety-refuse", "safety", "safety-response", "chat")]
        figures = BENCHMARKS["rm-bench"].figures(rows, [(1, 1, 1, 0, 0, 0)] + [(0, 0, 0, 1, 1, 1)] * 3)
        assert figures["parts"] == {"chat": 0, "safety": pytest.approx(1 / 3)}
        assert figures["missing"] == ["math", "code"]
        assert math.isnan(figures["overall"])

    def test_ties_are_wrong(self):
        rows = [{"domain": each} for each in ("chat", "math", "code", "safety-refuse")]
        assert BENCHMARKS["rm-bench"].figures(rows, [[1.0] * 6] * 4)["overall"] == 0

    def test_an_unknown_domain_is_named(self):
        with pytest.raises(DataError, match="rm-bench, row 0: .*'poetry'"):
            BENCHMARKS["rm-bench"].figures([{"domain": "poetry"}], [[1.0] * 6])


def ppe(pairs, subset="MATH", scores=(True, False, False, True)):
    return {"question_id": "q", "subset": subset, "scores": list(scores), "sampled_conflict_pairs": pairs}


class TestPPE:
    def test_a_pair_in_either_order_is_right_where_the_correct_response_has_more(self):
        figures = BENCHMARKS["ppe-correctness"].figures([ppe([[0, 1], [2, 3], [1, 3]])], [[5, 1, 9, 1]])
        assert figures["parts"] == {"MATH": pytest.approx(1 / 3)}  # wins, loses, ties

    def test_pairs_of_a_set_are_pooled_and_the_five_sets_averaged(self):
        rows = [ppe([[0, 1]], name) for name in PPE_SETS] + [ppe([[0, 1], [0, 2], [3, 1]], "MATH")]
        right, wrong = [1, 0, 0, 1], [0, 1, 1, 0]
        figures = BENCHMARKS["ppe-correctness"].figures(rows, [right] * 5 + [wrong])
        assert figures["parts"]["MATH"] == 1 / 4
        assert figures["overall"] == pytest.approx((4 + 1 / 4) / 5)

    def test_one_published_set_has_an_overall_figure_as_it_is(self):
        row = ppe([[0, 1], [2, 3]])
        del row["subset"]
        assert BENCHMARKS["ppe-correctness"].figures([row], [[1, 0, 1, 0]]) == {
            "overall": 0.5, "parts": {}, "missing": [],
        }  # fmt: skip

    def test_missing_sets_are_named(self):
        figures = BENCHMARKS["ppe-correctness"].figures([ppe([[0, 1]])], [[1, 0, 0, 0]])
        assert figures["missing"] == ["MMLU-Pro", "GPQA", "IFEval", "MBPP-Plus"]
        assert math.isnan(figures["overall"])

    @pytest.mark.parametrize("pair", [[0, 3], [0, 4], [-1, 0], [0], ["a", "b"]])
    def test_a_pair_that_is_no_conflict_is_named(self, pair):
        with pytest.raises(DataError, match=r"ppe-correctness, row 0 \(id 'q'\): .*correct and a wrong"):
            BENCHMARKS["ppe-correctness"].figures([ppe([pair])], [[1, 0, 0, 0]])

    def test_rewards_are_those_of_all_32(self, tmp_path):
        WRITERS["ppe-correctness"](tmp_path)
        rows = BENCHMARKS["ppe-correctness"].load(tmp_path / "PPE-GPQA-Best-of-K")
        sequences = BENCHMARKS["ppe-correctness"].sequences(rows[0])
        assert [sequence[1]["content"] for sequence in sequences] == [f"answer {k}" for k in range(32)]
        assert {row["subset"] for row in rows} == {"GPQA"}


class TestRewardMATH:
    def test_strict_with_ties_and_reciprocal_rank(self):
        rewards = [[5, *range(5), 4, 4, 4, 4], [5, 5, 1, 1, 1, 1, 1, 1, 1, 1], [5, 9, 5, 5, 1, 1, 1, 1, 1, 1]]
        figures = BENCHMARKS["rewardmath"].figures([{}] * 3, rewards)
        assert figures["overall"] == pytest.approx(1 / 3)
        assert figures["parts"] == pytest.approx({"with tie": 2 / 3, "mrr": (1 + 1 / 2 + 1 / 4) / 3})

    def test_records_of_one_solution_are_joined_by_problem(self, tmp_path):
        write_rewardmath(tmp_path)
        first, *_ = rows = BENCHMARKS["rewardmath"].load(tmp_path)
        assert [row["problem"] for row in rows] == ["0?", "1?", "2?"]
        sequences = BENCHMARKS["rewardmath"].sequences(first)
        assert [sequence[1]["content"] for sequence in sequences] == [f"first\nthen {s}" for s in range(10)]
        assert BENCHMARKS["rewardmath"].comparisons(first) == [(0, wrong) for wrong in range(1, 10)]

    def test_a_problem_with_two_right_solutions_or_none_is_refused(self, tmp_path):
        record = {"problem": "?", "problem_id": 4, "eval_solution": ["x"], "solution_type": "chosen"}
        put(tmp_path / "two.json", [record, record])
        with pytest.raises(DataError, match=r"rewardmath, row 1 \(id '4'\): expected one chosen"):
            BENCHMARKS["rewardmath"].load(tmp_path / "two.json")
        put(tmp_path / "none.json", [{**record, "solution_type": "rejected"}])
        with pytest.raises(DataError, match=r'row 0 \(id \'4\'\): .*"right"'):
            BENCHMARKS["rewardmath"].load(tmp_path / "none.json")


def rmb(path):
    return {"category_path": path}


class TestRMB:
    def test_pairs_are_averaged_by_subset(self):
        paths = ["Helpfulness/Chat/Discussion"] * 3 + ["Helpfulness/Code/Data Management", "Harmlessness/S1"]
        rewards = [[1, 0], [0, 1], [1, 1], [1, 0], [0, 1]]
        figures = BENCHMARKS["rmb-pairs"].figures([rmb(f"Pairwise_set/{path}") for path in paths], rewards)
        assert figures["parts"] == pytest.approx({
            "Helpfulness": (1 / 3 + 1) / 2, "Harmlessness": 0, "Pairwise_set/Helpfulness/Chat/Discussion": 1 / 3,
            "Pairwise_set/Helpfulness/Code/Data Management": 1, "Pairwise_set/Harmlessness/S1": 0,
        })  # fmt: skip
        assert figures["overall"] == pytest.approx((1 / 3 + 1 + 0) / 3)

    def test_the_best_must_beat_all_losers(self):
        rows = [rmb("BoN_set/Harmlessness/S1")] * 4
        figures = BENCHMARKS["rmb-best-of-n"].figures(rows, [[3, 2, 1], [3, 2, 3], [3, 4, 1], [3, 1, 1, 1]])
        assert figures["parts"] == {"Harmlessness": 0.5, "BoN_set/Harmlessness/S1": 0.5}
        assert figures["missing"] == ["Helpfulness"]

    def test_each_part_reads_its_folder_and_keeps_the_turns_of_the_prompt(self, tmp_path):
        WRITERS["rmb-pairs"](tmp_path)
        pairs, groups = (BENCHMARKS[name].load(tmp_path) for name in ("rmb-pairs", "rmb-best-of-n"))
        assert [len(BENCHMARKS["rmb-best-of-n"].sequences(row)) for row in groups] == [3, 4] * 3
        sequence = BENCHMARKS["rmb-pairs"].sequences(pairs[0])[0]
        assert [message["role"] for message in sequence] == ["user", "assistant", "user", "assistant"]
        assert set(sequence[0]) == {"role", "content"}
