"""Features of form that the preferences follow: markup, openers and refusals, with their odds ratios."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.evaluation.baselines import STYLE, style_counts
from plaudit.evaluation.significance import holm

__all__ = ["FEATURES", "features_of", "format_odds"]

_PATTERNS = {
    "code block": re.compile("```"),
    "link": re.compile(r"https?://|\]\(www\."),
    "emoji": re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]"),
    '"Sure" as opener': re.compile(r"\A\W*(?:sure|certainly|absolutely|of course|great question|gladly)\b", re.I),
    "refusal as opener": re.compile(
        "\\A\\W*(?:i['\u2019]?m (?:very |so |really )?(?:sorry|afraid|unable|not able|not comfortable)"
        "|i am (?:sorry|unable|not able)|sorry\\b|i (?:must )?apologi[sz]e|as an ai\\b|unfortunately,? i\\b"
        "|i (?:can(?:['\u2019]?t|not| not)|won['\u2019]?t|will not|do(?:n['\u2019]t| not) feel comfortable))",
        re.I,
    ),
}
FEATURES = [*STYLE, *_PATTERNS]


def features_of(response: str) -> list[int]:
    """Return the counts of `STYLE` in a response, at most 65,535, and whether it has each other feature."""
    found = (pattern.search(response) is not None for pattern in _PATTERNS.values())
    return [*(min(count, 65535) for count in style_counts(response)), *found]


def format_odds(
    features: NDArray[np.uint16], prompts: NDArray[Any], rows: NDArray[Any], weights: NDArray[np.floating]
) -> list[dict[str, Any]]:
    """Return the odds ratio of each feature of form but length: how much more often it is chosen than rejected.

    Comparisons in which one response alone has the feature, summed up by prompt, are counted as for McNemar's test:
    the odds ratio is (prompts that favour the feature) / (prompts that disfavour it), with the exact interval of
    Clopper and Pearson. The p-values are those of the exact sign test, corrected by Holm
    ("A simple sequentially rejective multiple test procedure", 1979).

    Args:
        features: `FEATURES` of the better and the other response, shape [C, 2, 11].
        prompts: Equal for comparisons of one prompt, shape [C].
        rows: Row of each comparison, shape [C].
        weights: Weight of each comparison, shape [C].

    Returns:
        For each feature, the least p-value first: `feature`, `odds_ratio`, `low` and `high` (95%; infinite ends are
        `None`), `chosen` and `rejected` (shares of the responses that have it), `prompts` and `rows` in which the
        responses differ in it, `p_value`, and `significant`: below .001, an odds ratio beyond 1.5 in either
        direction, and responses that differ in it in at least 1% of the prompts.
    """
    from scipy.stats import binomtest

    names, place = np.unique(prompts, return_inverse=True)
    odds: list[dict[str, Any]] = []
    for name, (chosen, rejected) in zip(FEATURES[1:], (features[:, :, 1:] > 0).T, strict=True):
        favour = np.bincount(place, weights * (chosen.astype(float) - rejected), minlength=len(names))
        more, less = int((favour > 1e-6).sum()), int((favour < -1e-6).sum())
        if more + less:
            test = binomtest(more, more + less)
            low, high = test.proportion_ci(0.95, "exact")
            odds.append({
                "feature": name, "odds_ratio": _odds(more / (more + less)), "low": _odds(low), "high": _odds(high),
                "chosen": float(chosen.mean()), "rejected": float(rejected.mean()), "p_value": float(test.pvalue),
                "prompts": more + less, "rows": len(np.unique(rows[chosen != rejected])),
            })  # fmt: skip
    odds.sort(key=lambda each: each["p_value"])
    for each, p_value in zip(odds, holm([each["p_value"] for each in odds]), strict=True):
        far = each["odds_ratio"] is None or not 1 / 1.5 < each["odds_ratio"] < 1.5
        each |= {"p_value": p_value, "significant": p_value < 0.001 and far and each["prompts"] >= 0.01 * len(names)}
    return odds


def _odds(share: float) -> float | None:
    return float(share / (1 - share)) if share < 1 else None
