"""The figures of an uncertainty: found where the spread tells errors, not praised where it tells nothing new."""

from dataclasses import replace

import numpy as np
import pytest
from ensemble_data import ensemble_scores, ensemble_world

from plaudit.evaluation.scores import ScoredRow, Scores
from plaudit.evaluation.uncertainty_figures import adjusted_auroc, rank_among_equals, uncertainty_figures
from plaudit.metrics import accuracy
from plaudit.uncertainty import MemberUncertainty


def adjusted(differences):
    mean, spread = differences.mean(1), differences.std(1, ddof=1)
    return adjusted_auroc(mean < 0, spread, np.abs(mean), np.arange(len(mean)))


def test_a_spread_that_tells_errors_is_found():
    figures = uncertainty_figures(ensemble_scores("told", 1500, seed=3))
    assert figures.earns_its_place is True
    assert 0.5 < figures.adjusted_auroc_low < figures.adjusted_auroc < figures.adjusted_auroc_high
    assert figures.verdict.startswith("The uncertainty earns its place: of a wrong and a right comparison with about")
    assert figures.log_loss_with_spread < figures.log_loss
    assert figures.margin_auroc > figures.spread_auroc > 0.5


@pytest.mark.parametrize("kind", ["noise", "follows"])
def test_a_spread_that_tells_nothing_new_is_praised_in_at_most_one_case_in_twenty(kind):
    praised = [adjusted(ensemble_world(kind, 600, seed=seed))[1] > 0.5 for seed in range(60)]
    assert sum(praised) <= 3


def test_a_lower_log_loss_alone_does_not_praise_a_spread_that_follows_the_difference():
    figures = uncertainty_figures(ensemble_scores("follows", 3000))
    assert figures.log_loss_with_spread < figures.log_loss - 0.01  # the spread makes up for the shape of the sigmoid
    assert figures.earns_its_place is False
    assert "does not earn its place" in figures.verdict


@pytest.mark.parametrize("direction", [1, -1])
def test_a_spread_that_is_a_function_of_the_difference_adds_nothing(direction):
    size = np.random.default_rng(0).uniform(0, 3, 600)
    ranks = rank_among_equals(np.exp(direction * size), size)
    assert ranks == pytest.approx(0.5, abs=1e-9)


def test_ranks_are_those_among_neighbours_of_the_difference_and_weigh_them():
    spread, size = np.arange(21.0), np.array([*range(10), 10.5, *range(11, 21)], dtype=float)
    spread[10] = 100  # the greatest of itself and two neighbours on either side
    ranks = rank_among_equals(spread, size)
    assert ranks[10] == (4 + 0.5) / 5
    assert rank_among_equals(spread, size, np.where(np.arange(21) == 11, 3.0, 1.0))[10] == (3 + 3 + 0.5) / 7
    assert ranks[[0, -1]] == pytest.approx(0.5)  # those at the ends have no neighbours on both sides
    assert rank_among_equals(np.ones(50), np.arange(50.0)) == pytest.approx(0.5)


def test_equal_rewards_are_half_wrong_and_labels_of_one_half_do_not_enter():
    scores = ensemble_scores("told", 300)
    zero = ScoredRow(300, [0.0, 0.0], members=[[1.0] * 5, [0.0] * 5])
    undecided = replace(scores.rows[0], row=301, label=0.5)
    figures = uncertainty_figures(Scores(scores.header, [*scores.rows, zero, undecided]))
    assert figures.coverage[-1]["spread"] == pytest.approx(
        accuracy(scores.margins, np.zeros(300)) * 300 / 301 + 0.5 / 301
    )
    assert sum(each["comparisons"] for each in figures.spread_bins) == 301


def test_a_row_counts_by_its_weight():
    scores = ensemble_scores("told", 400)
    weighted = Scores(scores.header, [replace(row, weight=1.0 + row.row % 2) for row in scores.rows])
    twice = [replace(row, row=400 + row.row, prompt_key=row.row) for row in scores.rows if row.row % 2]
    keyed = [replace(row, prompt_key=row.row) for row in scores.rows]
    doubled = Scores(scores.header, keyed + twice)
    one, two = uncertainty_figures(weighted), uncertainty_figures(doubled)
    assert one.spread_auroc == pytest.approx(two.spread_auroc)
    assert one.margin_auroc == pytest.approx(two.margin_auroc)
    assert np.array(one.error_correlations) == pytest.approx(np.array(two.error_correlations))
    assert one.coverage[-1]["spread"] == pytest.approx(two.coverage[-1]["spread"])


def test_a_shift_and_a_scale_of_one_member_change_nothing():
    scores = ensemble_scores("told", 400)
    moved = [
        replace(row, members=[[10 + 3 * each[0], *each[1:]] for each in row.members]) for row in scores.rows
    ]  # fmt: skip
    constants = MemberUncertainty((10.0, 0.0, 0.0, 0.0, 0.0), (3.0, 1.0, 1.0, 1.0, 1.0), 1.0)
    again = uncertainty_figures(Scores({"uncertainty": constants.to_dict()}, moved)).to_dict()
    for name, value in uncertainty_figures(scores).to_dict().items():
        if isinstance(value, float):
            assert again[name] == pytest.approx(value, rel=1e-6), name


def test_comparisons_of_one_prompt_are_dependent():
    scores = ensemble_scores("told", 600)
    grouped = Scores(scores.header, [replace(row, prompt_key=row.row % 60) for row in scores.rows for _ in range(1)])
    repeated = [replace(row, row=row.row + 600 * n, prompt_key=row.row) for n in range(4) for row in scores.rows]
    alone, four_times = uncertainty_figures(scores), uncertainty_figures(Scores(scores.header, repeated))
    widths = [each.adjusted_auroc_high - each.adjusted_auroc_low for each in (alone, four_times)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)  # copies are no further evidence
    assert uncertainty_figures(grouped).adjusted_auroc == alone.adjusted_auroc


def test_members_that_make_the_same_errors_are_one_model():
    alike = uncertainty_figures(ensemble_scores("alike", 400))
    assert alike.members_are_alike
    assert alike.error_correlation > 0.99
    assert not uncertainty_figures(ensemble_scores("noise", 400)).members_are_alike


def test_with_few_errors_nothing_is_fitted_and_the_verdict_is_open():
    scores = ensemble_scores("told", 400)
    right = [row for row in scores.rows if row.rewards[0] > 0]
    wrong = [row for row in scores.rows if row.rewards[0] < 0][:9]
    for rows in (right + wrong, right):
        figures = uncertainty_figures(Scores(scores.header, rows))
        assert figures.earns_its_place is None
        assert figures.verdict.startswith("Cannot tell: fewer than 10 prompts")
        assert np.isnan([figures.log_loss, figures.adjusted_auroc_low]).all()
        assert figures.reliability == []


def test_labels_of_one_half_alone_have_no_error():
    figures = uncertainty_figures(ensemble_scores("told", 50, label=0.5))
    assert figures.earns_its_place is None
    assert (figures.coverage, figures.spread_bins) == ([], [])
    assert np.isfinite(figures.error_correlation)


def test_many_members_have_a_mean_correlation_without_a_matrix():
    figures = uncertainty_figures(ensemble_scores("alike", 400, members=16))
    assert figures.error_correlations == []  # too many for a picture
    assert figures.members == 16


def test_a_model_without_members_has_no_such_figures():
    assert uncertainty_figures(Scores({"model": "single"}, [ScoredRow(0, [1.0, 0.0])])) is None
