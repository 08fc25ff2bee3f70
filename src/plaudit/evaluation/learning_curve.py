"""The learning curve: held-out loss against the size of the training set, and its value at twice the data.

Models are trained by one recipe on nested parts of the training rows and judged on the same held-out comparisons. The
losses are fitted by `a + b n^-c` with `a, b >= 0` (C. Cortes et al., NIPS 1993; J. Hestness et al., arXiv 1712.00409),
and the fit is continued to `2n`.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import DataError
from plaudit.metrics import comparison_columns, interval_tail, preference_metrics, resampled_means

__all__ = ["LearningCurve", "fit_learning_curve", "fit_power_law", "measure_learning_curve", "nested_subsets"]

Array = NDArray[np.float64]

_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)
_EXPONENTS = np.geomspace(0.01, 2, 400)[:, None]  # neighbours differ by 1.3%
_PARAMETERS = 3
_OVERCONFIDENT = (
    " Accuracy does rise: rewards too far apart, as after too many passes, spoil the loss. Train less, or regularise."
)


@dataclass(frozen=True)
class LearningCurve:
    """Held-out losses of models trained on nested parts of the data, their fit, and the loss at twice the data.

    All intervals hold 95%, and resample whole prompts of the held-out set. Losses are log losses in nats.

    Attributes:
        sizes: Training rows of each model, ascending, length S.
        losses: Held-out log loss of each, with `loss_low` and `loss_high`, length S.
        accuracies: Held-out accuracy of each, with `accuracy_low` and `accuracy_high`, length S.
        comparisons: Number of held-out comparisons.
        prompts: Number of held-out prompts.
        fit: `a`, `b` and `c` of the loss `a + b n^-c` at n training rows.
        predicted: At twice the data, `size`, `loss` with `low` and `high`, and `gain`, the last of the losses minus
            `loss`, with `gain_low` and `gain_high`. `None` where the curve does not identify them.
        verdict: The answer to "would more data help?", in a sentence or two.
    """

    sizes: list[int]
    losses: list[float]
    loss_low: list[float]
    loss_high: list[float]
    accuracies: list[float]
    accuracy_low: list[float]
    accuracy_high: list[float]
    comparisons: int
    prompts: int
    fit: dict[str, float]
    predicted: dict[str, float] | None
    verdict: str

    @property
    def identifiable(self) -> bool:
        """True if the curve predicts what twice the data would bring."""
        return self.predicted is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers, lists and dicts, as `learning_curve.json` has them."""
        return asdict(self)


