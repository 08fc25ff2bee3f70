"""`plaudit.evaluate`: agreement of a reward model with the preferences of people."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plaudit.data.dataset_conversion import convert
from plaudit.data.loading import load_source, take_split
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.evaluation.benchmark_scores import official_figures
from plaudit.evaluation.figures import calibration_table, compute_figures
from plaudit.evaluation.preference_data import Comparisons, PreferenceData, read_preferences
from plaudit.evaluation.score_files import join_scores
from plaudit.evaluation.scorer import Scorer, score_sequences
from plaudit.evaluation.scores import Scores, scored_rows
from plaudit.evaluation.uncertainty_figures import UncertaintyFigures, uncertainty_figures

if TYPE_CHECKING:
    from plaudit.scoring.reward_model import RewardModel

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_scores",
    "finite_or_none",
    "join_dataset",
    "load_rows",
    "mean_figures",
]

_DEFAULT_SPLITS = ("test", "validation")
_AVERAGED = ("accuracy", "longer_wins", "shorter_wins", "log_loss", "calibration_error", "calibrated_log_loss")


@dataclass(frozen=True)
class Evaluation:
    """The figures of one dataset, as `plaudit.evaluation.figures.METRICS` describes them.

    Attributes:
        dataset: Path or hub id of the dataset; `None` for rows that were passed in.
        split: The split that was loaded; `None` for rows that were passed in.
        overall: Figures by name over all rows; NaN where one is not defined.
        subsets: Figures of each value of the column `subset` that has a comparison, in alphabetical order.
        calibration: `confidence`, `accuracy` and `share` of each calibration bin, for a reliability diagram.
        cut: Number of sequences that were truncated, as they had more tokens than the model takes.
        official: Of a benchmark, its name as `benchmark`, its `rule`, and what the rule gives: `overall`, `parts` and
            `missing`.
        uncertainty: The figures of the members' spread; `None` for a model without members.
        scores: The rewards of the rows, which `plaudit.evaluation.score_files.write_scores` saves.
    """

    dataset: str | None
    split: str | None
    overall: dict[str, float]
    subsets: dict[str, dict[str, float]]
    calibration: list[dict[str, float]]
    cut: int = 0
    official: dict[str, Any] | None = None
    uncertainty: UncertaintyFigures | None = None
    scores: Scores = field(default_factory=lambda: Scores({}, []))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON, with `None` for figures that are not finite; of the scores, the header alone."""
        fields = {name: value for name, value in vars(self).items() if name != "scores"}
        fields["uncertainty"] = None if self.uncertainty is None else self.uncertainty.to_dict()
        return finite_or_none(fields) | {"header": self.scores.header}


def evaluate(
    model: "RewardModel | Scorer | Callable[[list[Any]], Any] | str | Path",
    dataset: Any,
    *,
    split: str | None = None,
    dataset_config: str | None = None,
    dataset_format: str | None = None,
    **model_options: Any,
) -> Evaluation:
    """Score the responses of every comparison, and compare the rewards with the preferences of people.

    Args:
        model: A reward model, or a path or hub id for `RewardModel.from_pretrained`; or any function from N texts or
            conversations to N rewards, or object with such a method `score`.
        dataset: A `datasets.Dataset` or a list of rows (pairs or ranked groups); or a hub id, a file or a folder.
        split: The split of a dataset that is loaded: "test" if there is one, else "validation", else the only one.
        dataset_config: The configuration of a hub dataset that has several.
        dataset_format: The published layout to convert rows from. Ties are kept, and counted.
        **model_options: Options of `RewardModel.from_pretrained` (`max_length`, `dtype`, `device`, ...).

    Raises:
        ConfigError: Model options come with a loaded model, or a split or a configuration with loaded rows.
        DataError: The dataset cannot be read, a row is malformed (the message names it), or no row has a preference.
        ModelError: The model is no reward model, or a reward is not finite.
    """
    if model_options and not isinstance(model, (str, Path)):
        raise ConfigError(
            f"{', '.join(sorted(model_options))}: the reward model is loaded already. Give these to "
            "`RewardModel.from_pretrained`, or pass `evaluate` a path."
        )
    name = str(dataset) if isinstance(dataset, (str, Path)) else None
    rows, split = load_rows(dataset, split=split, dataset_config=dataset_config, dataset_format=dataset_format)
    with _naming_dataset(name):
        data = read_preferences(rows)
    if isinstance(model, (str, Path)):
        from plaudit.scoring.reward_model import RewardModel  # takes seconds to import

        model = RewardModel.from_pretrained(model, **model_options)
    with _naming_dataset(name):
        rewards, header, details = score_sequences(model, data.sequences, data.template_options, data.names)
    header |= {"dataset": _describe(data, name, split, dataset_config, dataset_format), "benchmark": None}
    return evaluate_scores(Scores(header, scored_rows(data, rewards, *details)))


