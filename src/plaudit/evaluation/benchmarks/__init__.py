"""Published benchmarks of reward models, each with its layout and its own rule.

>>> rows = [{"pair_id": "1", "label": "B>A"}]
>>> BENCHMARKS["judgebench"].figures(rows, [[0.5, 0.5]])["overall"]
1.0
"""

from plaudit.evaluation.benchmarks.benchmark import Benchmark
from plaudit.evaluation.benchmarks.response_groups import PPECorrectness, RewardMATH, RMBBestOfN, RMBench, RMBPairs
from plaudit.evaluation.benchmarks.response_pairs import EvalBiasBench, HelpSteer3, JudgeBench, LLMBar, PlanRewardBench
from plaudit.evaluation.benchmarks.reward_bench import MultilingualRewardBench, RewardBench, RewardBench2

__all__ = ["BENCHMARKS", "Benchmark"]

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        RewardBench(), RewardBench2(), RMBench(), JudgeBench(), RMBPairs(), RMBBestOfN(), PPECorrectness(), LLMBar(),
        RewardMATH(), EvalBiasBench(), MultilingualRewardBench(), PlanRewardBench(), HelpSteer3(),
    )
}  # fmt: skip
