"""Figures that tell whether the members' spread predicts errors better than the reward difference does.

A small difference of rewards is a sign of a likely error, and it needs no uncertainty. The spread of the members often
goes with the difference, so a spread that ranks errors may say nothing new. The number that decides whether the spread
earns its place, `adjusted_auroc`, therefore compares spreads at equal differences.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.calibration import best_temperature, calibration_bins, calibration_error, log_loss
from plaudit.evaluation.chart_numbers import length_deciles
from plaudit.evaluation.scores import Scores
from plaudit.metrics import comparison_columns, interval_tail, resampled_means

__all__ = ["UncertaintyFigures", "adjusted_auroc", "rank_among_equals", "uncertainty_figures"]

_ALIKE = 0.95
_COVERAGES = np.arange(1, 11) / 10
_FOLDS = 5
_MOST_IN_MATRIX = 12
_NEGLIGIBLE = 0.55
_NEIGHBOURS = 50
_LEAST_PROMPTS = 10

Floats = NDArray[np.float64]
Record = dict[str, float]


@dataclass(frozen=True)
class UncertaintyFigures:
    """The figures of the spread of a model's members over the comparisons of a dataset. Intervals hold 95%, by prompt.

    The spread of a comparison is the standard deviation, with divisor K - 1, of the members' differences of rewards,
    each scaled by the constants of its member, in the unit of the reward. Accuracy and AUROC leave out labels of one
    half, and count two equal rewards as half right and half wrong.

    Attributes:
        kind: "members" of an ensemble, or the kind of another uncertainty whose samples stand for members.
        members: Number K of members.
        spread: Median spread, in the unit of the reward.
        spread_auroc: Probability that a wrong comparison has a greater spread than a right one; 0.5 is chance.
        margin_auroc: The same of a smaller absolute difference of rewards, which needs no uncertainty.
        adjusted_auroc: Probability that a wrong comparison has a greater spread than a right one, each among the
            comparisons with about the same absolute difference; 0.5 if the spread adds nothing.
        adjusted_auroc_low: Lower end of its interval.
        adjusted_auroc_high: Upper end of its interval.
        earns_its_place: True if that interval is above 0.5, False if it ends at 0.55 or below, else `None`.
        verdict: The result in a sentence or two.
        error_correlation: Mean Pearson correlation, over pairs of members, of their residuals: the label minus the
            sigmoid of the member's difference.
        members_are_alike: The members are those of an ensemble, and this is above 0.95: they are one model.
        error_correlations: The correlations of all pairs, K lists of K; empty for more than 12 members.
        log_loss: Log loss of the rewards divided by a temperature, cross-fitted over prompts.
        log_loss_with_spread: The same of the differences `d / sqrt(1 + c s^2)`, with the spread s and a fitted c.
        calibration_error: Calibration error of the former probabilities.
        calibration_error_with_spread: Calibration error of the latter.
        reliability: `confidence`, `accuracy` and `share` of each calibration bin of the former.
        reliability_with_spread: The bins of the latter.
        coverage: Accuracy of the `coverage` (a share) of comparisons with the least spread as `spread`, with
            `spread_low` and `spread_high`; and of those with the greatest absolute difference as `margin`.
        spread_bins: `low` and `high` spread, `accuracy` with its interval, and `comparisons`, in tenths by the spread.
        adjusted_bins: The same in tenths by the rank of the spread among comparisons of about the same difference.
    """

    kind: str
    members: int
    spread: float
    spread_auroc: float
    margin_auroc: float
    adjusted_auroc: float
    adjusted_auroc_low: float
    adjusted_auroc_high: float
    earns_its_place: bool | None
    verdict: str
    error_correlation: float
    members_are_alike: bool
    error_correlations: list[list[float]]
    log_loss: float
    log_loss_with_spread: float
    calibration_error: float
    calibration_error_with_spread: float
    reliability: list[Record]
    reliability_with_spread: list[Record]
    coverage: list[Record]
    spread_bins: list[Record]
    adjusted_bins: list[Record]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers and lists."""
        return asdict(self)


