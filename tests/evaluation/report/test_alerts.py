"""Alerts: each verdict appears where it should, and not where a good model is evaluated."""

import pytest
from report_data import AUDIT, COMPARISON, PROBES

from plaudit.evaluation.report.alerts import (
    Alert,
    audit_alerts,
    baseline_alerts,
    comparison_alerts,
    evaluation_alerts,
    merge_alerts,
    probe_alerts,
    run_alerts,
)

GOOD = {
    "rows": 1000, "prompts": 900, "comparisons": 1000, "accuracy": 0.8, "accuracy_low": 0.77, "accuracy_high": 0.83,
    "reward_ties": 0, "longer_wins": 0.6, "shorter_wins": 0.4, "longer_accuracy": 0.82, "shorter_accuracy": 0.77,
    "length_balanced_accuracy": 0.795, "log_loss": 0.42, "calibration_error": 0.02, "temperature": 1.05,
    "calibrated_log_loss": 0.419,
}  # fmt: skip


def verdicts(figures=(), **evaluation):
    found = evaluation_alerts({"overall": GOOD | dict(figures), "subsets": {}, "cut": 0} | evaluation)
    return {alert.verdict: alert.level for alert in found}


def test_a_good_model_has_no_alert():
    assert verdicts() == {}


@pytest.mark.parametrize(
    ("figures", "verdict", "level"),
    [
        ({"accuracy_low": 0.59}, "The model is not better than preferring the longer response.", "grave"),
        ({"accuracy_high": 0.58, "accuracy_low": 0.55}, "The model is worse than preferring the longer response.",
         "grave"),
        ({"accuracy_low": 0.62, "longer_wins": 0.3, "shorter_wins": 0.7},
         "The model is not better than preferring the shorter response.", "grave"),
        ({"longer_accuracy": 0.95, "shorter_accuracy": 0.6}, "The model favours the longer response.", "warning"),
        ({"longer_accuracy": 0.6, "shorter_accuracy": 0.95}, "The model favours the shorter response.", "warning"),
        ({"temperature": 3.0, "log_loss": 0.6}, "The model is overconfident.", "warning"),
        ({"temperature": 9.0, "log_loss": 0.9}, "The model is overconfident.", "grave"),
        ({"temperature": 0.4, "log_loss": 0.5}, "The model is underconfident.", "note"),
        ({"temperature": None}, "As probabilities, the rewards are no better than guessing.", "grave"),
        ({"prompts": 40}, "There are few prompts.", "warning"),
        ({"reward_ties": 30}, "Many comparisons have two equal rewards.", "warning"),
    ],
)  # fmt: skip
def test_one_thing_that_is_wrong_is_one_alert(figures, verdict, level):
    assert verdicts(figures) == {verdict: level}


def test_chance_is_told_with_its_side():
    low = {"accuracy": 0.5, "accuracy_low": 0.47, "accuracy_high": 0.53, "longer_wins": 0.4, "shorter_wins": 0.5}
    assert verdicts(low) == {"The model is not better than chance.": "grave"}
    assert "The model is worse than chance." in verdicts(low | {"accuracy_high": 0.49})


def test_unknown_lengths_are_no_alert():
    names = ("longer_wins", "shorter_wins", "longer_accuracy", "shorter_accuracy", "length_balanced_accuracy")
    assert verdicts(dict.fromkeys(names)) == {}


UNCERTAIN = {
    "members_are_alike": False, "error_correlation": 0.6, "earns_its_place": True,
    "adjusted_auroc": 0.51, "adjusted_auroc_low": 0.48, "adjusted_auroc_high": 0.54,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"earns_its_place": None, "error_correlation": None}, {}),
        ({"earns_its_place": False}, {"The uncertainty does not earn its place.": "warning"}),
        ({"members_are_alike": True}, {"The members of the ensemble are one model.": "warning"}),
    ],
)
def test_an_uncertainty_that_says_nothing_is_an_alert(changes, expected):
    assert verdicts(uncertainty=UNCERTAIN | changes) == expected


def test_cut_responses_are_counted():
    assert verdicts(cut=5) == {"Responses were cut to the maximum length.": "note"}
    assert verdicts(cut=200) == {"Responses were cut to the maximum length.": "warning"}


def test_subsets_below_chance_are_named_with_the_number_that_was_looked_at():
    subsets = dict.fromkeys("abc", GOOD) | {"maths": GOOD | {"accuracy": 0.3, "accuracy_high": 0.4}}
    (alert,) = evaluation_alerts({"overall": GOOD, "subsets": subsets, "cut": 0})
    assert alert.verdict == "Subsets are below chance."
    assert alert.advice == "1 of 4, with their whole interval below one half: maths (30.0%)."


def test_only_grave_findings_of_an_audit_are_alerts():
    (alert,) = audit_alerts(AUDIT)
    assert alert.verdict == "In the data: pairs of equal prompts: 2."
    assert alert.advice == "The test is known. Take them out."


@pytest.mark.parametrize(("accuracy", "expected"), [(0.79, []), (0.86, ["A baseline without a model may do as well."])])
def test_the_best_baseline_of_the_training_data_is_one_that_a_model_has_to_exceed(accuracy, expected):
    baseline = {"accuracy": accuracy - 0.05, "accuracy_low": 0.5, "accuracy_high": 0.9}
    found = list(baseline_alerts(GOOD, {"style": dict.fromkeys(baseline, 0.5), "bag of words": baseline}))
    assert [each.verdict for each in found] == expected
    assert all("Of bag of words: 81.0%" in each.advice for each in found)
    assert list(baseline_alerts(GOOD, {})) == []


def test_alerts_of_one_verdict_are_one_and_the_gravest_come_first():
    found = [Alert("note", "A.", "1"), Alert("grave", "B.", "2"), Alert("note", "A.", "3")]
    assert merge_alerts(found) == [Alert("grave", "B.", "2"), Alert("note", "A.", "1\n3")]


def test_only_failed_probes_are_alerts():
    (alert,) = probe_alerts(PROBES)
    assert (alert.level, alert.verdict) == ("grave", "The model fails probes.")
    assert alert.advice == "padding repeat: the change flips 20% of the verdicts."


def test_a_comparison_that_decides_nothing_says_what_it_could_have_seen():
    (alert,) = comparison_alerts(COMPARISON)
    assert alert.verdict == "mine and theirs are not separable."
    assert alert.advice.endswith("could have been seen is 5.0%.")
    worse = COMPARISON | {"separable": True, "difference": -0.1, "notes": ["max_length: 512 and 1024."]}
    first, second = comparison_alerts(worse)
    assert (first.level, first.verdict) == ("grave", "mine is worse than theirs.")
    assert second.advice == "max_length: 512 and 1024."
    assert list(comparison_alerts(COMPARISON | {"separable": True, "difference": 0.1})) == []


def test_a_model_that_was_not_verified_is_told():
    assert list(run_alerts({})) == []
    assert list(run_alerts({"verification": {"status": "verified"}})) == []
    assert [each.level for each in run_alerts({"versions": {}})] == ["warning"]
    assert [each.level for each in run_alerts({"verification": {"status": "failed"}})] == ["grave"]
