"""What a reward model's rewards say about comparisons. NumPy only: no torch, no tokens.

Accuracies count two equal rewards as one half: a model that cannot tell is a coin, neither right nor wrong.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["accuracy", "accuracy_interval", "preference_metrics", "rank_correlation"]


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


def accuracy(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Share of comparisons in which the chosen reward is greater; equal rewards count one half."""
    chosen_rewards, rejected_rewards = _pair(chosen, rejected)
    return float(np.where(chosen_rewards == rejected_rewards, 0.5, chosen_rewards > rejected_rewards).mean())


def accuracy_interval(accuracy: float, comparisons: int, z: float = 1.96) -> tuple[float, float]:
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


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"expected two one-dimensional arrays of one length, got shapes {a.shape} and {b.shape}")
    return a, b