def uncertainty_figures(scores: Scores) -> UncertaintyFigures | None:
    """Return the figures of the members' spread; `None` for the scores of a model without members.

    Fewer than 10 prompts with a wrong comparison, or with a right one, are too few: then no interval is given, the
    verdict is open, and nothing is fitted.

    Raises:
        DataError: No row has a preference.
    """
    members = scores.member_differences
    if members is None:
        return None
    data, margins, spread = scores.comparisons, scores.margins, members.std(1, ddof=1)
    pairs = data.labels, data.weights
    counted = data.labels > 0.5
    wrong, size = np.where(margins == 0, 0.5, margins < 0)[counted], np.abs(margins[counted])
    clusters = data.prompts[counted], data.weights[counted]
    added, low, high = adjusted_auroc(wrong, spread[counted], size, *clusters)
    logits = np.full((2, len(margins)), np.nan)
    if np.isfinite(low):
        logits = _cross_fitted_logits(margins, spread, *pairs, data.prompts)
    rankings = {"spread": spread[counted], "margin": -size}
    earns, verdict = _verdict(added, low, high)
    return UncertaintyFigures(
        members=members.shape[1],
        spread=float(np.median(spread)),
        spread_auroc=_auroc(wrong, spread[counted], clusters[1]),
        margin_auroc=_auroc(wrong, -size, clusters[1]),
        adjusted_auroc=added,
        adjusted_auroc_low=low,
        adjusted_auroc_high=high,
        earns_its_place=earns,
        verdict=verdict,
        **_agreement(members, *pairs, scores.header["uncertainty"]["kind"]),
        **_probabilities(logits[0], *pairs, ""),
        **_probabilities(logits[1], *pairs, "_with_spread"),
        **_curves(margins[counted], wrong, rankings, *clusters),
    )


def adjusted_auroc(
    wrong: ArrayLike, spread: ArrayLike, size: ArrayLike, prompts: ArrayLike, weights: ArrayLike | None = None
) -> tuple[float, float, float]:
    """Return the AUROC of the spread for errors at equal absolute differences of rewards, with its 95% interval.

    The figure is the covariate-adjusted AUROC (H. Janes and M. Pepe, Biometrika 96, 2009), whose covariate is the
    absolute difference: each spread is replaced by its rank u among comparisons of about the same difference
    (`rank_among_equals`). Such ranks are nearly uniform, so the AUROC is one half, plus the mean of u over the wrong,
    minus the mean of u over the right comparisons. It is 0.5 for any spread that is, at a given difference, independent
    of the errors. Nothing is fitted, so neither noise nor a badly calibrated reward can raise it. The interval is that
    of the cluster bootstrap over prompts.

    Args:
        wrong: 1 for a wrong comparison, 0 for a right one, 0.5 for equal rewards, shape [C].
        spread: Spread of each comparison, shape [C].
        size: Absolute difference of rewards, shape [C].
        prompts: Whole numbers, equal for comparisons of one prompt, shape [C].
        weights: Weight of each comparison, above 0, shape [C]; 1 where `None`.

    Returns:
        The AUROC and the ends of its interval; NaN where there is no error or nothing is right. The ends are NaN where
        fewer than 10 prompts have an error, or fewer than 10 a right comparison.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> size, spread = rng.uniform(size=2000), rng.uniform(size=2000)
        >>> wrong = rng.uniform(size=2000) < 0.5 * spread * (1 - size)
        >>> auroc, low, high = adjusted_auroc(wrong, spread, size, range(2000))
        >>> 0.5 < low < auroc < high
        True
    """
    keys = np.asarray(prompts)
    if not len(keys):
        return np.nan, np.nan, np.nan
    e, s, d, _, w = comparison_columns(wrong=wrong, spread=spread, size=size, weights=weights)
    u = rank_among_equals(s, d, w)
    sums = np.stack([e * u, e, (1 - e) * u, 1 - e])
    with np.errstate(invalid="ignore"):
        value = _from_means((sums @ w)[None])[0]
        if min(len(np.unique(keys[each > 0])) for each in (e, 1 - e)) < _LEAST_PROMPTS:
            return float(value), np.nan, np.nan
        tail = interval_tail(len(np.unique(keys)))
        low, high = np.nanquantile(_from_means(resampled_means(sums, keys, w)), [tail, 1 - tail])
    return float(value), float(low), float(high)


