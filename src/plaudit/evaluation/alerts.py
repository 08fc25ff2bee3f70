"""Alerts: the verdicts that a report begins with, from the JSON of results."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Alert", "audit_alerts", "comparison_alerts", "curve_alerts", "evaluation_alerts", "probe_alerts"]

_FEW_PROMPTS = 100


@dataclass(frozen=True)
class Alert:
    """A verdict on a model or its data.

    Attributes:
        level: "grave" if other figures cannot be trusted or the model should not be used, "warning", or "note".
        verdict: One sentence.
        advice: Evidence, and what to do about it.
    """

    level: str
    verdict: str
    advice: str


def evaluation_alerts(name: str, evaluation: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield the alerts of an evaluation.

    Args:
        name: The dataset, or model and dataset.
        evaluation: `overall`, `subsets` and `cut`, as `Evaluation.to_dict` returns them.
    """
    figures = _numbers(evaluation["overall"])
    yield from _baseline_alerts(name, figures)
    yield from _length_alerts(name, figures)
    yield from _probability_alerts(name, figures)
    yield from _subset_alerts(name, evaluation.get("subsets") or {})
    cut, rows, comparisons = evaluation.get("cut") or 0, figures["rows"], figures["comparisons"]
    if cut:
        advice = "The model did not see their beginnings. Raise max_length, or leave long rows out."
        level = "warning" if cut > 0.01 * 2 * rows else "note"
        yield Alert(level, f"{name}: {cut:,} responses were cut to the maximum length.", advice)
    if figures["prompts"] < _FEW_PROMPTS:
        advice = "Rows of one prompt are right and wrong together, so the intervals are wide and rough. Add prompts."
        yield Alert("warning", f"{name}: there are only {figures['prompts']:,.0f} different prompts.", advice)
    if figures["reward_ties"] > 0.01 * comparisons:
        advice = f"{figures['reward_ties']:,.0f} of {comparisons:,.0f}; each counts one half. Score in float32."
        yield Alert("warning", f"{name}: many comparisons have two equal rewards.", advice)


