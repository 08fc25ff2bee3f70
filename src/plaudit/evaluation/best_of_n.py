"""Best-of-n curves: the gold score of the response that a reward model picks among n, for every n at once.

Of N responses to a prompt, sorted by reward (the proxy), the one at place i of 1..N is the best of a random subset of n
in `C(i-1, n-1)` of `C(N, n)` cases. The mean over all subsets is therefore a weighted sum, without sampling
(R. Nakano et al., arXiv 2112.09332, appendix). Best-of-n moves the policy by `KL = ln n - (n-1)/n` (J. Hilton), and
gold against sqrt(KL) shows where optimising the proxy stops helping (L. Gao et al., arXiv 2210.10760).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import DataError
from plaudit.metrics import mean_intervals_by_prompt

__all__ = ["BestOfN", "best_of_n", "expected_best"]

_MOST_POINTS = 32


@dataclass(frozen=True)
class BestOfN:
    """Gold and proxy of the best of n responses by the proxy, against n. Intervals hold 95%, by prompt.

    Attributes:
        n: Numbers of responses to choose from, ascending from 1, length P.
        sqrt_kl: Square root of `ln n - (n-1)/n` in nats, length P.
        gold: Mean gold score, in its own units, with `gold_low` and `gold_high`, length P.
        proxy: Mean reward above the mean reward of the prompt's responses, with `proxy_low` and `proxy_high`, length P;
            rewards of different prompts have no common zero.
        oracle: Mean gold score where the gold score itself chooses, length P.
        groups: Number of groups of responses that enter.
        left_out: Number of groups with fewer responses than the largest n.
        gain: Gold at the largest n minus gold at 1, with `gain_low` and `gain_high`.
        verdict: The result in a sentence or two.
    """

    n: list[int]
    sqrt_kl: list[float]
    gold: list[float]
    gold_low: list[float]
    gold_high: list[float]
    proxy: list[float]
    proxy_low: list[float]
    proxy_high: list[float]
    oracle: list[float]
    groups: int
    left_out: int
    gain: float
    gain_low: float
    gain_high: float
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers and lists."""
        return asdict(self)


