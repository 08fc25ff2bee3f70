"""Figures from the rewards of compared responses: accuracy and its interval, margin, rank correlation.

The functions need NumPy alone and know nothing of models, tokens or rows. Accuracy counts two equal rewards as one
half, so that a model which gives the same reward to every response has the accuracy of a coin.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "accuracy",
    "accuracy_interval_by_prompt",
    "comparison_columns",
    "difference_correlation",
    "interval_tail",
    "mean_interval_by_prompt",
    "mean_intervals_by_prompt",
    "preference_metrics",
    "rank_correlation",
    "resampled_means",
    "wilson_interval",
]

_DRAWN_AT_ONCE = 65_536  # draws of a chunk of bootstrap samples, which stay in the processor's cache


def preference_metrics(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    prompts: ArrayLike | None = None,
) -> dict[str, float]:
    """Return the figures that the training log, `trainer.evaluate()` and `plaudit eval` have in common.

    The better response of a comparison, called chosen, is the first one where the label is above one half and the
    second one where it is below. A comparison with a label of exactly one half (a tie) or a weight of zero enters no
    figure.

    Args:
        first: Rewards of the first responses, shape [C].
        second: Rewards of the second responses, shape [C].
        labels: Probability that the first response is the better one, shape [C]; 1 where `None`.
        weights: Weight of each comparison, shape [C]; 1 where `None`. A ranked group gives each of its comparisons an
            equal share of the weight of its row.
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C].

    Returns:
        - `accuracy`: share, by weight, of comparisons in which the chosen reward is the greater one; two equal rewards
          count one half.
        - `accuracy_low`, `accuracy_high`: its 95% interval (`accuracy_interval_by_prompt`), if there are `prompts`.
        - `reward_ties`: number of comparisons with two equal rewards.
        - `margin`: mean, by weight, of the chosen minus the rejected reward.
        - `mean_reward`, `chosen_reward`, `rejected_reward`: means, by weight, of both rewards, of the chosen and of the
          rejected one.
        - `min_` and `max_` of `reward`, `chosen_reward` and `rejected_reward`: the least and the greatest.

        Empty where no comparison enters.

    Raises:
        ValueError: The arrays are empty or of different shapes, a label is no probability, or a weight is negative.

    Example:
        >>> metrics = preference_metrics([2.0, 0.5, 1.0], [1.0, 0.5, 3.0], labels=[1.0, 1.0, 0.2], weights=[1, 1, 2])
        >>> metrics["accuracy"], metrics["reward_ties"], metrics["margin"]
        (0.875, 1.0, 1.25)
    """
    one, two, label, weight = comparison_columns(first=first, second=second, labels=labels, weights=weights)
    counted, swapped = (label != 0.5) & (weight > 0), label < 0.5
    if not counted.any():
        return {}
    chosen, rejected = np.where(swapped, two, one)[counted], np.where(swapped, one, two)[counted]
    weight = weight[counted]
    metrics = {"accuracy": accuracy(chosen, rejected, weight)}
    if prompts is not None:
        of_prompt = _prompt_indices(prompts, len(one))[counted]
        low, high = accuracy_interval_by_prompt(chosen, rejected, of_prompt, weight)
        metrics |= {"accuracy_low": low, "accuracy_high": high}
    metrics["reward_ties"] = float((chosen == rejected).sum())
    metrics["margin"] = float(np.average(chosen - rejected, weights=weight))
    means = [float(np.average(rewards, weights=weight)) for rewards in (chosen, rejected)]
    both = np.concatenate([chosen, rejected])
    return (
        metrics
        | {"mean_reward": sum(means) / 2, "min_reward": float(both.min()), "max_reward": float(both.max())}
        | _side("chosen_reward", means[0], chosen)
        | _side("rejected_reward", means[1], rejected)
    )


def accuracy(first: ArrayLike, second: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the share of comparisons in which the first reward is the greater one; equal rewards count one half.

    Args:
        first: Rewards of the better responses, shape [C].
        second: Rewards of the other responses, shape [C].
        weights: Weight of each comparison, not all zero, shape [C]; 1 where `None`.

    Raises:
        ValueError: The arrays are empty or of different shapes, or a weight is negative.

    Example:
        >>> accuracy([2.0, 0.5, 0.0, 1.0], [1.0, 0.5, 3.0, -1.0])
        0.625
    """
    one, two, _, weight = comparison_columns(first=first, second=second, weights=weights)
    return float(np.average(_wins(one, two), weights=weight))


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval for a share of `count` independent cases.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (JASA 22, 1927).

    Args:
        share: The observed share, from 0 to 1.
        count: The number of cases, at least 1.
        z: Quantile of the normal distribution; 1.96 gives a 95% interval.

    Raises:
        ValueError: `count` is less than 1.

    Example:
        >>> low, high = wilson_interval(0.7, 100)
        >>> round(low, 3), round(high, 3)
        (0.604, 0.781)
    """
    if count < 1:
        raise ValueError(f"expected at least one comparison, got {count}")
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    centre, scale = share + z**2 / (2 * count), 1 + z**2 / count
    return (centre - spread) / scale, (centre + spread) / scale


def accuracy_interval_by_prompt(
    first: ArrayLike,
    second: ArrayLike,
    prompts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95% interval of `accuracy`, with the comparisons of one prompt treated as dependent.

    The interval is that of `mean_interval_by_prompt`. Wilson's interval, with the number of prompts as the number of
    cases, is returned where each prompt has one comparison and all weights are equal, and where all prompts have the
    same accuracy, in which case the bootstrap interval would have no width.

    Args:
        first: Rewards of the better responses, shape [C].
        second: Rewards of the other responses, shape [C].
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C].
        weights: Weight of each comparison, above 0, shape [C]; 1 where `None`.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: The arrays are empty or of different shapes, or a weight is negative.

    Example:
        >>> accuracy_interval_by_prompt([1, 1, 1, 0], [0, 0, 0, 1], prompts=[7, 7, 7, 3])
        (0.0, 1.0)
    """
    one, two, _, weight = comparison_columns(first=first, second=second, weights=weights)
    prompt, wins = _prompt_indices(prompts, len(one)), _wins(one, two)
    won, total = np.bincount(prompt, weight * wins), np.bincount(prompt, weight)  # [prompts]
    independent = len(total) == len(one) and np.ptp(weight) <= 1e-9 * weight[0]
    if independent or np.ptp(won / total) <= 1e-9:
        return wilson_interval(float(won.sum() / total.sum()), len(total))
    return mean_interval_by_prompt(wins, prompt, weight, resamples=resamples, seed=seed)


