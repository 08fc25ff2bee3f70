"""Features of form that the preferences follow: length, and markup, openers and refusals with their odds ratios."""

from typing import Any

import numpy as np

from plaudit.auditing.preference_table import FORMATS, PreferenceTable
from plaudit.evaluation.baselines import STYLE, share_and_interval

__all__ = ["format_odds", "length_share"]

_LEVEL = 0.001


def length_share(table: PreferenceTable) -> dict[str, float]:
    """Return the share of comparisons whose longer response is chosen, without those of equal length.

    Returns:
        `share` with its 95% interval, `low` and `high`, the number of `comparisons` and `significant`, which is 1 where
        the share is 5 points or more from one half and an interval of 99.9% excludes one half. Empty where all lengths
        are equal.
    """
    longer = table.counts[table.better, 0].astype(float) - table.counts[table.worse, 0]
    unequal = longer != 0
    if not unequal.any():
        return {}
    found = share_and_interval(longer[unequal], table.prompts[table.row_of[unequal]], table.weights[unequal])
    away, width = found["accuracy"] - 0.5, (found["high"] - found["low"]) / 2
    clear = abs(away) >= 0.05 and abs(away) > width * 3.29 / 1.96
    share = {"share": found["accuracy"], "low": found["low"], "high": found["high"]}
    return share | {"comparisons": int(unequal.sum()), "significant": int(clear)}


def format_odds(table: PreferenceTable) -> list[dict[str, Any]]:
    """Return the odds ratio of each feature of form: how much more often it is chosen than rejected.

    Comparisons in which one response alone has the feature, summed up by prompt, are counted as for McNemar's test:
    the odds ratio is (prompts that favour the feature) / (prompts that disfavour it), with the exact interval of
    Clopper and Pearson. The p-values of the exact sign test are corrected by Holm ("A simple sequentially rejective
    multiple test procedure", 1979).

    Returns:
        For each feature: `feature`, `odds_ratio`, `low` and `high` (95%; infinite ends are `None`), `chosen` and
        `rejected` (shares of the responses that have it), `prompts` and `rows` in which the responses differ in it,
        `p_value` (after Holm) and `significant`: below .001, an odds
        ratio beyond 1.5 in either direction, and in one prompt of a hundred or more.
    """
    from scipy.stats import binomtest

    names = [*STYLE, *FORMATS][1:]
    present = table.counts[:, 1:] > 0
    prompts, place = np.unique(table.prompts[table.row_of], return_inverse=True)
    odds: list[dict[str, Any]] = []
    for column, name in enumerate(names):
        chosen, rejected = present[table.better, column], present[table.worse, column]
        favour = np.bincount(place, table.weights * (chosen.astype(float) - rejected), minlength=len(prompts))
        more, less = int((favour > 1e-9).sum()), int((favour < -1e-9).sum())
        if not more + less:
            continue
        test = binomtest(more, more + less)
        interval = test.proportion_ci(0.95, "exact")
        odds.append({
            "feature": name, "odds_ratio": _odds(more / (more + less)), "low": _odds(interval.low),
            "high": _odds(interval.high), "chosen": float(chosen.mean()), "rejected": float(rejected.mean()),
            "p_value": float(test.pvalue), "prompts": more + less,
            "rows": len(np.unique(table.row_of[chosen != rejected])),
        })  # fmt: skip
    _correct(odds)
    for each in odds:
        ratio = each["odds_ratio"]
        far = ratio is None or not 1 / 1.5 < ratio < 1.5
        each["significant"] = each["p_value"] < _LEVEL and far and each["prompts"] >= 0.01 * len(prompts)
    return odds


def _odds(share: float) -> float | None:
    return share / (1 - share) if share < 1 else None


def _correct(odds: list[dict[str, Any]]) -> None:
    """Replace p-values by those after Holm's correction, and sort by them."""
    odds.sort(key=lambda each: each["p_value"])
    least = 0.0
    for rank, each in enumerate(odds):
        least = max(least, min(1.0, each["p_value"] * (len(odds) - rank)))
        each["p_value"] = least
