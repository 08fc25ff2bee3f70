"""Benchmarks of two responses and a label: JudgeBench, LLMBar, EvalBiasBench, HelpSteer3; and Plan-RewardBench."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.data.annotations import shorten
from plaudit.data.file_formats import explain_errors
from plaudit.errors import DataError
from plaudit.evaluation.benchmarks.benchmark import Benchmark, Figures, Message, Row, means, need
from plaudit.evaluation.benchmarks.published_files import HubDataset

__all__ = ["EvalBiasBench", "HelpSteer3", "JudgeBench", "LLMBar", "PlanRewardBench"]

# By label: the index of the better response, or None for a tie.
LETTERS: Mapping[Any, int | None] = {"A>B": 0, "B>A": 1}
NUMBERS: Mapping[Any, int | None] = {1: 0, 2: 1}
PREFERENCES: Mapping[Any, int | None] = {-3: 0, -2: 0, -1: 0, 0: None, 1: 1, 2: 1, 3: 1}


class _Labelled(Benchmark):
    """Two responses in the published order, and a label that says which is better."""

    columns: tuple[str, str]
    labels: tuple[str, ...] = ("label",)
    better: Mapping[Any, int | None] = NUMBERS
    id_column: str | None = None

    def responses(self, row: Row) -> list[Any]:
        return [need(row, column) for column in self.columns]

    def comparisons(self, row: Row) -> list[tuple[int, int]]:
        best = self.better[need(row, *self.labels, allowed=self.better)]
        return [] if best is None else [(best, 1 - best)]

    def decided(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> list[tuple[Row, float, float]]:
        """Return each row whose label is no tie, with the rewards of its better and its worse response."""
        compared = zip(rows, self.each(rows, self.comparisons), rewards, strict=True)
        return [(row, r[i], r[j]) for row, pairs, r in compared for i, j in pairs]

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give the accuracy of each subset; the overall figure is over all pairs whose label is no tie."""
        decided = self.decided(rows, rewards)
        right = [float(better > worse) for _, better, worse in decided]
        return self.by_subset([row for row, *_ in decided], right, pooled=True)


class JudgeBench(_Labelled):
    """JudgeBench (Tan et al. 2024): a reward model decides for A only where A has the greater reward.

    Source: the reward-model judges in utils/judges.py of github.com/ScalerLab/JudgeBench.
    """

    name, title = "judgebench", "JudgeBench"
    rule = "A if its reward is strictly greater, else B; over all pairs"
    published = "hf.co/datasets/ScalerLab/JudgeBench (splits gpt, claude) and github.com/ScalerLab/JudgeBench (data/)"
    fields = ("label", "source")
    hub = (HubDataset("ScalerLab/JudgeBench", "gpt"), HubDataset("ScalerLab/JudgeBench", "claude"))
    files = (r"^(?!.*judge_name=)",)  # the repository has outputs of judges too
    names = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
    prompt_column = "question"
    id_column = "pair_id"
    subset_columns = ("source",)
    columns = ("response_A", "response_B")
    better = LETTERS

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give sources and their four groups; the overall figure is over all pairs, not over sources."""
        for_b = [pairs == [(1, 0)] for pairs in self.each(rows, self.comparisons)]
        right = [float((a > b) != each) for each, (a, b) in zip(for_b, rewards, strict=True)]
        figures = self.by_subset(rows, right, pooled=True)
        if not figures.parts:
            return figures
        sources = self.subsets(rows)
        groups = means([next((n for n in self.names if each.startswith(n)), each) for each in sources], right)
        missing = [name for name in self.names if name not in groups]
        return Figures(figures.overall, groups | figures.parts, missing)


class LLMBar(_Labelled):
    """LLMBar (Zeng et al. 2023): two outputs, of which one follows the instruction.

    Source: the evaluators that rate each output in LLMEvaluator/evaluate.py of github.com/princeton-nlp/LLMBar. Equal
    ratings are right in one of the two orders of the outputs, and so count one half.
    """

    name, title = "llmbar", "LLMBar"
    rule = "accuracy over both orders, so that a tie is one half; mean of five subsets"
    published = "github.com/princeton-nlp/LLMBar (Dataset/LLMBar)"
    fields = ("subset", "label")
    files = (r"/(?P<subset>Natural|Neighbor|GPTInst|GPTOut|Manual)/dataset\.json$",)
    names = ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")
    prompt_column = "input"
    columns = ("output_1", "output_2")

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give the accuracy of each subset; the overall figure is the mean of the five, NaN if one is missing."""
        decided = self.decided(rows, rewards)
        return self.by_subset(rows, [(1 + (better > worse) - (better < worse)) / 2 for _, better, worse in decided])