def mean_interval_by_prompt(
    values: ArrayLike,
    prompts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95% interval of a weighted mean of comparisons, with those of one prompt treated as dependent.

    The interval is that of the cluster bootstrap: each of `resamples` samples draws as many prompts as there are, with
    replacement and with all comparisons of a prompt, and two percentiles of their means are the ends (B. Efron, Annals
    of Statistics 7, 1979; C. Field and A. Welsh, JRSS B 69, 2007). With many prompts these are the 2.5th and the
    97.5th; with few they lie further out by what makes up for the bootstrap's narrowness (the expanded percentile
    interval of T. Hesterberg, The American Statistician 69, 2015).

    Args:
        values: A number for each comparison, shape [C].
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C].
        weights: Weight of each comparison, above 0, shape [C]; 1 where `None`.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        ValueError: The arrays are empty or of different shapes, or a weight is negative.

    Example:
        >>> mean_interval_by_prompt([1.0, 1.0, 3.0], prompts=[7, 7, 3])
        (1.0, 3.0)
    """
    value, _, weight = comparison_columns(values=values, weights=weights)
    ((low, high),) = mean_intervals_by_prompt(value[None], prompts, weight, resamples=resamples, seed=seed)
    return float(low), float(high)


def mean_intervals_by_prompt(
    values: ArrayLike,
    prompts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the intervals of `mean_interval_by_prompt` for several quantities of the same comparisons.

    Args:
        values: The quantities, shape [K, C].
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C].
        weights: Weight of each comparison, above 0, shape [C]; 1 where `None`.
        resamples: Number of bootstrap samples, the same for all quantities.
        seed: Seed of the draws.

    Returns:
        The ends, shape [K, 2].

    Example:
        >>> mean_intervals_by_prompt([[1.0, 1.0, 3.0], [0.0, 0.0, 1.0]], prompts=[7, 7, 3])
        array([[1., 3.],
               [0., 1.]])
    """
    tail = interval_tail(len(np.unique(np.asarray(prompts))))
    means = resampled_means(values, prompts, weights, resamples=resamples, seed=seed)
    return np.quantile(means, [tail, 1 - tail], axis=0).T


