"""`plaudit.compare`: two reward models on the same rows, and whether chance alone could explain their difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.score_files import read_scores
from plaudit.evaluation.scores import ScoredRow, Scores
from plaudit.evaluation.significance import PairedDifference, adjust_for_several, paired_difference
from plaudit.metrics import interval_tail

if TYPE_CHECKING:
    from plaudit.evaluation.benchmarks import Benchmark

__all__ = ["Comparison", "compare", "compare_several"]

# Properties of the header that change rewards; those of the second line belong to one model, and differ between models.
_SETTINGS = ("max_length", "dtype", "quantization", "attention", "layout")
_SETTINGS_OF_ONE_MODEL = ("chat_template", "bos", "eos")
_DATA_OPTIONS = ("split", "dataset_config", "dataset_format")


@dataclass(frozen=True)
class Comparison(PairedDifference):
    """The difference of the models a and b over all rows, and where it comes from.

    Attributes:
        a: Name of the first model.
        b: Name of the second model.
        subsets: The figures of `PairedDifference` for each value of the column `subset`, with p-values adjusted for
            the number of subsets.
        composites: For a benchmark, its own figures by name, `overall` first: `a`, `b`, `difference`, `low`, `high`.
        rows_apart: Rows in which exactly one model is right, the one on which they differ most first: `row`, `id`,
            `subset`, `right` ("a" or "b"), `better` and `worse` (indices of responses), `rewards_a` and `rewards_b`.
        notes: Settings in which the two files differ, as sentences.
    """

    a: str
    b: str
    subsets: dict[str, dict[str, Any]]
    composites: dict[str, dict[str, float]]
    rows_apart: list[dict[str, Any]]
    notes: list[str]

    @property
    def verdict(self) -> str:
        """One sentence: the model that is better, or the smallest difference that could have been seen."""
        if self.separable:
            better, worse = (self.a, self.b) if self.difference > 0 else (self.b, self.a)
            low, high = sorted((abs(self.low), abs(self.high)))
            return (
                f"{better} is better than {worse}: by {100 * abs(self.difference):.1f} points "
                f"(95% interval {100 * low:.1f} to {100 * high:.1f})"
            )
        if self.smallest_detectable > 1:
            return f"not separable: {self.prompts} prompts are too few to see any difference"
        seen = f"{100 * self.smallest_detectable:.1f} points"
        return f"not separable: the smallest difference that could have been seen is {seen}"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, `separable` and `verdict`, for JSON."""
        return super().to_dict() | {"verdict": self.verdict}


def compare(a: Any, b: Any, dataset: Any = None, **options: Any) -> Comparison:
    """Compare two reward models on the same rows.

    Args:
        a: A score file, its `Scores` or an `Evaluation`; with `dataset` also a model: a path or hub id, a `RewardModel`
            or any other scorer that `plaudit.evaluate` takes.
        b: The same of the other model.
        dataset: The rows that models score, as `plaudit.evaluate` takes them, or that foreign score files belong to.
        **options: Options of `plaudit.evaluate` for the dataset (`split`, `dataset_config`, `dataset_format`) and the
            models (`max_length`, `dtype`, `device`, ...).

    Raises:
        ConfigError: An argument is neither scores nor, with a dataset, a model; or an option comes without a dataset.
        DataError: A file cannot be read, the two do not hold the same rows, or no row has a preference.
        ModelError: A model is no reward model, or a reward is not finite.
    """
    return compare_several([a, b], dataset, **options)[0]


def compare_several(sources: Sequence[Any], dataset: Any = None, **options: Any) -> list[Comparison]:
    """Compare the first model with each other one, with p-values adjusted for their number: see `compare`."""
    given = [name for name, value in options.items() if value is not None]
    if dataset is None and given:
        raise ConfigError(f"{', '.join(given)}: these are options of the data that models score; name the data too.")
    scores = [_read(source, dataset, options) for source in sources]
    names = [str(each.header.get("model") or "") for each in scores]
    if "" in names or len(set(names)) < len(names):
        names = [str(each) if isinstance(each, (str, Path)) else f"model {n}" for n, each in enumerate(sources, 1)]
    others = zip(scores[1:], names[1:], strict=True)
    return adjust_for_several([_compare(scores[0], other, names[0], name) for other, name in others])