class EvalBiasBench(_Labelled):
    """EvalBiasBench (Park et al. 2024): 80 pairs, each made to mislead by one of six biases."""

    name, title = "evalbiasbench", "EvalBiasBench"
    rule = "strictly greater wins; over all 80 pairs"
    published = "github.com/ncsoft/offsetbias (data/evalbiasbench/biasbench.json)"
    fields = ("bias", "label")
    files = (r"/biasbench\.",)
    names = (
        "length bias", "concreteness", "empty reference", "content_continuation", "nested_instruction",
        "familiar knowledge preference bias",
    )  # fmt: skip
    prompt_column = "instruction"
    subset_columns = ("bias",)
    columns = ("response1", "response2")

    def read_copy(self, file: Path) -> list[dict[str, Any]]:
        """Read the published file, one JSON object of lists by bias, or rows in any other form."""
        if file.suffix == ".json":
            with explain_errors(file):
                content = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return [row for rows in content.values() for row in rows]
        return super().read_copy(file)


class HelpSteer3(_Labelled):
    """HelpSteer3-Preference (Wang et al. 2025), its validation split: the sign of people's preference from -3 to 3."""

    name, title = "helpsteer3", "HelpSteer3"
    rule = "sign of the preference, strictly; pairs of preference 0 left out; over all pairs"
    published = "hf.co/datasets/nvidia/HelpSteer3 (configuration preference, split validation)"
    fields = ("domain", "overall_preference", "preference")
    hub = (HubDataset("nvidia/HelpSteer3", "validation", "preference"),)
    files = (r"/preference/validation", r"/validation")
    names = ("general", "stem", "code", "multilingual")
    prompt_column = "context"
    subset_columns = ("domain",)
    columns = ("response1", "response2")
    labels = ("overall_preference", "preference")
    better = PREFERENCES


class PlanRewardBench(Benchmark):
    """Plan-RewardBench (Wang et al. 2026): two trajectories of an agent with tools.

    Source: eval/evaluate_benchmark_final.py of github.com/wyy-1112/Plan-RewardBench. A sequence is the user's turn with
    tools and query, and one assistant's turn with the whole trajectory as text: of its two layouts, the one that keeps
    to the alternation of roles that chat templates demand.
    """

    name, title = "plan-rewardbench", "Plan-RewardBench"
    rule = "greater by more than 1e-4 wins, closer is one half; mean of seven categories"
    published = "github.com/wyy-1112/Plan-RewardBench (benchmark/)"
    fields = ("subset", "category")
    subset_columns = ("subset", "category")
    names = (
        "planning_single_easy", "planning_single_hard", "planning_multi_easy", "planning_multi_hard",
        "robust_recovery", "safety_refusal", "tool_irrelevance",
    )  # fmt: skip
    files = (rf"/(?P<subset>{'|'.join(names)})(?:_unified)?\.[^/]*$",)
    id_column = "uuid"

    def prompt(self, row: Row) -> list[Message]:
        """Return the user's turn: the tools as JSON, then the query."""
        tools = json.dumps(row.get("tools") or [], ensure_ascii=False, indent=2)
        content = f"<tool_environment>\n{tools}\n</tool_environment>\n<user_query>\n{need(row, 'query')}\n</user_query>"
        return [{"role": "user", "content": content}]

    def responses(self, row: Row) -> list[Any]:
        """Return the chosen trajectory, then the rejected one."""
        return [_trajectory(need(row, "chosen")), _trajectory(need(row, "reject"))]

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Give the seven categories; the overall figure is their mean, NaN if one is missing."""
        return self.by_subset(rows, [0.5 if abs(a - b) <= 1e-4 else float(a > b) for a, b in rewards])


def _trajectory(side: Any) -> str:
    """Return the messages of a trajectory as one text, a paragraph each, with the role (and tool) in brackets."""
    messages = side.get("messages") if isinstance(side, Mapping) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, Mapping) for each in messages):
        raise DataError(f'expected a record with "messages", got {shorten(side)}')
    paragraphs = []
    for message in messages:
        content, role = message.get("content") or "", str(message.get("role", "")).upper()
        if not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False)
        name = f" name={message['name']}" if message.get("name") and role.startswith("TOOL") else ""
        paragraphs.append(f"[{role}{name}] {content}")
    return "\n\n".join(paragraphs)
