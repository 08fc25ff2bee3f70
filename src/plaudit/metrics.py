"""What a reward model's rewards say about comparisons. NumPy only: no torch, no tokens.

Accuracies count two equal rewards as one half: a model that cannot tell is a coin, neither right nor wrong.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "accuracy",
    "accuracy_interval_by_prompt",
    "best_temperature",
    "calibration_bins",
    "calibration_error",
    "difference_correlation",
    "log_loss",
    "preference_metrics",
    "rank_correlation",
    "wilson_interval",
]

_LEAST_IN_A_BIN = 20
_DRAWN_AT_ONCE = 1 << 22


def preference_metrics(chosen: ArrayLike, rejected: ArrayLike) -> dict[str, float]:
    """The figures that training and evaluation report.

    Args:
        chosen: Rewards of the preferred responses, shape [C].
        rejected: Rewards of the others, shape [C].

    Returns:
        `accuracy` (equal rewards count one half), `reward_ties` (how many pairs have equal rewards), `margin` (mean of
        chosen minus rejected), and the mean, least and greatest reward: of all, of the chosen, of the rejected.

    Raises:
        ValueError: The shapes differ, or there are no comparisons.
    """
    chosen_rewards, rejected_rewards = _pair(chosen, rejected)
    metrics = {
        "accuracy": accuracy(chosen_rewards, rejected_rewards),
        "reward_ties": float((chosen_rewards == rejected_rewards).sum()),
        "margin": float((chosen_rewards - rejected_rewards).mean()),
    }
    groups = {
        "reward": np.concatenate([chosen_rewards, rejected_rewards]),
        "chosen_reward": chosen_rewards,
        "rejected_reward": rejected_rewards,
    }
    for name, rewards in groups.items():
        metrics["mean_reward" if name == "reward" else name] = float(rewards.mean())
        metrics[f"min_{name}"] = float(rewards.min())
        metrics[f"max_{name}"] = float(rewards.max())
    return metrics


def accuracy(chosen: ArrayLike, rejected: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of comparisons in which the chosen reward is greater; equal rewards count one half.

    Args:
        chosen: Rewards of the preferred responses, shape [C].
        rejected: Rewards of the others, shape [C].
        weights: What each comparison counts, shape [C]; all the same if `None`.
    """
    wins = _wins(*_pair(chosen, rejected))
    return float(np.average(wins, weights=None if weights is None else np.asarray(weights, dtype=np.float64)))


