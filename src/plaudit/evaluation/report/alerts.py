"""Alerts: the verdicts that a report begins with, from the JSON of results."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.evaluation.number_texts import accuracy_text

__all__ = [
    "Alert",
    "audit_alerts",
    "baseline_alerts",
    "comparison_alerts",
    "evaluation_alerts",
    "merge_alerts",
    "probe_alerts",
    "run_alerts",
]

_LEVELS = ("grave", "warning", "note")
_FEW_PROMPTS = 100


@dataclass(frozen=True)
class Alert:
    """A verdict on a model or its data.

    Attributes:
        level: "grave" if the model or its figures should not be relied on, "warning", or "note".
        verdict: One sentence.
        advice: Evidence, and what to do about it, in a line for each dataset or model that is concerned.
    """

    level: str
    verdict: str
    advice: str


def merge_alerts(found: Iterable[Alert]) -> list[Alert]:
    """Return alerts, the gravest first, with those of one verdict in one."""
    lines: dict[tuple[str, str], list[str]] = {}
    for alert in sorted(found, key=lambda alert: _LEVELS.index(alert.level)):
        lines.setdefault((alert.level, alert.verdict), []).append(alert.advice)
    return [Alert(level, verdict, "\n".join(each)) for (level, verdict), each in lines.items()]


def evaluation_alerts(evaluation: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield the alerts of an evaluation, from the JSON of `Evaluation.to_dict`."""
    figures = {name: math.nan if value is None else value for name, value in evaluation["overall"].items()}
    yield from _accuracy_alerts(figures)
    yield from _probability_alerts(figures)
    if uncertainty := evaluation.get("uncertainty"):
        yield from _uncertainty_alerts(uncertainty)
    if below := {name: each for name, each in evaluation["subsets"].items() if (each["accuracy_high"] or 1) < 0.5}:
        listed = ", ".join(f"{name} ({each['accuracy']:.1%})" for name, each in below.items())
        advice = f"{len(below)} of {len(evaluation['subsets'])}, with their whole interval below one half: {listed}."
        yield Alert("grave", "Subsets are below chance.", advice)
    if cut := evaluation["cut"]:
        advice = f"{cut:,} responses in {figures['rows']:,} rows: the model did not see them whole. Raise max_length."
        level = "warning" if cut > 0.01 * figures["rows"] else "note"
        yield Alert(level, "Responses were cut to the maximum length.", advice)
    if figures["prompts"] < _FEW_PROMPTS:
        advice = f"{figures['prompts']:,} different prompts: the intervals are wide and rough. Add prompts."
        yield Alert("warning", "There are few prompts.", advice)
    if figures["reward_ties"] > 0.01 * figures["comparisons"]:
        advice = f"{figures['reward_ties']:,} of {figures['comparisons']:,}; each counts one half. Score in float32."
        yield Alert("warning", "Many comparisons have two equal rewards.", advice)


def _accuracy_alerts(figures: Mapping[str, float]) -> Iterator[Alert]:
    low, high, accuracy = figures["accuracy_low"], figures["accuracy_high"], f"Accuracy {accuracy_text(figures)}"
    if low <= 0.5:
        verdict = f"The model is {'worse' if high < 0.5 else 'not better'} than chance."
        yield Alert("grave", verdict, f"{accuracy}. Check that the labels and the template are right.")
    length = "longer" if figures["longer_wins"] >= figures["shorter_wins"] else "shorter"
    baseline = figures[f"{length}_wins"]
    if low <= baseline and baseline > 0.5:
        verdict = f"The model is {'worse' if high < baseline else 'not better'} than preferring the {length} response."
        advice = f"always taking the {length} response is right in {baseline:.1%}. Length may be all it learnt."
        yield Alert("grave", verdict, f"{accuracy}; {advice}")
    longer, shorter = figures["longer_accuracy"], figures["shorter_accuracy"]
    if abs(longer - shorter) > 0.2:
        advice = (
            f"Accuracy is {longer:.1%} where the better response is longer and {shorter:.1%} where it is shorter; the "
            f"mean, {figures['length_balanced_accuracy']:.1%}, is what remains without length. Balance the lengths."
        )
        yield Alert("warning", f"The model favours the {'longer' if longer > shorter else 'shorter'} response.", advice)


