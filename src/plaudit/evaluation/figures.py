"""The figures of an evaluation, from comparisons and rewards."""

import math

import numpy as np
from numpy.typing import NDArray

from plaudit.evaluation.preference_data import Comparisons
from plaudit.metrics import (
    accuracy,
    accuracy_interval_by_prompt,
    best_temperature,
    calibration_bins,
    calibration_error,
    difference_correlation,
    log_loss,
)

__all__ = ["COUNTS", "METRICS", "SHARES", "bins_of", "figures"]

METRICS = {
    "rows": "rows, of whatever kind",
    "prompts": "different prompts of the comparisons",
    "comparisons": "one of each pair, some of each ranked group",
    "ties": "pairs that the annotators call equal; in no other figure",
    "identical": "pairs of equal responses; in no other figure",
    "accuracy": "share of comparisons in which the better response has the greater reward; equal rewards: one half",
    "accuracy_low": "lower end of its 95% interval",
    "accuracy_high": "upper end of its 95% interval",
    "reward_ties": "comparisons with equal rewards",
    "longer_wins": "accuracy of preferring the longer response, in characters",
    "shorter_wins": "accuracy of preferring the shorter response",
    "margin": "mean of the better response's reward minus the other's",
    "log_loss": "mean of -log sigmoid(difference of rewards); 0.693 is guessing",
    "calibration_error": "mean distance, in ten bins, of sigmoid(|difference|) from the share that is right",
    "temperature": "dividing rewards by it makes the log loss least",
    "calibrated_log_loss": "the log loss with that temperature",
    "length_correlation": "rank correlation of the differences of reward and of length",
    "mean_reward": "over all responses",
    "std_reward": "over all responses",
    "min_reward": "over all responses",
    "max_reward": "over all responses",
}
COUNTS = ("rows", "prompts", "comparisons", "ties", "identical", "reward_ties")
SHARES = ("accuracy", "accuracy_low", "accuracy_high", "longer_wins", "shorter_wins", "calibration_error")


def figures(
    compared: Comparisons, rewards: NDArray[np.float64], lengths: NDArray[np.float64], rows: NDArray[np.bool_]
) -> dict[str, float]:
    """`METRICS` by name, over some of the rows; NaN where one is not defined.

    Args:
        compared: The comparisons.
        rewards: Of all responses, shape [N].
        lengths: Of all responses, shape [N].
        rows: Which rows count, shape [R]; one of them has a comparison.
    """
    here, theirs = rows[compared.rows], rewards[rows[compared.owners]]
    better, worse = compared.better[here], compared.worse[here]
    labels, weights = compared.labels[here], compared.weights[here]
    prompts = compared.prompts[compared.rows[here]]
    difference, longer = rewards[better] - rewards[worse], lengths[better] - lengths[worse]
    temperature = best_temperature(difference, labels, weights)
    named = {
        "rows": rows.sum(),
        "prompts": len(np.unique(prompts)),
        "comparisons": here.sum(),
        "ties": compared.ties[rows].sum(),
        "identical": compared.identical[rows].sum(),
        **_verdicts(difference, longer, labels > 0.5, weights, prompts),
        "log_loss": log_loss(difference, labels, weights),
        "calibration_error": calibration_error(difference, labels, weights),
        "temperature": temperature,
        "calibrated_log_loss": log_loss(difference, labels, weights, temperature=temperature),
        "length_correlation": difference_correlation(difference, longer),
        "mean_reward": theirs.mean(),
        "std_reward": theirs.std(),
        "min_reward": theirs.min(),
        "max_reward": theirs.max(),
    }
    return {name: int(named[name]) if name in COUNTS else float(named[name]) for name in METRICS}


def bins_of(compared: Comparisons, rewards: NDArray[np.float64]) -> list[dict[str, float]]:
    """The calibration bins of all comparisons, for a reliability diagram."""
    difference = rewards[compared.better] - rewards[compared.worse]
    bins = calibration_bins(difference, compared.labels, compared.weights).tolist()
    return [dict(zip(("confidence", "accuracy", "share"), each, strict=True)) for each in bins]


def _verdicts(
    difference: NDArray[np.float64],
    longer: NDArray[np.float64],
    decided: NDArray[np.bool_],
    weights: NDArray[np.float64],
    prompts: NDArray[np.int64],
) -> dict[str, float]:
    """What needs to know which of the two is the better one, and a label of one half does not say so."""
    if not decided.any():
        unknown = ("accuracy", "accuracy_low", "accuracy_high", "longer_wins", "shorter_wins", "margin")
        return dict.fromkeys(unknown, math.nan) | {"reward_ties": 0.0}
    difference, longer, weights = difference[decided], longer[decided], weights[decided]
    nothing = np.zeros_like(difference)
    low, high = accuracy_interval_by_prompt(difference, nothing, prompts[decided], weights)
    return {
        "accuracy": accuracy(difference, nothing, weights),
        "accuracy_low": low,
        "accuracy_high": high,
        "reward_ties": float((difference == 0).sum()),
        "longer_wins": accuracy(longer, nothing, weights),
        "shorter_wins": accuracy(nothing, longer, weights),
        "margin": float(np.average(difference, weights=weights)),
    }
