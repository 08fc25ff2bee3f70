"""The numbers of the charts, each as a list of records; NumPy alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.metrics import accuracy, accuracy_interval_by_prompt

__all__ = ["comparison_rows", "length_deciles", "margin_bins", "reward_bins", "reward_length_cells"]

Record = dict[str, float]
_MOST_BINS = 24


def margin_bins(differences: ArrayLike, weights: ArrayLike | None = None) -> list[Record]:
    """Return `low`, `high` and `share` (of the weight) of bins of margins; zero is the edge of two bins.

    The bins reach to the 99th percentile of the absolute margin, and the outermost hold the margins beyond it too.

    Args:
        differences: Rewards of the better minus those of the other responses, shape [C].
        weights: Weight of each comparison, above 0, shape [C]; 1 where `None`.

    Example:
        >>> [each["share"] for each in margin_bins([1.0, -1.0, 1.0, 0.0])]
        [0.375, 0.625]
    """
    d = np.asarray(differences, dtype=np.float64)
    half = max(1, min(_MOST_BINS // 2, len(d) // 16))
    upper = np.linspace(0, float(np.quantile(np.abs(d), 0.99)) or 1.0, half + 1)
    edges = np.concatenate([-upper[:0:-1], upper])
    inside = np.clip(d, edges[0], edges[-1])
    # Counted from both sides, since a bin holds its lower edge: equal rewards are one half on each side of zero.
    counts = np.histogram(inside, edges, weights=weights)[0] + np.histogram(-inside, edges, weights=weights)[0][::-1]
    return _bins(edges, share=counts / counts.sum())


def length_deciles(
    differences: ArrayLike,
    length_differences: ArrayLike,
    weights: ArrayLike | None = None,
    prompts: ArrayLike | None = None,
) -> list[Record]:
    """Return the accuracy, with its interval, in ten groups of comparisons by how much longer the better response is.

    There are fewer groups where one would have fewer than 20 comparisons. Equal lengths are in one group.

    Args:
        differences: As for `margin_bins`.
        length_differences: Lengths of the better minus those of the other responses, finite, shape [C].
        weights: As for `margin_bins`.
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C]; each its own where `None`.

    Returns:
        `shortest` and `longest` length difference, `accuracy`, `accuracy_low`, `accuracy_high` and the number of
        `comparisons` of each group.
    """
    d, longer = np.asarray(differences, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    mass = np.ones(len(d)) if weights is None else np.asarray(weights, dtype=np.float64)
    keys = np.arange(len(d)) if prompts is None else np.asarray(prompts)
    groups = max(1, min(10, len(d) // 20))
    place = np.searchsorted(np.unique(np.quantile(longer, np.arange(1, groups) / groups)), longer, side="left")
    records = []
    for here in (place == group for group in np.unique(place)):
        columns = d[here], np.zeros(here.sum())
        low, high = accuracy_interval_by_prompt(*columns, keys[here], mass[here])
        records.append({
            "shortest": float(longer[here].min()), "longest": float(longer[here].max()),
            "accuracy": accuracy(*columns, mass[here]), "accuracy_low": low, "accuracy_high": high,
            "comparisons": int(here.sum()),
        })  # fmt: skip
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
    return _bins(edges, **{name: np.histogram(each, edges)[0] / len(each) for name, each in arrays.items()})


def reward_length_cells(rewards: ArrayLike, lengths: ArrayLike) -> list[Record]:
    """Return the cells that hold a response, of a grid of 16 logarithms of lengths and 12 rewards.

    Args:
        rewards: Rewards of the responses, shape [N].
        lengths: Their lengths, at least 1, shape [N].

    Returns:
        `shortest`, `longest`, `low`, `high` and the number of `responses` of each cell.
    """
    logs = np.log10(np.asarray(lengths, dtype=np.float64))
    counts, x, y = np.histogram2d(logs, np.asarray(rewards, dtype=np.float64), bins=(16, 12))
    return [
        {"shortest": 10 ** x[i], "longest": 10 ** x[i + 1], "low": y[j], "high": y[j + 1], "responses": counts[i, j]}
        for i, j in np.argwhere(counts > 0)
    ]


def comparison_rows(comparison: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the differences of a comparison by name: overall, by a benchmark's own rule, and of each subset."""
    subsets = comparison["subsets"]
    by_rule = {f"{name}, own rule": each for name, each in comparison["composites"].items() if name not in subsets}
    return {"overall": comparison} | by_rule | subsets


def _bins(edges: NDArray[np.float64], **shares: Any) -> list[Record]:
    columns = {"low": edges[:-1], "high": edges[1:]} | shares
    return [dict(zip(columns, map(float, each), strict=True)) for each in zip(*columns.values(), strict=True)]