def best_of_n(
    rewards: Sequence[ArrayLike],
    gold: Sequence[ArrayLike],
    prompts: ArrayLike | None = None,
    *,
    largest: int | None = None,
    seed: int = 0,
) -> BestOfN:
    """Compute the best-of-n curve of a reward model from groups of responses with gold scores.

    Every group that enters does so at every n, so that the points of the curve differ in n alone.

    Args:
        rewards: Rewards of the responses of each group, G arrays of shape [N_g].
        gold: Gold scores of the same responses, greater is better, G arrays of shape [N_g].
        prompts: Whole numbers, equal for groups of one prompt, shape [G]; all different where `None`.
        largest: The largest n; groups of fewer responses are left out and counted. Where `None`, the size that at least
            half of the groups have.
        seed: Seed of the intervals.

    Raises:
        DataError: There is no group, a group has a single response or does not fit its gold scores, or a number is not
            finite.
    """
    groups = [_group(number, *pair) for number, pair in enumerate(zip(rewards, gold, strict=True))]
    sizes = sorted((len(proxy) for proxy, _ in groups), reverse=True)
    most = largest or (sizes[(len(sizes) - 1) // 2] if sizes else 0)
    kept = [number for number, (proxy, _) in enumerate(groups) if len(proxy) >= most]
    if most < 2 or not kept:
        raise DataError(
            f"a best-of-n curve: expected groups of at least {max(most, 2)} responses with gold scores, got "
            f"{len(groups)} groups, the largest of {max(sizes, default=0)} responses. Leave out rows of a single "
            "response, or ask for a smaller n."
        )
    keys = np.array(kept) if prompts is None else np.asarray(prompts)[kept]
    left_out, groups = len(groups) - len(kept), [groups[number] for number in kept]
    points = np.arange(1, most + 1) if most <= _MOST_POINTS else np.geomspace(1, most, _MOST_POINTS).round()
    n = np.unique(points.astype(int))
    golds = np.stack([expected_best(proxy, score, n) for proxy, score in groups], 1)  # [P, G]
    proxies = np.stack([expected_best(proxy, proxy - proxy.mean(), n) for proxy, _ in groups], 1)
    oracle = np.stack([expected_best(score, score, n) for _, score in groups], 1).mean(1)
    curves = _with_interval("gold", golds, keys, seed) | _with_interval("proxy", proxies, keys, seed)
    gain, low, high = (each[0] for each in _with_interval("gain", golds[[-1]] - golds[[0]], keys, seed).values())
    best, random, possible = curves["gold"][-1], curves["gold"][0], oracle[-1] - oracle[0]
    verdict = (
        f"The best of {n[-1]} by reward has a gold score of {best:.3f}, a random response {random:.3f}: a gain of "
        f"{gain:.3f} (95% {low:.3f} to {high:.3f}), where choosing by the gold score itself would gain {possible:.3f}."
    )
    return BestOfN(
        n=n.tolist(),
        sqrt_kl=[math.sqrt(max(math.log(size) - (size - 1) / size, 0)) for size in n.tolist()],
        **curves,
        oracle=oracle.tolist(),
        groups=len(groups),
        left_out=left_out,
        gain=gain,
        gain_low=low,
        gain_high=high,
        verdict=verdict + (" The gain is within chance." if low <= 0 <= high else ""),
    )


def expected_best(proxy: ArrayLike, values: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
    """Return the mean value of the response with the greatest proxy in a random subset of n responses.

    The mean is over all subsets of n different responses. Among equal proxies the choice is even, so each of them
    counts with the mean of their values.

    Args:
        proxy: What the choice is made by, shape [N].
        values: What is averaged, shape [N].
        n: Sizes of the subset, each from 1 to N, shape [P].

    Returns:
        The means, shape [P].

    Example:
        >>> expected_best([0.1, 0.9, 0.5], [1.0, 0.0, 4.0], [1, 2, 3]).round(4)
        array([1.6667, 1.3333, 0.    ])
    """
    from scipy.special import gammaln

    values = np.asarray(values, dtype=np.float64)
    _, tied, count = np.unique(np.asarray(proxy, dtype=np.float64), return_inverse=True, return_counts=True)
    value = np.repeat(np.bincount(tied, values) / count, count)  # [N], ascending in the proxy
    place, size = np.arange(len(values)), np.asarray(n)[:, None]  # place: i - 1
    with np.errstate(invalid="ignore"):
        chosen = gammaln(place + 1) - gammaln(size) - gammaln(np.maximum(place - size + 2, 1))  # ln C(i-1, n-1)
        subsets = gammaln(len(values) + 1) - gammaln(size + 1) - gammaln(len(values) - size + 1)  # ln C(N, n)
    share = np.where(place >= size - 1, np.exp(chosen - subsets), 0.0)  # [P, N]
    return share @ value


def _group(number: int, rewards: ArrayLike, gold: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rewards and gold scores of a group as arrays, checked."""
    proxy, score = np.asarray(rewards, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.ndim != 1 or proxy.shape != score.shape:
        raise DataError(
            f"group {number}: expected one gold score for each response, got {proxy.size} rewards and {score.size} "
            "gold scores. The column `scores` has a number for each of `completions`."
        )
    if not (np.isfinite(proxy).all() and np.isfinite(score).all()):
        raise DataError(f"group {number}: a reward or a gold score is not a finite number. No score is ever imputed.")
    return proxy, score


def _with_interval(name: str, values: NDArray[np.float64], prompts: NDArray[Any], seed: int) -> dict[str, list[float]]:
    """Return the mean of each row of [P, G] and the ends of its interval, by name."""
    low, high = mean_intervals_by_prompt(values, prompts, seed=seed).T.tolist()
    return {name: values.mean(1).tolist(), f"{name}_low": low, f"{name}_high": high}
