"""Alerts: the verdicts that a report begins with, from the JSON of results."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Alert",
    "audit_alerts",
    "comparison_alerts",
    "curve_alerts",
    "evaluation_alerts",
    "probe_alerts",
    "run_alerts",
]

_FEW_PROMPTS = 100


@dataclass(frozen=True)
class Alert:
    """A verdict on a model or its data.

    Attributes:
        level: "grave" if the model or its figures should not be relied on, "warning", or "note".
        verdict: One sentence.
        advice: Evidence, and what to do about it.
        subject: The dataset or the model, where a report has several.
    """

    level: str
    verdict: str
    advice: str
    subject: str = ""


def evaluation_alerts(evaluation: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield the alerts of an evaluation.

    Args:
        evaluation: `overall`, `subsets` and `cut`, as `Evaluation.to_dict` returns them.
    """
    figures = _numbers(evaluation["overall"])
    yield from _baseline_alerts(figures)
    yield from _length_alerts(figures)
    yield from _probability_alerts(figures)
    yield from _subset_alerts(evaluation.get("subsets") or {})
    cut, rows, comparisons = evaluation.get("cut") or 0, figures["rows"], figures["comparisons"]
    if cut:
        advice = f"{cut:,} responses in {rows:,.0f} rows: the model did not see their beginnings. Raise max_length."
        yield Alert("warning" if cut > 0.01 * rows else "note", "Responses were cut to the maximum length.", advice)
    if figures["prompts"] < _FEW_PROMPTS:
        advice = f"{figures['prompts']:,.0f} different prompts: the intervals are wide and rough. Add prompts."
        yield Alert("warning", "There are few prompts.", advice)
    if figures["reward_ties"] > 0.01 * comparisons:
        advice = f"{figures['reward_ties']:,.0f} of {comparisons:,.0f}; each counts one half. Score in float32."
        yield Alert("warning", "Many comparisons have two equal rewards.", advice)