def evaluate_scores(scores: Scores) -> Evaluation:
    """Return the figures of rewards that were scored before, such as those of a score file.

    Raises:
        DataError: No row has a preference.
    """
    comparisons = scores.comparisons
    dataset = scores.header.get("dataset") or {}
    everything = np.ones(len(scores.rows), dtype=bool)
    subsets = {
        subset: compute_figures(comparisons, scores.rewards, scores.lengths, rows)
        for subset, rows in _subsets(comparisons)
    }
    return Evaluation(
        dataset=scores.header.get("benchmark") or dataset.get("path"),
        split=dataset.get("split"),
        overall=compute_figures(comparisons, scores.rewards, scores.lengths, everything),
        subsets=subsets,
        calibration=calibration_table(comparisons, scores.rewards),
        cut=sum(sum(row.truncated or ()) for row in scores.rows),
        official=official_figures(scores),
        uncertainty=uncertainty_figures(scores),
        scores=scores,
    )


def join_dataset(
    scores: str | Path,
    dataset: Any,
    *,
    split: str | None = None,
    dataset_config: str | None = None,
    dataset_format: str | None = None,
) -> Scores:
    """Join a foreign file of rewards, lines of `id` or `row` with `rewards`, to its dataset.

    The arguments are those of `evaluate`.

    Raises:
        DataError: The dataset cannot be read, or the file does not hold the rewards of all its rows.
    """
    name = str(dataset) if isinstance(dataset, (str, Path)) else None
    rows, split = load_rows(dataset, split=split, dataset_config=dataset_config, dataset_format=dataset_format)
    with _naming_dataset(name):
        data = read_preferences(rows)
    described = _describe(data, name, split, dataset_config, dataset_format)
    return join_scores(scores, data, {"model": Path(scores).name, "dataset": described, "benchmark": None})


def _describe(
    data: PreferenceData, path: str | None, split: str | None, config: str | None, layout: str | None
) -> dict[str, Any]:
    """Return the entry `dataset` of the header of a score file; its hash is of all responses in their order.

    Args:
        data: The preferences of the dataset.
        path: Path or hub id, if it has one.
        split: The split.
        config: The configuration of a hub dataset.
        layout: The published layout that the rows were converted from.
    """
    digest = hashlib.sha256()
    for sequence in data.sequences:
        digest.update(json.dumps(sequence, sort_keys=True, default=str).encode() + b"\n")
    rows, digits = len(data.subsets), digest.hexdigest()[:16]
    return {"path": path, "split": split, "config": config, "format": layout, "rows": rows, "hash": digits}


def mean_figures(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the means over datasets, each of the same weight, of the figures that can be averaged."""
    return {name: float(np.mean([each.overall[name] for each in evaluations])) for name in _AVERAGED}


def finite_or_none(value: Any) -> Any:
    """Return a nested value with `None` for each number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite_or_none(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite_or_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_rows(
    dataset: Any,
    *,
    split: str | None,
    dataset_config: str | None,
    dataset_format: str | None,
    defaults: tuple[str, ...] = _DEFAULT_SPLITS,
) -> tuple[Iterable[dict[str, Any]], str | None]:
    """Return the rows of a dataset, converted where a format is named, and the split that was loaded.

    The arguments and the errors are those of `evaluate`; `defaults` are the splits to look for where none is named.
    """
    if isinstance(dataset, (str, Path)):
        splits = load_source(str(dataset), config=dataset_config)
        split = split or _default_split(splits, str(dataset), defaults)
        dataset = take_split(splits, split, str(dataset))
    elif isinstance(dataset, dict):
        raise DataError(f"expected one split, got {', '.join(map(str, dataset))}. Pass one of them: dataset['test'].")
    elif split is not None or dataset_config is not None:
        raise ConfigError("split and dataset_config are for a dataset that is loaded by its name; leave them out.")
    if dataset_format is None:
        return dataset, split
    if not hasattr(dataset, "map"):
        from datasets import Dataset

        dataset = Dataset.from_list(list(dataset))
    return convert(dataset, dataset_format, keep_ties=True), split


def _default_split(splits: Any, path: str, defaults: tuple[str, ...]) -> str:
    names = [str(name) for name in splits]
    for name in defaults:
        if name in names:
            return name
    if len(names) > 1:
        raise DataError(f"{path} has the splits {', '.join(names)}; name one of them with `split`.")
    return names[0]


@contextmanager
def _naming_dataset(dataset: str | None) -> Iterator[None]:
    """Begin the messages of errors with the name of the dataset, since a command may read several."""
    try:
        yield
    except (DataError, ModelError) as error:
        if dataset is None:
            raise
        raise type(error)(f"{dataset}, {error}") from error


def _subsets(data: Comparisons) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the name and the rows [R] of each subset that has a comparison."""
    of_rows = np.array(data.subsets, dtype=object)
    for name in sorted({data.subsets[row] or "" for row in data.rows.tolist()} - {""}):
        yield name, of_rows == name