def audit_alerts(audit: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert for each grave finding of an audit, from its JSON."""
    for finding in audit["findings"]:
        if finding.get("grave"):
            found = f"Data: {finding['count']:,} x {str(finding['kind']).replace('_', ' ')}."
            yield Alert("grave", found, f"{finding['why']} {finding['advice']}")


def probe_alerts(probes: Sequence[Mapping[str, Any]]) -> Iterator[Alert]:
    """Yield an alert for each probe that a model failed, from the JSON of the probes."""
    for each in probes:
        if each.get("passed") is False:
            yield Alert("grave", f"Probe {each['name']}: failed.", str(each.get("verdict") or each.get("meaning") or ""))


def comparison_alerts(comparison: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert if two models cannot be told apart, or if the first one is worse, from the JSON of a comparison."""
    names = f"{comparison.get('a', 'a')} and {comparison.get('b', 'b')}"
    interval = "Difference {difference:+.1%} (95% interval {low:+.1%} to {high:+.1%}).".format(**comparison)
    if not comparison["separable"]:
        smallest = comparison.get("smallest_detectable")
        seen = "" if smallest is None else f" The smallest difference that could have been seen is {smallest:.1%}."
        yield Alert("note", f"{names} are not separable.", interval + seen)
    elif comparison["difference"] < 0:
        yield Alert("grave", f"{comparison.get('a', 'a')} is worse than {comparison.get('b', 'b')}.", interval)


def curve_alerts(curve: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert if a learning curve cannot say what more data would bring, from its JSON."""
    if curve.get("identifiable") is False:
        advice = "The held-out log loss does not follow a power law closely enough. Train on more sizes or more data."
        yield Alert("note", "The learning curve does not say what more data would bring.", advice)


def _baseline_alerts(name: str, figures: Mapping[str, float]) -> Iterator[Alert]:
    low, high = figures["accuracy_low"], figures["accuracy_high"]
    accuracy = f"Accuracy {figures['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%})"
    if low <= 0.5:
        verdict = "worse than chance" if high < 0.5 else "not better than chance"
        yield Alert("grave", f"{name}: {verdict}.", f"{accuracy}. Check that the labels and the template are right.")
    length = "longer" if figures["longer_wins"] >= figures["shorter_wins"] else "shorter"
    baseline = figures[f"{length}_wins"]
    if low <= baseline and baseline > 0.5:
        verdict = "worse than" if high < baseline else "not better than"
        advice = f"{accuracy}; always taking the {length} response is right in {baseline:.1%}. Length may be all it learnt."
        yield Alert("grave", f"{name}: {verdict} preferring the {length} response.", advice)


def _length_alerts(name: str, figures: Mapping[str, float]) -> Iterator[Alert]:
    longer, shorter = (figures.get(f"{side}_accuracy", math.nan) for side in ("longer", "shorter"))
    if abs(longer - shorter) > 0.2:
        side = "longer" if longer > shorter else "shorter"
        advice = (
            f"Accuracy is {longer:.1%} where the better response is longer and {shorter:.1%} where it is shorter; the "
            f"mean, {figures['length_balanced_accuracy']:.1%}, is what remains without length. Balance the lengths."
        )
        yield Alert("warning", f"{name}: the model favours the {side} response.", advice)


def _probability_alerts(name: str, figures: Mapping[str, float]) -> Iterator[Alert]:
    temperature, loss, calibrated = (figures[each] for each in ("temperature", "log_loss", "calibrated_log_loss"))
    losses = f"log loss {loss:.3f}, and {calibrated:.3f} with it; guessing has 0.693"
    if temperature == math.inf:
        advice = f"Log loss {loss:.3f}, where guessing has 0.693, and no temperature helps."
        yield Alert("grave", f"{name}: as probabilities, the rewards are no better than guessing.", advice)
    elif temperature > 1.1 and loss - calibrated > 0.01:
        level = "grave" if loss > math.log(2) else "warning"
        advice = f"The best temperature is {temperature:.3g}: {losses}. Divide the rewards by it."
        yield Alert(level, f"{name}: the model is overconfident.", advice)
    elif 0 < temperature < 0.9 and loss - calibrated > 0.01:
        advice = f"The best temperature is {temperature:.3g}: {losses}. Divide the rewards by it."
        yield Alert("note", f"{name}: the model is less sure than it could be.", advice)
    bins = max(1, min(10, figures["comparisons"] // 20))
    chance = 0.4 * math.sqrt(bins / figures["comparisons"])
    if figures["calibration_error"] > max(0.05, 1.5 * chance):
        advice = f"The calibration error is {figures['calibration_error']:.1%}; chance alone makes it up to {chance:.1%}."
        yield Alert("warning", f"{name}: the confidence of the rewards is not the share that is right.", advice)


def _subset_alerts(name: str, subsets: Mapping[str, Mapping[str, Any]]) -> Iterator[Alert]:
    below = [subset for subset, each in subsets.items() if each["accuracy_high"] < 0.5]
    if below:
        listed = ", ".join(f"{subset} ({subsets[subset]['accuracy']:.1%})" for subset in below[:8])
        listed += f" and {len(below) - 8} more" if len(below) > 8 else ""
        advice = f"Their whole interval is below one half: {listed}. Of {len(subsets)} subsets, chance gives 1 in 40."
        yield Alert("grave", f"{name}: {len(below)} of {len(subsets)} subsets are below chance.", advice)


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of JSON as numbers: `None` stands there for what is not finite; a temperature is infinite."""
    numbers = {name: math.nan if value is None else value for name, value in figures.items()}
    return numbers | {"temperature": math.inf if figures["temperature"] is None else figures["temperature"]}
