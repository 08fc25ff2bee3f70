"""Rewards as probabilities of preference: log loss, calibration and the temperature that calibrates them.

A reward model gives the first of two responses the probability `sigmoid(r_first - r_second)` of being the better one.
The functions take such differences, and need NumPy alone.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.metrics import comparison_columns, interval_tail

__all__ = ["best_temperature", "calibration_bins", "calibration_error", "log_loss", "temperature_interval"]

_MIN_PER_BIN = 20


def log_loss(
    differences: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    temperature: float = 1.0,
) -> float:
    """Return the mean of `-q log p - (1 - q) log(1 - p)` with `p = sigmoid(difference / temperature)`, in nats.

    This is the negative log-likelihood of the model of R. Bradley and M. Terry (Biometrika 39, 1952). Equal rewards
    have a loss of log 2, or 0.6931.

    Args:
        differences: Rewards of the first minus those of the second responses, shape [C].
        labels: Probability q that the first response is the better one, shape [C]; 1 where `None`.
        weights: Weight of each comparison, not all zero, shape [C]; 1 where `None`.
        temperature: Divisor of the differences, from 0 (the limit) to infinity.

    Raises:
        ValueError: The arrays are empty or of different shapes, a label is no probability, or a weight is negative.

    Example:
        >>> round(log_loss([2.0, -1.0]), 4)
        0.7201
    """
    d, q, w = comparison_columns(differences=differences, labels=labels, weights=weights)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.nan_to_num(d / np.float64(temperature), nan=0.0)  # 0 / 0; infinities become the largest numbers
    return float(np.average(q * np.logaddexp(0, -z) + (1 - q) * np.logaddexp(0, z), weights=w))


def calibration_bins(
    differences: ArrayLike, labels: ArrayLike | None = None, weights: ArrayLike | None = None, *, bins: int = 10
) -> NDArray[np.float64]:
    """Return, for comparisons of similar confidence, how often the response with the greater reward is the better one.

    The confidence of a comparison is `sigmoid(|difference|)`: the probability, from 1/2 to 1, which the rewards give to
    the response with the greater one. It does not depend on which response is called the first. Bins hold equal weight,
    with equal confidences in one bin, and there are fewer than `bins` where one would hold fewer than 20 comparisons.

    Arguments of shape [C], and errors, are those of `log_loss`.

    Returns:
        Mean confidence, accuracy, and share of the weight of each bin, shape [bins, 3].

    Example:
        >>> calibration_bins([0.0] * 20 + [3.0] * 15 + [-3.0] * 5).round(3)
        array([[0.5  , 0.5  , 0.5  ],
               [0.953, 0.75 , 0.5  ]])
    """
    d, q, w = comparison_columns(differences=differences, labels=labels, weights=weights)
    right = np.where(d > 0, q, np.where(d < 0, 1 - q, 0.5))
    values, place = np.unique(_sigmoid(np.abs(d)), return_inverse=True)
    mass = np.bincount(place, w)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    bins = max(1, min(bins, len(d) // _MIN_PER_BIN))
    # A middle on an edge belongs to the upper bin, whichever way its last bits were rounded.
    bin_of = np.minimum(np.floor(bins * middle + 1e-9).astype(int), bins - 1)[place]
    weight, confidence, share = (
        np.bincount(bin_of, w * each, bins) for each in (np.ones(len(d)), values[place], right)
    )
    full = weight > 0
    return np.stack([confidence[full] / weight[full], share[full] / weight[full], weight[full] / weight.sum()], axis=1)


def calibration_error(
    differences: ArrayLike, labels: ArrayLike | None = None, weights: ArrayLike | None = None, *, bins: int = 10
) -> float:
    """Return the expected calibration error: the mean over `calibration_bins`, by weight, of `|confidence - accuracy|`.

    C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On calibration of modern neural networks" (ICML 2017), with the bins
    of equal mass of K. Nguyen and B. O'Connor (EMNLP 2015). Chance alone makes the error up to `0.4 sqrt(bins / C)`, so
    a small sample looks worse calibrated than it is. Arguments and errors are those of `calibration_bins`.

    Example:
        >>> round(calibration_error([0.0] * 20 + [3.0] * 15 + [-3.0] * 5), 3)
        0.101
    """
    confidence, right, share = calibration_bins(differences, labels, weights, bins=bins).T
    return float((share * np.abs(confidence - right)).sum())


def best_temperature(
    differences: ArrayLike, labels: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Return the temperature T with the least `log_loss` (Guo et al., ICML 2017): rewards divided by T are calibrated.

    A temperature above 1 means that the rewards are too far apart for their probabilities, below 1 too close. The loss
    is convex in 1/T, so its slope has one zero, which is bracketed by doubling and found by bisection to twelve digits.
    Arguments of shape [C], and errors, are those of `log_loss`.

    Returns:
        T. Zero where the greater reward is always right, so that larger rewards are always better. Infinity where equal
        rewards would be at least as good.

    Example:
        >>> round(best_temperature([2.0, 2.0, 2.0, -2.0]), 4)
        1.8205
    """
    d, q, w = comparison_columns(differences=differences, labels=labels, weights=weights)
    d, q, w = d[d != 0], q[d != 0], w[d != 0]

    def slope(inverse: float) -> float:  # of the summed loss, in 1/T
        return float((w * d * ((1 - q) * _sigmoid(inverse * d) - q * _sigmoid(-inverse * d))).sum())

    if slope(0.0) >= 0:
        return math.inf
    if not (w * np.where(d > 0, 1 - q, q)).any():
        return 0.0
    low, high = 0.0, 1 / float(np.abs(d).max())
    while slope(high) < 0:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high


def temperature_interval(
    differences: ArrayLike,
    prompts: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95% interval of `best_temperature`, with the comparisons of one prompt treated as dependent.

    Whole prompts are resampled, as in `plaudit.metrics.mean_interval_by_prompt`. Arguments of shape [C], and errors,
    are those of `log_loss`; comparisons of one prompt have the same number in `prompts` [C].

    Example:
        >>> low, high = temperature_interval([2.0] * 90 + [-2.0] * 10, prompts=range(100))
        >>> low < best_temperature([2.0] * 90 + [-2.0] * 10) < high
        True
    """
    d, q, w = comparison_columns(differences=differences, labels=labels, weights=weights)
    keys, of_comparison = np.unique(np.asarray(prompts), return_inverse=True)
    generator, found = np.random.default_rng(seed), np.empty(resamples)
    for number in range(resamples):
        times = np.bincount(generator.integers(len(keys), size=len(keys)), minlength=len(keys))
        found[number] = best_temperature(d, q, w * times[of_comparison])
    tail = interval_tail(len(keys))
    low, high = np.quantile(
        found, [tail, 1 - tail], method="nearest"
    )  # the mean of a number and infinity is no quantile
    return float(low), float(high)


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -z))  # does not overflow, and is exact where it is small
