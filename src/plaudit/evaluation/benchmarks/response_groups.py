"""Benchmarks whose rows have more than two responses: RM-Bench, PPE, RewardMATH and RMB, with the pairs of RMB."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.data.annotations import shorten
from plaudit.errors import DataError
from plaudit.evaluation.benchmarks.benchmark import Benchmark, Figures, Row, mean, means, need
from plaudit.evaluation.benchmarks.published_files import HubDataset

__all__ = ["PPECorrectness", "RMBBestOfN", "RMBPairs", "RMBench", "RewardMATH"]

PPE_SETS = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")


class RMBench(Benchmark):
    """RM-Bench (Liu et al. 2024): three chosen against three rejected responses, each concise, plain and markdown.

    Source: `compute_accuracy` in the README of github.com/THU-KEG/RM-Bench.
    """

    name, title = "rm-bench", "RM-Bench"
    rule = "strictly greater in nine pairs of styles; mean of hard, normal and easy, then of four domains"
    published = "hf.co/datasets/THU-KEG/RM-Bench and github.com/THU-KEG/RM-Bench (data/total_dataset.json)"
    fields = ("domain",)
    hub = (HubDataset("THU-KEG/RM-Bench"),)
    files = (r"/total_dataset\.json",)  # the files beside it repeat its rows
    names = ("chat", "math", "code", "safety")
    count = 6
    subset_columns = ("domain",)

    def responses(self, row: Row) -> list[Any]:
        """Return the three chosen responses, then the three rejected ones."""
        chosen, rejected = need(row, "chosen"), need(row, "rejected")
        if len(chosen) != 3 or len(rejected) != 3:
            raise DataError('expected three responses in "chosen" and in "rejected": concise, plain and markdown')
        return [*chosen, *rejected]

    def comparisons(self, row: Row) -> list[tuple[int, int]]:  # noqa: ARG002  # all rows have the same
        """Compare each chosen response with each rejected one."""
        return [(i, 3 + j) for i in range(3) for j in range(3)]

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give domains and difficulties; the overall figure is the mean of the four domains, NaN if one is missing."""
        domains = self.each(rows, self._domain)
        won = [[[r[i] > r[3 + j] for j in range(3)] for i in range(3)] for r in rewards]
        levels = {
            "hard": means(domains, [(w[0][1] + w[0][2] + w[1][2]) / 3 for w in won]),
            "normal": means(domains, [(w[0][0] + w[1][1] + w[2][2]) / 3 for w in won]),
            "easy": means(domains, [(w[1][0] + w[2][0] + w[2][1]) / 3 for w in won]),
        }
        parts = {name: mean(level[name] for level in levels.values()) for name in self.names if name in domains}
        missing = [name for name in self.names if name not in domains]
        if missing:
            return Figures(math.nan, parts, missing)
        return Figures(mean(parts.values()), parts | {name: mean(each.values()) for name, each in levels.items()}, [])

    def _domain(self, row: Row) -> str:
        """Return the domain of a row; `safety-refuse` and `safety-response` are one."""
        name = str(need(row, "domain"))
        return need({"domain": "safety" if name.startswith("safety-") else name}, "domain", allowed=self.names)


