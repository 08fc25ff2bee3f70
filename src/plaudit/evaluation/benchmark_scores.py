"""Published benchmarks, scored by a reward model: score files of their rows, and the official figures of such files."""

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from plaudit.data.prompts import prompt_key
from plaudit.errors import ConfigError
from plaudit.evaluation.benchmarks import BENCHMARKS, Benchmark
from plaudit.evaluation.scorer import score_sequences
from plaudit.evaluation.scores import ScoredRow, Scores
from plaudit.scoring.completions import count_characters

__all__ = ["find_benchmark", "official_figures", "score_benchmark"]


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name.

    Raises:
        ConfigError: There is no such benchmark.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark {name!r}: expected one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def score_benchmark(model: Any, name: str, data: str | Path | None = None) -> Scores:
    """Score the responses of a benchmark's rows.

    Args:
        model: A reward model, an object with a method `score`, or a function from conversations to rewards.
        name: A key of `plaudit.evaluation.benchmarks.BENCHMARKS`.
        data: A copy in the published layout, or a hub id; the published place where `None`.

    Raises:
        ConfigError: There is no such benchmark.
        DataError: The rows cannot be had or read.
        ModelError: A reward is not finite.
    """
    benchmark = find_benchmark(name)
    rows = benchmark.load(data)
    sequences = [benchmark.sequences(row) for row in rows]
    names = [f"{name}, row {number}, response {k}" for number, each in enumerate(sequences) for k in range(len(each))]
    rewards, header, details = score_sequences(model, [each for row in sequences for each in row], names=names)
    header |= {"benchmark": name, "dataset": {"path": None if data is None else str(data), "rows": len(rows)}}
    bounds = list(accumulate((len(each) for each in sequences), initial=0))
    scored = [
        _scored_row(benchmark, number, rows[number], sequences[number], rewards, details, slice(*between))
        for number, between in enumerate(pairwise(bounds))
    ]
    return Scores(header, scored)


def _scored_row(
    benchmark: Benchmark, number: int, row: dict[str, Any], responses: list[Any], rewards: Any, details: Any, at: slice
) -> ScoredRow:
    pairs = benchmark.comparisons(row)
    different = [(better, worse) for better, worse in pairs if responses[better] != responses[worse]]
    tokens, truncated, members, stds = (None if each is None else each[at].tolist() for each in details)
    return ScoredRow(
        row=number,
        rewards=rewards[at].tolist(),
        id=benchmark.row_id(row),
        prompt_key=prompt_key(benchmark.cluster(row) or benchmark.prompt(row)),
        subset=benchmark.subset(row),
        comparisons=different,
        identical=len(pairs) - len(different),
        characters=[count_characters(each) for each in responses],
        tokens=tokens,
        truncated=truncated,
        members=members,
        stds=stds,
        gold=[float(score) for score in row[benchmark.gold_column]] if benchmark.gold_column else None,
        fields={column: row.get(column) for column in benchmark.fields},
    )


def official_figures(scores: Scores) -> dict[str, Any] | None:
    """Return the official figures of a benchmark's scores; `None` for the scores of any other dataset.

    Returns:
        `benchmark` and `rule` (text), `overall` (a share), `parts` (shares by name), `missing` (names of subsets).

    Raises:
        DataError: A row does not fit the benchmark.
    """
    if not scores.header.get("benchmark"):
        return None
    benchmark = find_benchmark(scores.header["benchmark"])
    figures = benchmark.figures([row.fields for row in scores.rows], [row.rewards for row in scores.rows])
    return {"benchmark": benchmark.name, "rule": benchmark.rule, **figures}