def wilson_interval(accuracy: float, comparisons: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a share (E. B. Wilson, JASA 22, 1927); 95% at the default `z`.

    Args:
        accuracy: The share observed, from 0 to 1.
        comparisons: How many it was observed on. They count as independent.
        z: The normal quantile.

    Raises:
        ValueError: There are no comparisons.
    """
    if comparisons < 1:
        raise ValueError(f"expected at least one comparison, got {comparisons}")
    spread = z * math.sqrt(accuracy * (1 - accuracy) / comparisons + (z / (2 * comparisons)) ** 2)
    centre, scale = accuracy + z**2 / (2 * comparisons), 1 + z**2 / comparisons
    return (centre - spread) / scale, (centre + spread) / scale


def accuracy_interval_by_prompt(
    chosen: ArrayLike,
    rejected: ArrayLike,
    prompts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95% interval of `accuracy` where comparisons of one prompt may be right and wrong together.

    The cluster bootstrap: all comparisons of a prompt are drawn together, as many prompts as there are, with
    replacement, and the interval goes from the 2.5th to the 97.5th percentile of the accuracies that come out (B.
    Efron, Annals of Statistics 7, 1979; C. Field and A. Welsh, JRSS B 69, 2007). Where each prompt has one comparison
    and all weigh the same, or the share that is right is the same in each (then resampling would claim certainty), it
    is Wilson's interval with the prompts as its sample.

    Args:
        chosen: Rewards of the preferred responses, shape [C].
        rejected: Rewards of the others, shape [C].
        prompts: Whole numbers, the same for comparisons of one prompt, shape [C].
        weights: What each comparison counts, above 0, shape [C]; all the same if `None`.
        resamples: How many samples are drawn.
        seed: Of the draws.

    Raises:
        ValueError: The shapes differ, or there are no comparisons.
    """
    wins = _wins(*_pair(chosen, rejected))
    each = np.ones(len(wins)) if weights is None else np.asarray(weights, dtype=np.float64)
    _, prompt = np.unique(prompts, return_inverse=True)  # in the order of the numbers, so rows may come in any order
    won, total = np.bincount(prompt, each * wins), np.bincount(prompt, each)  # [prompts]
    shares, count = won / total, len(total)
    if (count == len(wins) and np.ptp(each) <= 1e-9 * each[0]) or np.ptp(shares) <= 1e-9:
        return wilson_interval(float(won.sum() / total.sum()), count)
    draw, batch = np.random.default_rng(seed), max(1, _DRAWN_AT_ONCE // count)
    drawn = []
    for start in range(0, resamples, batch):
        sample = draw.integers(count, size=(min(batch, resamples - start), count))
        drawn.append(won[sample].sum(1) / total[sample].sum(1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return float(low), float(high)


def log_loss(
    differences: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    temperature: float = 1.0,
) -> float:
    """Mean of `-q log p - (1 - q) log(1 - p)` with `p = sigmoid(difference / temperature)`; log 2 is guessing.

    The negative log-likelihood of Bradley and Terry's model (Biometrika 39, 1952), in nats.

    Args:
        differences: Rewards of the first responses minus those of the second, shape [C].
        labels: Probability q that the first is better, shape [C]; one if `None`.
        weights: What each comparison counts, shape [C]; all the same if `None`.
        temperature: What differences are divided by, from 0 (the limit) to infinity.
    """
    d, q, w = _judged(differences, labels, weights)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.nan_to_num(d / np.float64(temperature), nan=0.0)  # 0 / 0; infinities become the largest numbers
    return float(np.average(q * np.logaddexp(0, -z) + (1 - q) * np.logaddexp(0, z), weights=w))


def calibration_bins(
    differences: ArrayLike, labels: ArrayLike | None = None, weights: ArrayLike | None = None, *, bins: int = 10
) -> NDArray[np.float64]:
    """How often the response with the greater reward is the better one, for comparisons of like confidence.

    A comparison's confidence is `sigmoid(|difference|)`, the probability that the model gives to the response that it
    prefers, from 1/2 to 1; it is right as often as people prefer that response. So it does not matter which of the two
    is called the first. Bins hold equal weight (equal confidences stay together), and there are fewer where one would
    hold fewer than 20 comparisons.

    Args:
        differences: Rewards of the first responses minus those of the second, shape [C].
        labels: Probability that the first is better, shape [C]; one if `None`.
        weights: What each comparison counts, shape [C]; all the same if `None`.
        bins: How many bins at most.

    Returns:
        For each bin its mean confidence, the share that is right, and its share of the weight, shape [bins, 3].
    """
    d, q, w = _judged(differences, labels, weights)
    right = np.where(d > 0, q, np.where(d < 0, 1 - q, 0.5))
    values, place = np.unique(_sigmoid(np.abs(d)), return_inverse=True)
    mass = np.bincount(place, w)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    bins = max(1, min(bins, len(d) // _LEAST_IN_A_BIN))
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
    """Expected calibration error: the mean over `calibration_bins`, by weight, of `|confidence - share right|`.

    C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On calibration of modern neural networks" (ICML 2017), with the bins
    of equal mass of K. Nguyen and B. O'Connor (EMNLP 2015). Chance alone makes it up to `0.4 sqrt(bins / C)`, so small
    samples look worse than they are.

    Args:
        differences: Rewards of the first responses minus those of the second, shape [C].
        labels: Probability that the first is better, shape [C]; one if `None`.
        weights: What each comparison counts, shape [C]; all the same if `None`.
        bins: How many bins at most.
    """
    confidence, right, share = calibration_bins(differences, labels, weights, bins=bins).T
    return float((share * np.abs(confidence - right)).sum())


def best_temperature(
    differences: ArrayLike, labels: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """The temperature T for which `log_loss` is least (Guo et al., ICML 2017): divide rewards by it to calibrate them.

    Above 1 the model is too sure, below 1 not sure enough. The loss is convex in 1/T, so its slope has one zero, which
    is enclosed by doubling and found by bisection, to twelve digits.

    Args:
        differences: Rewards of the first responses minus those of the second, shape [C].
        labels: Probability that the first is better, shape [C]; one if `None`.
        weights: What each comparison counts, shape [C]; all the same if `None`.

    Returns:
        T. Zero where the greater reward is always right: the larger the rewards the better. Infinity where no reward
        is better than these: the model knows nothing, or the opposite.
    """
    d, q, w = _judged(differences, labels, weights)
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


def difference_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's correlation of two differences, each taken in both directions; NaN where one is always zero.

    What is the same for both responses, such as their prompt, cancels; which of them is the first does not matter.

    Args:
        first: Differences of one quantity, shape [C].
        second: Differences of the other, shape [C].

    Raises:
        ValueError: The shapes differ, or there are none.
    """
    a, b = _pair(first, second)
    if not a.any() or not b.any():
        return math.nan
    return rank_correlation(np.concatenate([a, -a]), np.concatenate([b, -b]))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's on ranks, equal values sharing their mean rank.

    Raises:
        ValueError: The shapes differ, or one side is constant.
    """
    ranks = [_mean_ranks(values) for values in _pair(first, second)]
    if any(rank.std() == 0 for rank in ranks):
        raise ValueError("a constant has no rank correlation with anything")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # rank of the last member of each group of equals, counted from 1
    return (last - (counts - 1) / 2)[group]


def _wins(chosen: NDArray[np.float64], rejected: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(chosen == rejected, 0.5, chosen > rejected)


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -z))  # never overflows, and is exact where it is small


def _judged(differences: ArrayLike, labels: ArrayLike | None, weights: ArrayLike | None) -> list[NDArray[np.float64]]:
    """Differences, labels and weights, each [C]."""
    d = np.asarray(differences, dtype=np.float64)
    q, w = (np.ones_like(d) if each is None else np.asarray(each, dtype=np.float64) for each in (labels, weights))
    if d.ndim != 1 or not len(d) or not d.shape == q.shape == w.shape:
        raise ValueError(f"expected one-dimensional arrays of one length, got shapes {d.shape}, {q.shape}, {w.shape}")
    return [d, q, w]


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"expected two one-dimensional arrays of one length, got shapes {a.shape} and {b.shape}")
    return a, b