class PPECorrectness(Benchmark):
    """Correctness sets of Preference Proxy Evaluations (Frick et al. 2024): 32 responses, compared in given pairs."""

    name, title = "ppe-correctness", "PPE correctness"
    rule = "strictly greater on the sampled conflict pairs; mean of five sets"
    published = f"hf.co/datasets/lmarena-ai/PPE-{{{','.join(PPE_SETS)}}}-Best-of-K (split train)"
    fields = ("subset", "scores", "sampled_conflict_pairs")
    hub = tuple(HubDataset(f"lmarena-ai/PPE-{each}-Best-of-K", "train", None, (("subset", each),)) for each in PPE_SETS)
    files = (rf".*(?P<subset>{'|'.join(PPE_SETS)})",)
    names = PPE_SETS
    id_column = "question_id"
    gold_column = "scores"

    def responses(self, row: Row) -> list[Any]:
        """Return the responses in the order of their numbers."""
        return [need(row, f"response_{number + 1}") for number in range(self.expected_rewards(row))]

    def comparisons(self, row: Row) -> list[tuple[int, int]]:
        """Return the sampled pairs, the correct response first."""
        scores, pairs = need(row, "scores"), []
        for pair in need(row, "sampled_conflict_pairs"):
            valid = len(pair) == 2 and all(isinstance(each, int) and 0 <= each < len(scores) for each in pair)
            if not valid or scores[pair[0]] == scores[pair[1]]:
                raise DataError(f"expected pairs of a correct and a wrong response, got {shorten(pair)}")
            pairs.append(tuple(sorted(pair, key=scores.__getitem__, reverse=True)))
        return pairs

    def expected_rewards(self, row: Row) -> int:
        """Return the number of responses."""
        return len(need(row, "scores"))

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give the accuracy on the pairs of each set; the overall figure is their mean, NaN if one is missing."""
        pairs = self.each(rows, self.comparisons)
        compared = [(row, float(r[i] > r[j])) for row, r, of in zip(rows, rewards, pairs, strict=True) for i, j in of]
        return self.by_subset([row for row, _ in compared], [right for _, right in compared])


class RewardMATH(Benchmark):
    """RewardMATH (Kim et al. 2024): one right solution must beat nine wrong ones.

    Source: `RewardMATHEvaluation` in src/evaluation/eval.py of github.com/kimsh0507/RewardMATH_official.
    """

    name, title = "rewardmath", "RewardMATH"
    rule = "the right solution must be strictly greater than all nine wrong ones"
    published = (
        "hf.co/datasets/RewardMATH/RewardMATH and github.com/kimsh0507/RewardMATH_official "
        "(dataset/benchmark/RewardMATH_direct.json)"
    )
    fields = ()
    hub = (HubDataset("RewardMATH/RewardMATH"),)
    files = ("RewardMATH_direct",)
    others_column = "wrong"
    prompt_column = "problem"
    id_column = "problem_id"
    subset_columns = ()

    def responses(self, row: Row) -> list[Any]:
        """Return the right solution, then the wrong ones, each with a line for each step."""
        solutions = [need(row, "right"), *need(row, "wrong")]
        return [each if isinstance(each, str) else "\n".join(each) for each in solutions]

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give the share above all wrong ones; the same with ties, and the mean reciprocal rank, a tie ranked last."""
        figures = self.by_subset(rows, [float(right > max(wrong)) for right, *wrong in rewards])
        ranks = [1 + sum(each >= right for each in wrong) for right, *wrong in rewards]
        with_tie = mean(float(right >= max(wrong)) for right, *wrong in rewards)
        return figures._replace(parts={"with tie": with_tie, "mrr": mean(1 / rank for rank in ranks)})

    def arrange(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Join the published records, one for each solution, to one row for each problem."""
        problems: dict[Any, dict[str, Any]] = {}

        def add(row: Row) -> None:
            key, kind, solution = (need(row, name) for name in ("problem_id", "solution_type", "eval_solution"))
            problem = problems.setdefault(key, {"problem_id": key, "problem": need(row, "problem"), "wrong": []})
            if kind == "rejected":
                problem["wrong"].append(solution)
            elif kind == "chosen" and "right" not in problem:
                problem["right"] = solution
            else:
                raise DataError(f"expected one chosen solution and else rejected ones, got another {kind!r}")

        self.each(rows, add)
        return list(problems.values())


class RMBPairs(Benchmark):
    """The pairwise part of RMB (Zhou et al. 2024), with subsets below Helpfulness and Harmlessness."""

    name, title = "rmb-pairs", "RMB, pairs"
    rule = "strictly greater wins; mean over the subsets there"
    published = "github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark (RMB_dataset/Pairwise_set)"
    fields = ("category_path",)
    files = ("/Pairwise_set/",)
    names = ("Helpfulness", "Harmlessness")
    prompt_column = "conversation_input"
    id_column = "pair_uid"
    subset_columns = ("category_path",)

    def responses(self, row: Row) -> list[Any]:
        """Return the chosen answer, then the other."""
        return [_answer(need(row, "chosen")), _answer(need(row, "reject"))]

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give subsets and both goals; the overall figure is the mean over the subsets."""
        overall, parts, _ = self.by_subset(rows, [float(first > max(others)) for first, *others in rewards])
        if not parts:
            return Figures(overall, parts, [])
        goals = {goal: [share for path, share in parts.items() if goal in path.split("/")] for goal in self.names}
        found = {goal: mean(shares) for goal, shares in goals.items() if shares}
        return Figures(mean(parts.values()), found | parts, [goal for goal in self.names if goal not in found])


class RMBBestOfN(RMBPairs):
    """The best-of-n part of RMB: the best answer must beat all others."""

    name, title = "rmb-best-of-n", "RMB, best of n"
    rule = "the best must be strictly greater than all losers; mean over the subsets there"
    published = "github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark (RMB_dataset/BoN_set)"
    files = ("/BoN_set/",)
    others_column = "loser_list"
    id_column = "bon_uid"

    def responses(self, row: Row) -> list[Any]:
        """Return the best answer, then the losers in their order."""
        return [_answer(each) for each in [need(row, "bon_best"), *need(row, "loser_list")]]


def _answer(record: Any) -> str:
    if not isinstance(record, Mapping) or not isinstance(record.get("answer"), str):
        raise DataError(f'expected a record with an "answer", got {shorten(record)}')
    return record["answer"]