def audit_alerts(audit: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert for each grave finding of an audit, from its JSON."""
    for finding in audit["findings"]:
        if finding.get("grave"):
            title = finding.get("title") or finding["kind"].replace("_", " ")
            yield Alert(
                "grave",
                f"In the data: {title[:1].lower()}{title[1:]}: {finding['count']:,}.",
                f"{finding['why']} {finding['advice']}",
            )


def probe_alerts(probes: Sequence[Mapping[str, Any]]) -> Iterator[Alert]:
    """Yield an alert for each probe that a model failed, from the JSON of the probes."""
    for each in probes:
        if each.get("passed") is False:
            name, reason = each["name"].replace("_", " "), each["verdict"].removeprefix("Failed: ")
            yield Alert("grave", "The model fails probes.", reason, name)


def comparison_alerts(comparison: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert if two models cannot be told apart, or the first one is worse, from the JSON of a comparison."""
    a, b = comparison["a"], comparison["b"]
    interval = "Difference {difference:+.1%} (95% interval {low:+.1%} to {high:+.1%}).".format(**comparison)
    if not comparison["separable"]:
        smallest = comparison["smallest_detectable"]
        seen = f" The smallest difference that could have been seen is {smallest:.1%}." if smallest else ""
        yield Alert("note", f"{a} and {b} are not separable.", interval + seen)
    elif comparison["difference"] < 0:
        yield Alert("grave", f"{a} is worse than {b}.", interval)
    for note in comparison.get("notes", ()):
        yield Alert("warning", f"{a} and {b} were not scored alike.", note)


def curve_alerts(curve: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert if a learning curve does not tell what more data would bring, from its JSON."""
    if curve["predicted"] is None:
        yield Alert("note", "The learning curve does not tell what more data would bring.", curve["verdict"])


def run_alerts(metadata: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert if a saved model was not verified, from its `reward.json`."""
    status = metadata.get("verification", {}).get("status", "NOT VERIFIED")
    if metadata and status != "verified":
        level = "grave" if status == "failed" else "warning"
        advice = "It is not proven that the saved folder scores as the model did in training. Run `plaudit verify`."
        yield Alert(level, f"The saved model is not verified ({status}).", advice)


def _baseline_alerts(figures: Mapping[str, float]) -> Iterator[Alert]:
    low, high = figures["accuracy_low"], figures["accuracy_high"]
    accuracy = f"Accuracy {figures['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%})"
    if low <= 0.5:
        verdict = "worse than chance" if high < 0.5 else "not better than chance"
        advice = f"{accuracy}. Check that the labels and the template are right."
        yield Alert("grave", f"The model is {verdict}.", advice)
    length = "longer" if figures["longer_wins"] >= figures["shorter_wins"] else "shorter"
    baseline = figures[f"{length}_wins"]
    if low <= baseline and baseline > 0.5:
        verdict = "worse than" if high < baseline else "not better than"
        advice = (
            f"{accuracy}; always taking the {length} response is right in {baseline:.1%}. Length may be all it learnt."
        )
        yield Alert("grave", f"The model is {verdict} preferring the {length} response.", advice)


def _length_alerts(figures: Mapping[str, float]) -> Iterator[Alert]:
    longer, shorter = (figures.get(f"{side}_accuracy", math.nan) for side in ("longer", "shorter"))
    if abs(longer - shorter) > 0.2:
        side = "longer" if longer > shorter else "shorter"
        advice = (
            f"Accuracy is {longer:.1%} where the better response is longer and {shorter:.1%} where it is shorter; the "
            f"mean, {figures['length_balanced_accuracy']:.1%}, is what remains without length. Balance the lengths."
        )
        yield Alert("warning", f"The model favours the {side} response.", advice)


def _probability_alerts(figures: Mapping[str, float]) -> Iterator[Alert]:
    temperature, loss, calibrated = (figures[each] for each in ("temperature", "log_loss", "calibrated_log_loss"))
    losses = f"log loss {loss:.3f}, and {calibrated:.3f} with it; guessing has 0.693"
    if temperature == math.inf:
        advice = f"Log loss {loss:.3f}, where guessing has 0.693, and no temperature helps."
        yield Alert("grave", "As probabilities, the rewards are no better than guessing.", advice)
    elif temperature > 1.1 and loss - calibrated > 0.01:
        level = "grave" if loss > math.log(2) else "warning"
        advice = f"The best temperature is {temperature:.3g}: {losses}. Divide the rewards by it."
        yield Alert(level, "The model is overconfident.", advice)
    elif 0 < temperature < 0.9 and loss - calibrated > 0.01:
        advice = f"The best temperature is {temperature:.3g}: {losses}. Divide the rewards by it."
        yield Alert("note", "The model is less sure than it could be.", advice)
    else:
        chance = 0.4 * math.sqrt(max(1, min(10, figures["comparisons"] // 20)) / figures["comparisons"])
        if figures["calibration_error"] > max(0.05, 1.5 * chance):
            advice = f"Calibration error {figures['calibration_error']:.1%}; chance alone makes it up to {chance:.1%}."
            yield Alert("warning", "The rewards are not calibrated, and no temperature helps.", advice)


def _subset_alerts(subsets: Mapping[str, Mapping[str, Any]]) -> Iterator[Alert]:
    below = [subset for subset, each in subsets.items() if (each["accuracy_high"] or 1) < 0.5]
    if below:
        listed = ", ".join(f"{subset} ({subsets[subset]['accuracy']:.1%})" for subset in below[:8])
        listed += f" and {len(below) - 8} more" if len(below) > 8 else ""
        advice = f"{len(below)} of {len(subsets)}, with their whole interval below one half: {listed}."
        yield Alert("grave", "Subsets are below chance.", advice)


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of JSON as numbers: `None` stands there for what is not finite; a temperature is infinite."""
    numbers = {name: math.nan if value is None else value for name, value in figures.items()}
    return numbers | {"temperature": math.inf if figures["temperature"] is None else figures["temperature"]}