def _read(source: Any, dataset: Any, options: dict[str, Any]) -> Scores:
    scores = getattr(source, "scores", source)
    if isinstance(scores, Scores):
        return scores
    is_file = isinstance(source, (str, Path)) and Path(source).expanduser().is_file()
    if dataset is None and not is_file:
        raise ConfigError(
            f"expected a score file (`plaudit eval --scores` writes one), and there is none at {str(source)!r:.80}. To "
            "compare models, name the data that they shall score (--data)."
        )
    if dataset is None:
        return read_scores(source)
    from plaudit.evaluation.evaluate import evaluate, join_dataset

    if is_file:
        return join_dataset(source, dataset, **{name: options.get(name) for name in _DATA_OPTIONS})
    return evaluate(source, dataset, **options).scores


def _compare(a: Scores, b: Scores, name_a: str, name_b: str) -> Comparison:
    a, b = _match(a, b, name_a, name_b)
    pairs = a.comparisons
    margin_a, margin_b = a.margins, b.margins
    counted = (pairs.labels != 0.5) & (pairs.weights > 0)  # as in `plaudit.metrics.preference_metrics`
    if not counted.any():
        raise DataError("expected a row with a preference to compare on, got only ties and rows without weight")
    right_a, right_b = (np.heaviside(margin, 0.5) for margin in (margin_a, margin_b))

    def difference(chosen: NDArray[np.bool_]) -> PairedDifference:
        return paired_difference(right_a[chosen], right_b[chosen], pairs.prompts[chosen], pairs.weights[chosen])

    of_comparisons = np.array(pairs.subsets, dtype=object)[pairs.rows]
    names = sorted({each for each in of_comparisons[counted].tolist() if each})
    subsets = adjust_for_several([difference(counted & (of_comparisons == name)) for name in names])
    overall = difference(counted)
    return Comparison(
        **{each.name: getattr(overall, each.name) for each in fields(overall)},
        a=name_a,
        b=name_b,
        subsets={name: each.to_dict() for name, each in zip(names, subsets, strict=True)},
        composites=_composites(a, b),
        rows_apart=_rows_apart(a, b, counted),
        notes=_notes(a, b),
    )


def _match(a: Scores, b: Scores, name_a: str, name_b: str) -> tuple[Scores, Scores]:
    """Return both scores with the rows in the order of the first, after a check that the rows are the same."""
    hashes = [(each.header.get("dataset") or {}).get("hash") for each in (a, b)]
    if all(hashes) and hashes[0] != hashes[1]:
        raise DataError(
            f"{name_a} and {name_b} scored different data (hashes {hashes[0]} and {hashes[1]}). Score both on one "
            "version of the dataset, with the same split and format."
        )
    key = "id" if all(_has_unique_ids(each.rows) for each in (a, b)) else "row"
    rows_by_key = [{getattr(row, key): row for row in each.rows} for each in (a, b)]
    only_a, only_b = rows_by_key[0].keys() - rows_by_key[1].keys(), rows_by_key[1].keys() - rows_by_key[0].keys()
    if only_a or only_b:
        raise DataError(
            f"expected the same rows in both, but {len(only_a)} of {len(a.rows)} rows are only in {name_a} and "
            f"{len(only_b)} of {len(b.rows)} only in {name_b}; the first is {key} {min(only_a or only_b)}. Score both "
            "models on the whole dataset."
        )
    pairs = [(row, rows_by_key[1][getattr(row, key)]) for row in a.rows]
    # A foreign file knows the rewards alone; the rest comes from the file that knows its dataset.
    has_dataset = [bool(each.header.get("dataset")) for each in (a, b)]
    for one, two in pairs:
        if what := _difference_of_rows(one, two, structure=has_dataset[0] == has_dataset[1]):
            place = f"{key} {getattr(one, key)}"
            raise DataError(f"{place} differs between {name_a} and {name_b}: {what}. Score both models on one dataset.")
    base = [two if has_dataset[1] and not has_dataset[0] else one for one, two in pairs]

    def with_rewards(n: int) -> list[ScoredRow]:
        both = zip(base, pairs, strict=True)
        return [replace(row, rewards=pair[n].rewards, truncated=pair[n].truncated) for row, pair in both]

    return Scores(a.header, with_rewards(0)), Scores(b.header, with_rewards(1))


def _has_unique_ids(rows: Sequence[ScoredRow]) -> bool:
    ids = {row.id for row in rows}
    return None not in ids and len(ids) == len(rows)


def _difference_of_rows(one: ScoredRow, two: ScoredRow, *, structure: bool) -> str:
    """Return the first property that differs, and its values; an empty text where the rows are the same."""
    if len(one.rewards) != len(two.rewards):
        return f"{len(one.rewards)} and {len(two.rewards)} rewards"
    for name in ("prompt_key", "comparisons", "label", "weight", "subset") if structure else ():
        values = getattr(one, name), getattr(two, name)
        if values[0] != values[1]:
            return f"`{name}` is {values[0]!r:.60} and {values[1]!r:.60}"
    return ""