def nested_subsets(
    prompt_keys: Sequence[Any] | NDArray[Any], fractions: Sequence[float] = _FRACTIONS, *, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Choose nested parts of the rows, with all rows of a prompt together.

    Prompts come in the order of a hash of their key and the seed, and as many enter as bring the part closest to its
    fraction of the rows. Neither the order of the rows nor the other fractions change the choice.

    Args:
        prompt_keys: Keys (whole numbers or strings) that the rows of one prompt share, length R.
        fractions: Fractions of the rows, each above 0 and at most 1, ascending.
        seed: Decides which prompts enter first.

    Returns:
        The row numbers of each part, ascending; each part holds the one before it.

    Raises:
        DataError: Two parts would be the same, or the first empty: there are too few prompts, or one dominates.

    Example:
        >>> [part.tolist() for part in nested_subsets([7, 7, 8, 9, 9, 8], fractions=(1 / 3, 1))]
        [[2, 5], [0, 1, 2, 3, 4, 5]]
    """
    keys, of_row, counts = np.unique(np.asarray(prompt_keys), return_inverse=True, return_counts=True)
    digests = [hashlib.blake2b(f"{seed} {key}".encode()).digest() for key in keys.tolist()]
    order = sorted(range(len(keys)), key=digests.__getitem__)
    place = np.empty(len(keys), dtype=np.int64)
    place[order] = np.arange(len(keys))
    rows_before = np.concatenate([[0], np.cumsum(counts[order])])  # [prompts + 1]
    chosen = [int(np.abs(rows_before - fraction * len(of_row)).argmin()) for fraction in fractions]
    if chosen[0] == 0 or len(set(chosen)) < len(chosen):
        raise DataError(
            f"cannot take nested parts of {', '.join(f'{fraction:g}' for fraction in fractions)} of {len(of_row):,} "
            f"training rows: they have {len(keys):,} prompts, the largest with {counts.max(initial=0):,} rows, and "
            "rows of one prompt stay together. A learning curve needs more prompts."
        )
    return [np.flatnonzero(place[of_row] < count) for count in chosen]


def measure_learning_curve(
    train: Callable[[NDArray[np.int64]], ArrayLike],
    prompt_keys: Sequence[Any] | NDArray[Any],
    prompts: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    whole: ArrayLike | None = None,
    seed: int = 0,
) -> LearningCurve:
    """Train on nested parts of the rows, the smallest first, and fit the curve of the held-out losses.

    Args:
        train: Trains a new model on the rows with the given numbers, and returns its differences of rewards (first
            minus second response) of the C held-out comparisons, always in the same order, shape [C].
        prompt_keys: Keys that the training rows of one prompt share, length R.
        prompts: Whole numbers, equal for held-out comparisons of one prompt, shape [C].
        labels: Probability that the first response is the better one, shape [C]; 1 where `None`.
        weights: Weight of each comparison, shape [C]; 1 where `None`.
        whole: The differences of a model that was trained on all rows, shape [C]; `None` to train it here.
        seed: Seed of the parts and of the resamples.

    Raises:
        DataError: The parts cannot be taken, or the differences are not finite or not of C comparisons.
    """
    parts = nested_subsets(prompt_keys, seed=seed)
    differences = [train(rows) for rows in (parts if whole is None else parts[:-1])]
    differences += [] if whole is None else [whole]
    return fit_learning_curve([len(rows) for rows in parts], differences, prompts, labels, weights, seed=seed)


def fit_learning_curve(
    sizes: Sequence[int],
    differences: Sequence[ArrayLike],
    prompts: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> LearningCurve:
    """Fit `a + b n^-c` to the held-out log losses of S models, and predict the loss at twice the largest size.

    Intervals come from a cluster bootstrap: prompts of the held-out set are drawn with replacement, the same ones for
    every size. For the prediction, the residuals of the fit, times `sqrt(S / (S - 3))` and with random signs, are added
    to the resampled losses before they are fitted again (a wild bootstrap). What differs between trainings, such as
    their seed, so widens the interval as far as it bends the curve; only curves with other seeds show it whole.

    The prediction is withheld where the loss does not fall beyond chance from the smallest to the largest size, and
    where the interval of the gain is wider than the mean gain of the doublings so far: then the curve cannot tell
    whether the next doubling brings as much as those, or nothing.

    Args:
        sizes: Numbers of training rows, ascending, length S of at least 4.
        differences: Rewards of the first minus the second responses by the model of each size, shape [S, C].
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C].
        labels: Probability that the first response is the better one, shape [C]; 1 where `None`.
        weights: Weight of each comparison, shape [C]; 1 where `None`.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.

    Raises:
        DataError: There are fewer than 4 sizes, they do not ascend, the differences are not finite, or no comparison
            has a preference.
        ValueError: The arrays do not fit together.
    """
    n, rewards = np.asarray(sizes, dtype=np.float64), np.stack([np.asarray(d, dtype=np.float64) for d in differences])
    _check(n, rewards)
    _, q, w = comparison_columns(differences=rewards[0], labels=labels, weights=weights)
    figures = [preference_metrics(each, np.zeros_like(each), q, w, prompts) for each in rewards]
    if not figures[0]:
        raise DataError("a learning curve: expected held-out comparisons with a preference, got ties or weight 0 only.")
    accuracies, least, most = ([each[f"accuracy{end}"] for each in figures] for end in ("", "_low", "_high"))
    losses = q * np.logaddexp(0, -rewards) + (1 - q) * np.logaddexp(0, rewards)  # [S, C]
    drawn = resampled_means(losses, prompts, w, resamples=resamples, seed=seed)  # [resamples, S]
    measured, count = losses @ w / w.sum(), len(np.unique(np.asarray(prompts)))  # [S]
    ends = (interval_tail(count), 1 - interval_tail(count))
    low, high = np.quantile(drawn, ends, axis=0).tolist()
    fit, predicted = _predict(n, measured, drawn, ends, np.random.default_rng([seed, 1]))
    fall = (measured[0] - measured[-1], *np.quantile(drawn[:, 0] - drawn[:, -1], ends))
    identified, verdict = _judge(n, measured, fall, predicted)
    if fall[1] <= 0 and least[-1] > most[0]:
        verdict += _OVERCONFIDENT
    return LearningCurve(
        [int(size) for size in n], measured.tolist(), low, high, accuracies, least, most,
        comparisons=rewards.shape[1], prompts=count, fit=dict(zip("abc", fit.tolist(), strict=True)),
        predicted=predicted if identified else None, verdict=verdict,
    )  # fmt: skip


def fit_power_law(sizes: ArrayLike, losses: ArrayLike) -> Array:
    """Fit `a + b n^-c` with `a, b >= 0` and `0.01 <= c <= 2` by least squares, to each of several curves.

    For a given c the best a and b have a closed form, so 400 values of c are tried. A test compares the fit with
    `scipy.optimize.least_squares`, which reaches the same optimum and takes 150 times as long for 2,000 curves.

    Args:
        sizes: Numbers n, shape [S].
        losses: Losses at those sizes, shape [..., S].

    Returns:
        a, b and c, shape [..., 3].

    Example:
        >>> fit_power_law([1, 4, 16, 64], [3.0, 2.0, 1.5, 1.25]).round(1)
        array([1. , 2. , 0.5])
    """
    n, y = np.asarray(sizes, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    u = (n / n[-1]) ** -_EXPONENTS  # [400, S]
    mean, centred = y.mean(-1)[..., None], u - u.mean(1, keepdims=True)
    b = np.maximum(y @ centred.T / (centred**2).sum(1), 0)  # [..., 400]
    a = mean - b * u.mean(1)
    b, a = np.where(a < 0, np.maximum(y @ u.T / (u**2).sum(1), 0), b), np.maximum(a, 0)
    error = sum((y[..., [s]] - a - b * u[:, s]) ** 2 for s in range(len(n)))
    best = np.argmin(error, axis=-1)[..., None]
    c = _EXPONENTS[best, 0]
    a, b = np.take_along_axis(a, best, -1), np.take_along_axis(b, best, -1)
    return np.concatenate([a, b * n[-1] ** c, c], -1)


def _power_law(fit: Array, sizes: ArrayLike) -> Array:
    """Return the losses [..., S] of fits [..., 3] at sizes [S]."""
    a, b, c = (fit[..., [place]] for place in range(_PARAMETERS))
    return a + b * np.asarray(sizes, dtype=np.float64) ** -c


def _predict(
    n: Array, measured: Array, drawn: Array, ends: tuple[float, float], generator: np.random.Generator
) -> tuple[Array, dict[str, float]]:
    """Return the fit [3] to the losses [S], and the prediction at twice the data from the resampled ones."""
    fit, twice = fit_power_law(n, measured), 2 * n[-1]
    residuals = (measured - _power_law(fit, n)) * math.sqrt(len(n) / (len(n) - _PARAMETERS))
    again = fit_power_law(n, drawn + residuals * generator.choice([-1, 1], size=drawn.shape))
    loss, losses = float(_power_law(fit, [twice])[0]), _power_law(again, [twice])[:, 0]
    low, high = np.quantile(losses, ends).tolist()
    gain_low, gain_high = np.quantile(drawn[:, -1] - losses, ends).tolist()
    predicted = {"size": int(twice), "loss": loss, "low": low, "high": high}
    return fit, predicted | {"gain": float(measured[-1]) - loss, "gain_low": gain_low, "gain_high": gain_high}


def _judge(n: Array, losses: Array, fall: tuple[float, float, float], predicted: dict[str, float]) -> tuple[bool, str]:
    """Return whether the prediction is identified, and the verdict; `fall` is from first to last, with interval."""
    rows, way = f"from {n[0]:,.0f} to {n[-1]:,.0f} training rows", f"{losses[0]:.3f} to {losses[-1]:.3f}"
    way = f"{rows} the held-out log loss goes from {way}"
    difference = f"(a fall of {fall[0]:.3f}, 95% {fall[1]:.3f} to {fall[2]:.3f})"
    if fall[1] <= 0:
        chance = "It rises with more data." if fall[2] < 0 else "That is within chance: nothing follows for more data."
        return False, f"Not identifiable: {way} {difference}. {chance}"
    so_far = fall[0] / math.log2(n[-1] / n[0])
    gain = "{gain:.3f} (95% {gain_low:.3f} to {gain_high:.3f})".format(**predicted)
    if predicted["gain_high"] - predicted["gain_low"] > so_far:
        return False, (
            f"Not identifiable: {way}, {so_far:.3f} less with each doubling. The next doubling would gain {gain}: "
            "an interval so wide cannot tell such a gain from none. A larger held-out set narrows it, and a second "
            "curve with another seed shows how much of it is chance in training."
        )
    verdict = (
        f"Doubling the training rows to {predicted['size']:,} is predicted to lower the held-out log loss from "
        f"{losses[-1]:.3f} to {predicted['loss']:.3f} (95% {predicted['low']:.3f} to {predicted['high']:.3f}), a gain "
        f"of {gain}."
    )
    if predicted["gain_low"] <= 0:
        verdict += " The interval of the gain includes 0: more data of this kind may bring nothing."
    return True, verdict


def _check(sizes: Array, differences: Array) -> None:
    """Check the sizes [S] and the differences [S, C] of a curve."""
    if len(sizes) <= _PARAMETERS or (np.diff(sizes) <= 0).any() or sizes[0] < 1:
        raise DataError(
            f"a learning curve: expected at least {_PARAMETERS + 1} ascending sizes, got {sizes.tolist()}. "
            "Give more fractions."
        )
    if differences.ndim != 2 or len(differences) != len(sizes):
        shape = f"[{len(sizes)}, C]"
        raise DataError(f"a learning curve: expected differences of the shape {shape}, got {differences.shape}.")
    if not np.isfinite(differences).all():
        size = sizes[~np.isfinite(differences).all(1)][0]
        raise DataError(f"a learning curve: a difference of the model of {size:,.0f} rows is not finite.")