def rank_among_equals(spread: ArrayLike, size: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the rank of each spread, from 0 to 1, among comparisons of about the same absolute difference of rewards.

    These are the neighbours in the order of the difference, as many below as above it, so that a spread which only
    grows or falls with the difference has ranks of about one half. There are up to 50 on each side, in a small sample a
    tenth of the comparisons, and fewer at both ends of the order. Equal spreads share their rank.

    Args:
        spread: Spread of each comparison, shape [C].
        size: Absolute difference of rewards, shape [C].
        weights: Weight of each comparison, above 0, shape [C]; 1 where `None`.

    Example:
        >>> rank_among_equals(spread=np.arange(40.0), size=np.arange(40.0)).round(2).tolist() == [0.5] * 40
        True
    """
    spread, size, _, weights = comparison_columns(spread=spread, size=size, weights=weights)
    order = np.argsort(size, kind="stable")
    s, w = spread[order], weights[order]
    below, total = w / 2, w.copy()  # a comparison is its own neighbour, with an equal spread
    for offset in range(1, min(_NEIGHBOURS, (len(s) - 1) // 10) + 1):
        middle = slice(offset, -offset)
        for beside in (slice(None, -2 * offset), slice(2 * offset, None)):
            below[middle] += w[beside] * np.where(s[beside] == s[middle], 0.5, s[beside] < s[middle])
            total[middle] += w[beside]
    ranks = np.empty(len(s))
    ranks[order] = below / total
    return ranks


def _from_means(means: Floats) -> Floats:
    """Return the AUROC of each row of sums or means [..., 4]: ranks where wrong, wrong, ranks where right, right."""
    return 0.5 + means[:, 0] / means[:, 1] - means[:, 2] / means[:, 3]


def _verdict(value: float, low: float, high: float) -> tuple[bool | None, str]:
    """Return whether the spread earns its place, with a sentence."""
    if not np.isfinite(low):
        return None, f"Cannot tell: fewer than {_LEAST_PROMPTS} prompts have an error, or as few are right."
    evidence = (
        "of a wrong and a right comparison with about the same difference of rewards, the wrong one has the greater "
        f"spread in {value:.1%} of the cases (95% {low:.1%} to {high:.1%}; 50% is chance)."
    )
    if low > 0.5:
        return True, f"The uncertainty earns its place: {evidence}"
    if high <= _NEGLIGIBLE:
        return False, f"The uncertainty does not earn its place: {evidence} The difference alone says as much."
    return None, f"Cannot tell whether the uncertainty earns its place: {evidence} Evaluate on more prompts."


def _cross_fitted_logits(d: Floats, s: Floats, labels: Floats, weights: Floats, prompts: NDArray[Any]) -> Floats:
    """Return logits [2, C] of the better response, without and with the spread, each from a fit on other prompts.

    Without the spread a logit is `d / T`; with it, `d / (T sqrt(1 + c s^2))` with `c >= 0`. This is the moderated
    output of D. MacKay (Neural Computation 4, 1992), in which c is fitted in place of pi/8, since few members on one
    backbone may agree too much.
    """
    from scipy.optimize import minimize

    keys = np.unique(prompts, return_inverse=True)[1]
    folds = np.random.default_rng(0).permutation(keys.max() + 1)[keys] % _FOLDS
    squares = s**2 / (np.mean(s**2) or 1.0)
    logits = np.zeros((2, len(d)))
    for here in (folds == number for number in range(_FOLDS)):
        others = labels[~here], weights[~here]
        temperature = best_temperature(d[~here], *others)
        if not 0 < temperature < np.inf:  # no scale fits: the greater reward is always right, or tells nothing
            continue
        fit = minimize(
            lambda x, d, squares, *rest: log_loss(_moderate(d, squares, *x), *rest),
            (temperature, 0.0),
            (d[~here], squares[~here], *others),
            method="L-BFGS-B",
            bounds=((temperature / 100, 10 * temperature), (0.0, 1000.0)),
        )
        logits[:, here] = d[here] / temperature, _moderate(d[here], squares[here], *fit.x)
    return logits


def _moderate(d: Floats, squares: Floats, temperature: float, weight: float) -> Floats:
    return d / (temperature * np.sqrt(1 + weight * squares))


def _probabilities(logits: Floats, labels: Floats, weights: Floats, end: str) -> dict[str, Any]:
    """Return log loss, calibration error and calibration bins of logits, under names with this end."""
    names = [f"{name}{end}" for name in ("log_loss", "calibration_error", "reliability")]
    if np.isnan(logits).any():
        return dict(zip(names, (np.nan, np.nan, []), strict=True))
    columns = logits, labels, weights
    keys = ("confidence", "accuracy", "share")
    bins = [dict(zip(keys, each, strict=True)) for each in calibration_bins(*columns).tolist()]
    return dict(zip(names, (log_loss(*columns), calibration_error(*columns), bins), strict=True))


def _agreement(differences: Floats, labels: Floats, weights: Floats, kind: str) -> dict[str, Any]:
    """Return the correlations of the residuals of members with these differences of rewards [C, K], by weight."""
    from scipy.special import expit

    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = np.cov((labels[:, None] - expit(differences)).T, aweights=weights, ddof=0)
        deviations = np.sqrt(np.diag(covariance))
        correlations = covariance / np.outer(deviations, deviations)
    mean = float(correlations[np.triu_indices_from(correlations, 1)].mean())
    return {
        "kind": kind,
        "error_correlation": mean,
        "members_are_alike": kind == "members" and mean > _ALIKE,
        "error_correlations": correlations.tolist() if len(correlations) <= _MOST_IN_MATRIX else [],
    }


def _auroc(wrong: Floats, score: Floats, weights: Floats) -> float:
    """Return the probability that a wrong comparison has a greater score than a right one, by weight."""
    from sklearn.metrics import roc_auc_score

    masses = weights * wrong, weights * (1 - wrong)
    if not all(each.any() for each in masses):
        return np.nan
    classes = np.repeat([1, 0], len(score))
    return float(roc_auc_score(classes, np.tile(score, 2), sample_weight=np.concatenate(masses)))


def _curves(
    margins: Floats, wrong: Floats, rankings: dict[str, Floats], prompts: NDArray[Any], weights: Floats
) -> dict[str, Any]:
    """Return the accuracy at each coverage of each ranking, and in tenths by the spread and by its rank."""
    if not len(margins):
        return {"coverage": [], "spread_bins": [], "adjusted_bins": []}
    coverage: list[Record] = [{"coverage": float(share)} for share in _COVERAGES]
    for name, score in rankings.items():
        for record, figures in zip(coverage, _coverage(name, score, 1 - wrong, prompts, weights), strict=True):
            record.update(figures)
    ranks = rank_among_equals(rankings["spread"], np.abs(margins), weights)
    renamed, bins = {"shortest": "low", "longest": "high"}, []
    for score in (rankings["spread"], ranks):
        tenths = length_deciles(margins, score, weights, prompts)
        bins.append([{renamed.get(name, name): value for name, value in each.items()} for each in tenths])
    return {"coverage": coverage, "spread_bins": bins[0], "adjusted_bins": bins[1]}


def _coverage(name: str, score: Floats, right: Floats, prompts: NDArray[Any], weights: Floats) -> list[Record]:
    """Return the accuracy of the comparisons with the least scores at each coverage, of the spread with its interval.

    Comparisons of equal scores are answered together. The threshold of a coverage is the same in all bootstrap samples.
    """
    _, tied = np.unique(score, return_inverse=True)
    mass = np.bincount(tied, weights)
    until = ((np.cumsum(mass) - mass / 2) / mass.sum())[tied]
    inside = until[None] <= np.maximum(_COVERAGES, until.min())[:, None]  # [coverages, C]
    columns = {name: inside @ (weights * right) / (inside @ weights)}
    if name == "spread":
        tail = interval_tail(len(np.unique(prompts)))
        means = resampled_means(np.concatenate([inside * right, inside]), prompts, weights)
        with np.errstate(invalid="ignore"):
            shares = means[:, : len(inside)] / means[:, len(inside) :]
        columns["spread_low"], columns["spread_high"] = np.nanquantile(shares, [tail, 1 - tail], axis=0)
    return [dict(zip(columns, each, strict=True)) for each in np.stack(list(columns.values()), 1).tolist()]
