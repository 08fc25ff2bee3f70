"""The numbers of the charts, each as a list of records that is also the table beside the chart; NumPy alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.metrics import accuracy, accuracy_interval_by_prompt

__all__ = [
    "accuracy_with_interval",
    "length_deciles",
    "margin_bins",
    "reward_bins",
    "reward_length_cells",
    "reward_quantiles",
]

Record = dict[str, float]
_MOST_BINS = 24


def accuracy_with_interval(
    differences: ArrayLike, weights: ArrayLike | None = None, prompts: ArrayLike | None = None
) -> Record:
    """Return `accuracy`, `accuracy_low`, `accuracy_high` and `comparisons`.

    Args:
        differences: Rewards of the better minus those of the other responses, shape [C].
        weights: Weight of each comparison, above 0, shape [C]; 1 where `None`.
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C]; each its own where `None`.

    Example:
        >>> accuracy_with_interval([1.0, 0.5, -1.0, 2.0])["accuracy"]
        0.75
    """
    d = np.asarray(differences, dtype=np.float64)
    zeros, keys = np.zeros(len(d)), np.arange(len(d)) if prompts is None else prompts
    low, high = accuracy_interval_by_prompt(d, zeros, keys, weights)
    return {
        "accuracy": accuracy(d, zeros, weights), "accuracy_low": low, "accuracy_high": high, "comparisons": len(d)
    }  # fmt: skip


def margin_bins(differences: ArrayLike, weights: ArrayLike | None = None) -> list[Record]:
    """Return `low`, `high` and `share` (of the weight) of bins of margins; zero is the edge of two bins.

    The outermost bins hold the margins beyond them too: the bins reach to the 99th percentile of the absolute margin.
    The share of equal rewards is halved between the bins at zero. Arguments are those of `accuracy_with_interval`.

    Example:
        >>> [each["share"] for each in margin_bins([1.0, -1.0, 1.0, 0.0])]
        [0.375, 0.625]
    """
    d = np.asarray(differences, dtype=np.float64)
    mass = np.ones(len(d)) if weights is None else np.asarray(weights, dtype=np.float64)
    reach = float(np.quantile(np.abs(d), 0.99)) or 1.0
    bins = 2 * max(1, min(_MOST_BINS // 2, len(d) // 16))
    edges = np.linspace(-reach, reach, bins + 1)
    edges[bins // 2] = 0.0
    inside = np.clip(d, -reach, reach)
    tied = d == 0
    counted, _ = np.histogram(inside[~tied], edges, weights=mass[~tied])
    counted[bins // 2 - 1 : bins // 2 + 1] += mass[tied].sum() / 2
    return _bins(edges, share=counted / mass.sum())


def length_deciles(
    differences: ArrayLike,
    length_differences: ArrayLike,
    weights: ArrayLike | None = None,
    prompts: ArrayLike | None = None,
) -> list[Record]:
    """Return the accuracy, with its interval, in ten groups of comparisons by how much longer the better response is.

    There are fewer groups where one would have fewer than 20 comparisons. Equal lengths are in one group.

    Args:
        differences: Rewards of the better minus those of the other responses, shape [C].
        length_differences: Lengths of the better minus those of the other responses, finite, shape [C].
        weights: As for `accuracy_with_interval`.
        prompts: As for `accuracy_with_interval`.

    Returns:
        `low`, `high` (least and greatest length difference) and the figures of `accuracy_with_interval` of each group.
    """
    d, longer = np.asarray(differences, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    mass = np.ones(len(d)) if weights is None else np.asarray(weights, dtype=np.float64)
    keys = np.arange(len(d)) if prompts is None else np.asarray(prompts)
    groups = max(1, min(10, len(d) // 20))
    edges = np.unique(np.quantile(longer, np.arange(1, groups) / groups))
    place = np.searchsorted(edges, longer, side="left")
    records = []
    for group in np.unique(place):
        here = place == group
        ends = {"low": float(longer[here].min()), "high": float(longer[here].max())}
        records.append(ends | accuracy_with_interval(d[here], mass[here], keys[here]))
    return records


def reward_bins(rewards: Mapping[str, ArrayLike]) -> list[Record]:
    """Return `low`, `high` and the share of each named set of rewards [N] in bins that all sets have in common.

    Example:
        >>> [each["now"] for each in reward_bins({"now": [0.0, 1.0, 1.0, 1.0], "before": [0.0, 2.0, 2.0, 2.0]})]
        [0.25, 0.75, 0.0]
    """
    arrays = {name: np.asarray(each, dtype=np.float64) for name, each in rewards.items()}
    every = np.concatenate(list(arrays.values()))
    edges = np.histogram_bin_edges(every, min(_MOST_BINS, max(3, len(every) // 16)))
    shares = {name: np.histogram(each, edges)[0] / len(each) for name, each in arrays.items()}
    return _bins(edges, **shares)


def reward_length_cells(rewards: ArrayLike, lengths: ArrayLike, *, columns: int = 20, rows: int = 14) -> list[Record]:
    """Return the cells of a grid over log length and reward that hold a response.

    Args:
        rewards: Rewards of the responses, shape [N].
        lengths: Their lengths, at least 1, shape [N].
        columns: Number of columns, equal in the logarithm of the length.
        rows: Number of rows.

    Returns:
        `shortest`, `longest`, `low`, `high` and the number of `responses` of each cell.
    """
    logs = np.log10(np.asarray(lengths, dtype=np.float64))
    counts, x, y = np.histogram2d(logs, np.asarray(rewards, dtype=np.float64), bins=(columns, rows))
    return [
        {"shortest": 10 ** x[i], "longest": 10 ** x[i + 1], "low": y[j], "high": y[j + 1], "responses": counts[i, j]}
        for i, j in np.argwhere(counts > 0)
    ]


def reward_quantiles(rewards: ArrayLike, lengths: ArrayLike) -> list[Record]:
    """Return the tenth, median and ninetieth percentile of the rewards of ten groups of responses by length.

    Args:
        rewards: Rewards of the responses, shape [N].
        lengths: Their lengths, shape [N].

    Returns:
        `shortest` and `longest` length, and the percentiles `low`, `median` and `high`, of each group.
    """
    values, sizes = np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    place = np.searchsorted(np.unique(np.quantile(sizes, np.arange(1, 10) / 10)), sizes, side="left")
    return [
        {"shortest": float(sizes[here].min()), "longest": float(sizes[here].max())}
        | dict(zip(("low", "median", "high"), np.quantile(values[here], [0.1, 0.5, 0.9]).tolist(), strict=True))
        for here in (place == group for group in np.unique(place))
    ]


def _bins(edges: NDArray[np.float64], **shares: Any) -> list[Record]:
    ends = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [
        {"low": low, "high": high} | {name: float(each[place]) for name, each in shares.items()}
        for place, (low, high) in enumerate(ends)
    ]