def _notes(a: Scores, b: Scores) -> list[str]:
    """Return a sentence for each setting in which two files differ and which changes rewards."""
    one_model = a.header.get("model") == b.header.get("model")
    names = (*_SETTINGS, *_SETTINGS_OF_ONE_MODEL) if one_model else _SETTINGS
    pairs = [(name, a.header.get(name), b.header.get(name)) for name in names]
    notes = [f"{name} differs: {x} and {y}." for name, x, y in pairs if x is not None and y is not None and x != y]
    cut = [sum(sum(row.truncated or ()) for row in each.rows) for each in (a, b)]
    return notes + ([f"Sequences that were cut: {cut[0]:,} and {cut[1]:,}."] if cut[0] != cut[1] else [])


def _rows_apart(a: Scores, b: Scores, counted: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return the rows in which one model is right and the other is not, by the distance of their scaled margins."""
    pairs = a.comparisons
    margins = np.stack([a.margins, b.margins])  # [2, C]
    scale = np.sqrt((margins[:, counted] ** 2).mean(axis=1, keepdims=True))
    scaled = margins / np.where(scale > 0, scale, 1)
    right = margins > 0
    apart = np.flatnonzero(counted & (right[0] != right[1]))
    first = np.cumsum([0, *(len(row.rewards) for row in a.rows)])
    found: dict[int, dict[str, Any]] = {}
    for place in apart[np.argsort(-np.abs(scaled[0] - scaled[1])[apart], kind="stable")].tolist():
        index = int(pairs.rows[place])
        row = a.rows[index]
        found.setdefault(index, {
            "row": row.row, "id": row.id, "subset": row.subset, "right": "a" if right[0, place] else "b",
            "better": int(pairs.better[place] - first[index]), "worse": int(pairs.worse[place] - first[index]),
            "rewards_a": row.rewards, "rewards_b": b.rows[index].rewards,
        })  # fmt: skip
    return list(found.values())


def _composites(a: Scores, b: Scores, resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return the figures of a benchmark's own rule for both models, with bootstrap intervals of their differences.

    Each resample draws, from each subset, as many prompts as it has, and computes the whole rule on their rows.
    """
    name = a.header.get("benchmark")
    if name is None or name != b.header.get("benchmark"):
        return {}
    from plaudit.evaluation.benchmark_scores import find_benchmark

    benchmark, columns = find_benchmark(name), [row.fields for row in a.rows]
    rewards = [[row.rewards for row in each.rows] for each in (a, b)]
    results = [benchmark.figures(columns, each) for each in rewards]  # checks the rows, which `measure` does not
    whole = [{"overall": each["overall"], **each["parts"]} for each in results]
    parts = [part for part, value in whole[0].items() if math.isfinite(value)]
    strata, generator = _clusters(a.rows, benchmark), np.random.default_rng(seed)
    samples = np.full((resamples, len(parts)), math.nan)
    for sample in tqdm(samples, desc=f"resamples of {name}", delay=3, disable=None, leave=False):
        drawn = [stratum[n] for stratum in strata for n in generator.integers(len(stratum), size=len(stratum))]
        places = [place for cluster in drawn for place in cluster]
        rules = [benchmark.measure([columns[n] for n in places], [each[n] for n in places]) for each in rewards]
        one, two = ({"overall": rule.overall} | rule.parts for rule in rules)
        sample[:] = [one.get(part, math.nan) - two.get(part, math.nan) for part in parts]
    tail = interval_tail(sum(map(len, strata)))
    ends = np.nanquantile(samples, [tail, 1 - tail], axis=0).T.tolist()
    return {
        part: {"a": whole[0][part], "b": whole[1][part], "difference": whole[0][part] - whole[1][part]}
        | {"low": low, "high": high}
        for part, (low, high) in zip(parts, ends, strict=True)
    }


def _clusters(rows: Sequence[ScoredRow], benchmark: "Benchmark") -> list[list[list[int]]]:
    """Return, for each subset, the places of the rows of each prompt or of what its rule keeps together."""
    clusters: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        clusters.setdefault(benchmark.cluster(row.fields) or row.prompt, []).append(place)
    strata: dict[str | None, list[list[int]]] = {}
    for places in clusters.values():
        strata.setdefault(rows[places[0]].subset, []).append(places)
    return list(strata.values())