def _probability_alerts(figures: Mapping[str, float]) -> Iterator[Alert]:
    temperature, loss, calibrated = (figures[each] for each in ("temperature", "log_loss", "calibrated_log_loss"))
    advice = (
        f"The best temperature is {temperature:.3g}: log loss {loss:.3f}, and {calibrated:.3f} with it; guessing has "
        "0.693. Divide the rewards by it; plaudit eval --save_temperature saves it with the model."
    )
    if not math.isfinite(temperature):
        advice = f"Log loss {loss:.3f}, where guessing has 0.693, and no temperature helps."
        yield Alert("grave", "As probabilities, the rewards are no better than guessing.", advice)
    elif temperature > 1.1 and loss - calibrated > 0.01:
        yield Alert("grave" if loss > math.log(2) else "warning", "The model is overconfident.", advice)
    elif 0 < temperature < 0.9 and loss - calibrated > 0.01:
        yield Alert("note", "The model is underconfident.", advice)


def _uncertainty_alerts(uncertainty: Mapping[str, Any]) -> Iterator[Alert]:
    if uncertainty["members_are_alike"]:
        correlation = f"The mean correlation of their errors is {uncertainty['error_correlation']:.3f}."
        advice = f"{correlation} Train members on other data, with other seeds or from other base models."
        yield Alert("warning", "The members of the ensemble are one model.", advice)
    if uncertainty["earns_its_place"] is False:
        advice = (
            "The AUROC of the spread for errors at equal differences of rewards is {adjusted_auroc:.3f} (95% "
            "{adjusted_auroc_low:.3f} to {adjusted_auroc_high:.3f}); 0.5 adds nothing. Rely on the difference instead."
        )
        yield Alert("warning", "The uncertainty does not earn its place.", advice.format(**uncertainty))


def baseline_alerts(figures: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> Iterator[Alert]:
    """Yield an alert if the interval of a model's accuracy reaches down to the best baseline of its training data."""
    name = max(baselines, key=lambda name: baselines[name]["accuracy"], default=None)
    if name and (figures["accuracy_low"] or 0.0) <= baselines[name]["accuracy"]:
        advice = (
            f"Accuracy of the model: {accuracy_text(figures)}. Of {name}: {accuracy_text(baselines[name])}, without a "
            "look at the prompt, cross-validated on the training data. Audit the evaluated data to compare there."
        )
        yield Alert("warning", "A baseline without a model may do as well.", advice)


def audit_alerts(audit: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert for each grave finding of an audit."""
    for each in audit["findings"]:
        if each["grave"]:
            title = each["title"][:1].lower() + each["title"][1:]
            yield Alert("grave", f"In the data: {title}: {each['count']:,}.", f"{each['why']} {each['advice']}")


def probe_alerts(probes: Sequence[Mapping[str, Any]]) -> Iterator[Alert]:
    """Yield an alert for each probe that a model failed."""
    for each in probes:
        if each["passed"] is False:
            reason = each["verdict"].removeprefix("Failed: ")
            yield Alert("grave", "The model fails probes.", f"{each['name'].replace('_', ' ')}: {reason}")


def comparison_alerts(comparison: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert if two models cannot be told apart, or the first one is worse, or they were not scored alike."""
    a, b = comparison["a"], comparison["b"]
    advice = "Difference in accuracy {difference:+.1%} (95% {low:+.1%} to {high:+.1%}).".format(**comparison)
    if not comparison["separable"]:
        if smallest := comparison["smallest_detectable"]:
            advice += f" The smallest difference that could have been seen is {smallest:.1%}."
        yield Alert("note", f"{a} and {b} are not separable.", advice)
    elif comparison["difference"] < 0:
        yield Alert("grave", f"{a} is worse than {b}.", advice)
    for note in comparison["notes"]:
        yield Alert("warning", f"{a} and {b} were not scored alike.", note)


def run_alerts(metadata: Mapping[str, Any]) -> Iterator[Alert]:
    """Yield an alert if a saved model was not verified, from its `reward.json`."""
    status = metadata.get("verification", {}).get("status", "NOT VERIFIED")
    if metadata and status != "verified":
        level = "grave" if status == "failed" else "warning"
        advice = "It is not proven that the saved folder scores as the model did in training. Run plaudit verify."
        yield Alert(level, f"The saved model is not verified ({status}).", advice)