def resampled_means(
    values: ArrayLike,
    prompts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the weighted means of several quantities over prompts that are drawn with replacement.

    Arguments are those of `mean_intervals_by_prompt`.

    Returns:
        The means, shape [resamples, K].

    Example:
        >>> means = resampled_means([[1.0, 1.0, 3.0]], prompts=[7, 7, 3], resamples=100)
        >>> means.shape, np.unique(means).round(2).tolist()
        ((100, 1), [1.0, 1.67, 3.0])
    """
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones(value.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    prompt = _prompt_indices(prompts, value.shape[1])
    # The weights stand in the last row: one product sums the quantities and the weights of a chunk of samples.
    summed = np.stack([np.bincount(prompt, weight * row) for row in (*value, np.ones(len(prompt)))])  # [K + 1, prompts]
    clusters, generator = summed.shape[1], np.random.default_rng(seed)
    means = np.empty((resamples, len(value)))
    chunk = max(1, _DRAWN_AT_ONCE // max(1, clusters))
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        drawn = generator.integers(clusters, size=(count, clusters)) + np.arange(count)[:, None] * clusters
        times = np.bincount(drawn.ravel(), minlength=count * clusters).reshape(count, clusters)
        sums = times @ summed.T  # [count, K + 1]
        means[first : first + count] = sums[:, :-1] / sums[:, -1:]
    return means


def interval_tail(clusters: int) -> float:
    """Return the share of bootstrap samples beyond either end of a 95% interval, a little below .025.

    It is `Phi(-t sqrt(n / (n - 1)))` for n clusters, with Student's t at 97.5% and n - 1 degrees of freedom.

    The expansion of t in 1 / (n - 1) is formula 26.7.5 of M. Abramowitz and I. Stegun, Handbook of Mathematical
    Functions.

    Args:
        clusters: Number of clusters that are resampled, such as prompts.

    Example:
        >>> round(interval_tail(10), 4), round(interval_tail(1000), 4)
        (0.0086, 0.0248)
    """
    z, freedom = 1.959964, max(clusters - 1, 1)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return 0.5 * math.erfc(t * math.sqrt((freedom + 1) / freedom) / math.sqrt(2))


def difference_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's correlation of two differences between the same responses, each taken in both directions.

    What both responses have in common, such as the prompt, cancels, and the order of the two responses does not matter.

    Args:
        first: Differences of one quantity, shape [C].
        second: Differences of the other quantity, shape [C].

    Returns:
        The correlation, from -1 to 1; NaN where all differences of one quantity are zero.

    Raises:
        ValueError: The arrays are empty or of different shapes.

    Example:
        >>> round(difference_correlation([1.0, 2.0], [2.0, 1.0]), 6)
        0.6
    """
    a, b, *_ = comparison_columns(first=first, second=second)
    if not a.any() or not b.any():
        return math.nan
    return rank_correlation(np.concatenate([a, -a]), np.concatenate([b, -b]))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation: Pearson's correlation of the ranks, where equal values share their mean rank.

    Args:
        first: Values of one quantity, shape [N].
        second: Values of the other quantity, shape [N].

    Raises:
        ValueError: The arrays are empty or of different shapes, or all values of one are equal.

    Example:
        >>> round(rank_correlation([1, 5, 5, 9], [10, 30, 20, 40]), 4)
        0.9487
    """
    a, b, *_ = comparison_columns(first=first, second=second)
    ranks = [_mean_ranks(a), _mean_ranks(b)]
    if any(rank.std() == 0 for rank in ranks):
        raise ValueError("a constant has no rank correlation: all values of one array are equal")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # rank of the last member of each group of equal values, counted from 1
    return (last - (counts - 1) / 2)[group]


def _side(name: str, mean: float, rewards: NDArray[np.float64]) -> dict[str, float]:
    return {name: mean, f"min_{name}": float(rewards.min()), f"max_{name}": float(rewards.max())}


def _wins(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(first == second, 0.5, first > second)


def comparison_columns(
    *, labels: ArrayLike | None = None, weights: ArrayLike | None = None, **values: ArrayLike
) -> list[NDArray[np.float64]]:
    """Check columns of C comparisons, and return the values, the labels and the weights as arrays of shape [C].

    Args:
        labels: Probabilities, shape [C]; 1 where `None`.
        weights: Numbers of zero or more, shape [C]; 1 where `None`.
        **values: One or more columns of numbers, shape [C].

    Raises:
        ValueError: The columns are empty or of different shapes, a label is no probability, or a weight is negative.

    Example:
        >>> comparison_columns(differences=[2.0, -1.0], weights=[1, 3])
        [array([ 2., -1.]), array([1., 1.]), array([1., 3.])]
    """
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}
    shape = next(iter(arrays.values())).shape
    for name, column in (("labels", labels), ("weights", weights)):
        arrays[name] = np.ones(shape) if column is None else np.asarray(column, dtype=np.float64)
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(shape) != 1 or shape == (0,) or len(set(shapes.values())) > 1:
        raise ValueError(f"expected one-dimensional arrays of one length, at least 1, got the shapes {shapes}")
    for name, least, most in (("labels", 0.0, 1.0), ("weights", 0.0, math.inf)):
        wrong = np.flatnonzero(~((arrays[name] >= least) & (arrays[name] <= most)))
        if len(wrong):
            raise ValueError(f"expected {name} from {least:g} to {most:g}, got {arrays[name][wrong[0]]} at {wrong[0]}")
    return list(arrays.values())


def _prompt_indices(prompts: ArrayLike, count: int) -> NDArray[np.int64]:
    """Number the prompts from 0 in the order of their keys, so that the order of the comparisons does not matter."""
    keys = np.asarray(prompts)  # not as floats, which would confuse large keys
    if keys.shape != (count,):
        raise ValueError(f"expected the prompts of {count} comparisons, got an array of shape {keys.shape}")
    return np.unique(keys, return_inverse=True)[1]
