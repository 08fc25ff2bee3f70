"""The figures of an evaluation, from rewards and comparisons."""

import math

import numpy as np
from numpy.typing import NDArray

from plaudit.calibration import best_temperature, calibration_bins, calibration_error, log_loss
from plaudit.evaluation.preference_data import Comparisons
from plaudit.metrics import difference_correlation, preference_metrics

__all__ = ["COUNTS", "METRICS", "SHARES", "calibration_table", "compute_figures"]

# The figures of an evaluation, in the order in which they are shown, and their meanings.
METRICS = {
    "rows": "number of rows, of any kind",
    "prompts": "number of different prompts of the comparisons",
    "comparisons": "one for each pair, several for each ranked group",
    "ties": "pairs that the annotators call equal; in no other figure",
    "identical": "pairs of equal responses; in no other figure",
    "accuracy": "share of comparisons whose better response has the greater reward; equal rewards count one half",
    "accuracy_low": "lower end of its 95% interval",
    "accuracy_high": "upper end of its 95% interval",
    "reward_ties": "number of comparisons with equal rewards",
    "longer_wins": "accuracy of preferring the longer response, in characters",
    "shorter_wins": "accuracy of preferring the shorter response",
    "longer_accuracy": "accuracy where the better response is the longer one",
    "shorter_accuracy": "accuracy where the better response is the shorter one",
    "length_balanced_accuracy": "mean of these two; 0.5 for a model that sees length alone",
    "margin": "mean of the better response's reward minus the other's",
    "log_loss": "mean of -log sigmoid(difference of rewards); 0.693 is guessing",
    "calibration_error": "mean distance, in ten bins, of sigmoid(|difference|) from the share that is right",
    "temperature": "divisor of the rewards with the least log loss",
    "calibrated_log_loss": "log loss of the rewards divided by that temperature",
    "length_correlation": "rank correlation of the differences in reward and in length",
    "mean_reward": "mean of both rewards of the comparisons",
    "std_reward": "standard deviation of both rewards of the comparisons",
    "min_reward": "least reward of the comparisons",
    "max_reward": "greatest reward of the comparisons",
}
COUNTS = ("rows", "prompts", "comparisons", "ties", "identical", "reward_ties")
SHARES = (
    "accuracy", "accuracy_low", "accuracy_high", "longer_wins", "shorter_wins", "longer_accuracy", "shorter_accuracy",
    "length_balanced_accuracy", "calibration_error",
)  # fmt: skip


def compute_figures(
    data: Comparisons, rewards: NDArray[np.float64], lengths: NDArray[np.float64], selected: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the figures named in `METRICS` over some of the rows; NaN where one is not defined.

    Args:
        data: The comparisons.
        rewards: Rewards of all responses, shape [N].
        lengths: Lengths of all responses in characters, shape [N]; NaN where they are not known.
        selected: The rows that enter, shape [R]; at least one of them has a comparison.
    """
    here = selected[data.rows]
    better, worse, prompts = data.better[here], data.worse[here], data.prompts[here]
    labels, weights = data.labels[here], data.weights[here]
    difference, longer = rewards[better] - rewards[worse], lengths[better] - lengths[worse]
    temperature = best_temperature(difference, labels, weights)
    known = ~np.isnan(longer)
    longer_wins = _accuracy(lengths[better], lengths[worse], labels, weights, known)
    of_longer, of_shorter = (
        _accuracy(rewards[better], rewards[worse], labels, weights, where) for where in (longer > 0, longer < 0)
    )
    figures = dict.fromkeys(METRICS, math.nan) | {
        "rows": selected.sum(),
        "prompts": len(np.unique(prompts)),
        "comparisons": here.sum(),
        "ties": data.ties[selected].sum(),
        "identical": data.identical[selected].sum(),
        "reward_ties": 0,
        **preference_metrics(rewards[better], rewards[worse], labels, weights, prompts),
        "longer_wins": longer_wins,
        "shorter_wins": 1 - longer_wins,
        "longer_accuracy": of_longer,
        "shorter_accuracy": of_shorter,
        "length_balanced_accuracy": (of_longer + of_shorter) / 2,
        "log_loss": log_loss(difference, labels, weights),
        "calibration_error": calibration_error(difference, labels, weights),
        "temperature": temperature,
        "calibrated_log_loss": log_loss(difference, labels, weights, temperature=temperature),
        "length_correlation": difference_correlation(difference[known], longer[known]) if known.any() else math.nan,
        "std_reward": _std(rewards[better], rewards[worse], np.where(labels > 0.5, weights, 0)),
    }
    return {name: int(figures[name]) if name in COUNTS else float(figures[name]) for name in METRICS}


def calibration_table(data: Comparisons, rewards: NDArray[np.float64]) -> list[dict[str, float]]:
    """Return `confidence`, `accuracy` and `share` of each calibration bin, over all comparisons."""
    difference = rewards[data.better] - rewards[data.worse]
    bins = calibration_bins(difference, data.labels, data.weights).tolist()
    return [dict(zip(("confidence", "accuracy", "share"), each, strict=True)) for each in bins]


def _accuracy(
    better: NDArray[np.float64],
    worse: NDArray[np.float64],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
    here: NDArray[np.bool_],
) -> float:
    """Return the accuracy over some of the comparisons; NaN where there is none."""
    if not here.any():
        return math.nan
    return preference_metrics(better[here], worse[here], labels[here], weights[here]).get("accuracy", math.nan)


def _std(better: NDArray[np.float64], worse: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the standard deviation of both rewards of the comparisons, by weight."""
    if not weights.any():
        return math.nan
    rewards, each = np.stack([better, worse]), np.stack([weights, weights])
    mean = np.average(rewards, weights=each)
    return math.sqrt(np.average((rewards - mean) ** 2, weights=each))
