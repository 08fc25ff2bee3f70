"""`plaudit.evaluate`: how well a reward model agrees with people."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.data.dataset_conversion import convert
from plaudit.data.loading import load_source, take_split
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.evaluation.comparisons import Comparisons, compare, length_of
from plaudit.evaluation.figures import bins_of, figures
from plaudit.scoring.reward_model import RewardModel

__all__ = ["Evaluation", "evaluate", "finite", "mean_of"]

_SPLITS = ("test", "validation")
_AVERAGED = ("accuracy", "longer_wins", "shorter_wins", "log_loss", "calibration_error", "calibrated_log_loss")


@dataclass(frozen=True)
class Evaluation:
    """What came out. `plaudit.evaluation.METRICS` says what each figure means.

    Attributes:
        dataset: What it was evaluated on; `None` for rows without a name.
        split: The split of it, if it was loaded.
        overall: Figures by name; NaN where one is not defined.
        subsets: The same for each value of the column `subset`, in alphabetical order; empty without one.
        calibration: For a reliability diagram: `confidence`, `accuracy` and `share` of each bin, over all comparisons.
        cut: Sequences that were too long and were cut.
    """

    dataset: str | None
    split: str | None
    overall: dict[str, float]
    subsets: dict[str, dict[str, float]]
    calibration: list[dict[str, float]]
    cut: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON: figures that are not finite (an infinite temperature, say) are `None`."""
        return finite(asdict(self))


def evaluate(
    model: RewardModel | str | Path,
    dataset: Any,
    *,
    split: str | None = None,
    dataset_config: str | None = None,
    dataset_format: str | None = None,
    **model_options: Any,
) -> Evaluation:
    """Score both responses of every comparison, and say how often and how surely the model agrees with people.

    Args:
        model: A reward model, or what `RewardModel.from_pretrained` takes.
        dataset: A `datasets.Dataset` or a list of rows, pairs or ranked groups; or a hub id, a file or a folder.
        split: For one that is loaded: "test" if there is one, else "validation", else the only one.
        dataset_config: For a hub dataset with several configurations.
        dataset_format: The published layout to convert rows from; ties are kept, and counted.
        **model_options: For `RewardModel.from_pretrained` (`max_length`, `dtype`, `device`, ...).

    Raises:
        ConfigError: Options for what is loaded come with what is loaded already.
        DataError: The data cannot be read, or a row is malformed, and named; or nothing can be compared.
        ModelError: It is no reward model, or a reward is not finite.
    """
    if isinstance(model, RewardModel) and model_options:
        raise ConfigError(
            f"{', '.join(sorted(model_options))}: the reward model is loaded already. Give these to "
            f"`RewardModel.from_pretrained`, or pass `evaluate` a path."
        )
    name = str(dataset) if isinstance(dataset, (str, Path)) else None
    rows, split = _load_rows(dataset, split=split, dataset_config=dataset_config, dataset_format=dataset_format)
    with _said_of(name):
        compared = compare(rows)
    if not isinstance(model, RewardModel):
        model = RewardModel.from_pretrained(model, **model_options)
    cut = model.cut
    with _said_of(name):
        rewards = _score(model, compared)
    lengths = np.array([length_of(sequence) for sequence in compared.sequences], dtype=np.float64)
    every = np.ones(len(compared.subsets), dtype=bool)
    subsets = {subset: figures(compared, rewards, lengths, mask) for subset, mask in _masks(compared).items()}
    return Evaluation(
        name, split, figures(compared, rewards, lengths, every), subsets, bins_of(compared, rewards), model.cut - cut
    )


@contextmanager
def _said_of(dataset: str | None) -> Iterator[None]:
    """Begin messages about rows with the name of their dataset: there may be several."""
    try:
        yield
    except (DataError, ModelError) as error:
        if dataset is None:
            raise
        raise type(error)(f"{dataset}, {error}") from error


def mean_of(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """The mean over datasets, which count the same whatever their size, of the figures where that means something."""
    return {name: float(np.mean([each.overall[name] for each in evaluations])) for name in _AVERAGED}


def _load_rows(
    dataset: Any,
    *,
    split: str | None = None,
    dataset_config: str | None = None,
    dataset_format: str | None = None,
) -> tuple[Iterable[dict[str, Any]], str | None]:
    """The rows of what `evaluate` takes as a dataset, and the split of it that was loaded.

    Raises:
        ConfigError: A split or a configuration is named, but nothing is loaded.
        DataError: There is nothing there, or no such split; or there are several, and none is named.
    """
    if isinstance(dataset, (str, Path)):
        splits = load_source(str(dataset), config=dataset_config)
        split = split or _split_of(splits, str(dataset))
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


def _split_of(splits: Any, path: str) -> str:
    names = [str(name) for name in splits]
    for name in _SPLITS:
        if name in names:
            return name
    if len(names) > 1:
        raise DataError(f"{path} has the splits {', '.join(names)}; name the one to evaluate on with `split`.")
    return names[0]


def _score(model: RewardModel, compared: Comparisons) -> NDArray[np.float64]:
    """Rewards [N]."""
    rewards = model.score(compared.sequences, options=compared.options, names=compared.names).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rewards)).tolist()
    if bad:
        first = "; ".join(compared.names[place] for place in bad[:5])
        raise ModelError(
            f"{len(bad)} of {len(rewards)} rewards are not finite, so no figure would mean anything. The first are of "
            f"{first}. Look at these rows, and at the weights; use bfloat16 or float32 rather than float16."
        )
    return rewards


def _masks(compared: Comparisons) -> dict[str, NDArray[np.bool_]]:
    """The rows [R] of each subset that has a comparison."""
    subsets = np.array(compared.subsets, dtype=object)
    named = sorted({compared.subsets[row] or "" for row in compared.rows.tolist()} - {""})
    return {name: subsets == name for name in named}


def finite(value: Any) -> Any:
    """The same with `None` for every number that is not finite, since JSON has none."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
