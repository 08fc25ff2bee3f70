import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plaudit import metrics
from plaudit.metrics import (
    accuracy,
    accuracy_interval_by_prompt,
    difference_correlation,
    mean_interval_by_prompt,
    preference_metrics,
    rank_correlation,
    wilson_interval,
)

CHOSEN, REJECTED = [2.0, 0.5, -1.0, 4.0], [1.0, 0.5, 3.0, -2.0]  # right, tied, wrong, right
REWARDS = st.lists(st.tuples(*[st.integers(-5, 5).map(float)] * 2), min_size=1, max_size=30)


def test_metrics_are_those_worked_by_hand():
    assert preference_metrics(CHOSEN, REJECTED) == {
        "accuracy": 2.5 / 4,
        "reward_ties": 1.0,
        "margin": (1 + 0 - 4 + 6) / 4,
        "mean_reward": 8 / 8,
        "min_reward": -2.0,
        "max_reward": 4.0,
        "chosen_reward": 5.5 / 4,
        "min_chosen_reward": -1.0,
        "max_chosen_reward": 4.0,
        "rejected_reward": 2.5 / 4,
        "min_rejected_reward": -2.0,
        "max_rejected_reward": 3.0,
    }


def test_the_examples_of_the_docstrings_hold():
    assert all(">>>" in getattr(metrics, name).__doc__ for name in metrics.__all__)
    assert doctest.testmod(metrics).failed == 0


def test_a_label_below_one_half_makes_the_second_response_the_better_one():
    # the first is better at 0.5 to 0.25, the second is better at 3 to -1
    assert preference_metrics([0.5, -1.0], [0.25, 3.0], labels=[0.9, 0.4]) == preference_metrics([0.5, 3.0], [0.25, -1])


def test_a_tie_enters_no_figure():
    with_tie = preference_metrics([*CHOSEN, 100.0], [*REJECTED, -100.0], labels=[1, 1, 1, 1, 0.5])
    assert with_tie == preference_metrics(CHOSEN, REJECTED)


def test_a_comparison_of_weight_zero_enters_no_figure():
    weighted = preference_metrics([*CHOSEN, 7.0], [*REJECTED, 7.0], weights=[1, 1, 1, 1, 0], prompts=[0, 1, 2, 3, 4])
    assert weighted == preference_metrics(CHOSEN, REJECTED, prompts=[0, 1, 2, 3])


def test_ties_alone_have_no_figures():
    assert preference_metrics([1.0, 2.0], [3.0, 1.0], labels=[0.5, 0.5], prompts=[1, 1]) == {}


def test_means_count_by_weight_and_extremes_and_equal_rewards_do_not():
    weighted = preference_metrics(CHOSEN, REJECTED, weights=[4, 2, 3, 1])
    means = {
        "accuracy": (4 + 1 + 0 + 1) / 10,
        "margin": (4 * 1 + 2 * 0 - 3 * 4 + 1 * 6) / 10,
        "chosen_reward": (4 * 2 + 2 * 0.5 - 3 * 1 + 1 * 4) / 10,
        "rejected_reward": (4 * 1 + 2 * 0.5 + 3 * 3 - 1 * 2) / 10,
        "mean_reward": (10 + 12) / 20,
    }
    assert weighted == pytest.approx(preference_metrics(CHOSEN, REJECTED) | means)


def test_a_group_whose_comparisons_share_its_weight_counts_as_one_pair():
    # Three responses of which two comparisons are right, and a pair that is wrong: one row each.
    metrics = preference_metrics([3, 3, 1, 0], [2, 1, 2, 1], weights=[1 / 3, 1 / 3, 1 / 3, 1])
    assert metrics["accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["margin"] == pytest.approx(((1 + 2 - 1) / 3 - 1) / 2)


def test_prompts_give_accuracy_the_interval_of_its_prompts():
    prompts, weights = [2**62, 2**62 + 1, 2**62 + 1, 5], [1, 2, 1, 1]  # keys that a float cannot tell apart
    metrics = preference_metrics(CHOSEN, REJECTED, weights=weights, prompts=prompts)
    interval = accuracy_interval_by_prompt(CHOSEN, REJECTED, [1, 2, 2, 0], weights)
    assert (metrics.pop("accuracy_low"), metrics.pop("accuracy_high")) == interval
    assert metrics == preference_metrics(CHOSEN, REJECTED, weights=weights)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"labels": [1, 1, 1, 1.5]}, "expected labels from 0 to 1, got 1.5 at 3"),
        ({"labels": [1, float("nan"), 1, 1]}, "expected labels from 0 to 1, got nan at 1"),
        ({"weights": [1, -1, 1, 1]}, "expected weights from 0 to inf, got -1.0 at 1"),
        ({"weights": [1, 1]}, "expected one-dimensional arrays of one length"),
        ({"prompts": [1, 1]}, "expected the prompts of 4 comparisons, got an array of shape \\(2,\\)"),
    ],
)
def test_a_column_that_does_not_fit_is_named(column, message):
    with pytest.raises(ValueError, match=message):
        preference_metrics(CHOSEN, REJECTED, **column)


def test_accuracy_counts_weights():
    assert accuracy(CHOSEN, REJECTED, [4, 2, 3, 1]) == pytest.approx((4 + 1 + 0 + 1) / 10)


def test_a_model_that_cannot_tell_is_a_coin():
    assert accuracy([1.0] * 7, [1.0] * 7) == 0.5


@settings(deadline=None)
@given(REWARDS)
def test_swapping_chosen_and_rejected_turns_accuracy_and_margin_round(pairs):
    chosen, rejected = zip(*pairs, strict=True)
    forward, swapped = preference_metrics(chosen, rejected), preference_metrics(rejected, chosen)
    assert swapped["accuracy"] == pytest.approx(1 - forward["accuracy"])
    assert swapped["margin"] == -forward["margin"]
    assert swapped["chosen_reward"] == forward["rejected_reward"]
    for name in ("reward_ties", "mean_reward", "min_reward", "max_reward"):
        assert swapped[name] == forward[name]


def test_all_metrics_are_plain_floats():
    assert {type(value) for value in preference_metrics(np.float32(CHOSEN), np.float32(REJECTED)).values()} == {float}


@pytest.mark.parametrize(("chosen", "rejected"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[2.0]])])
def test_columns_that_are_empty_or_of_different_shapes_are_refused(chosen, rejected):
    for function in (preference_metrics, accuracy, rank_correlation):
        with pytest.raises(ValueError, match="expected one-dimensional arrays of one length"):
            function(chosen, rejected)


@pytest.mark.parametrize(
    ("share", "comparisons", "low", "high"),
    [
        # A. Agresti and B. Coull, The American Statistician 52 (1998): 0 of 10 gives (0, 0.278).
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        # 81 of 263 (R. Newcombe, Statistics in Medicine 17, 1998, table I, method 3): (0.2553, 0.3662)
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(share, comparisons, low, high):
    assert wilson_interval(share, comparisons) == pytest.approx((low, high), abs=5e-5)  # printed to four digits


@settings(deadline=None)
@given(st.integers(1, 1000), st.floats(0, 1))
def test_wilsons_interval_lies_in_the_unit_interval_around_the_share(comparisons, share):
    low, high = wilson_interval(share, comparisons)
    assert -1e-12 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1 + 1e-12
    wide = wilson_interval(share, comparisons, z=3.0)
    assert wide[0] <= low + 1e-12
    assert wide[1] >= high - 1e-12


def test_an_interval_needs_a_comparison():
    with pytest.raises(ValueError, match="at least one comparison, got 0"):
        wilson_interval(0.5, 0)


def test_one_comparison_for_each_prompt_has_wilsons_interval():
    chosen, rejected = [1.0] * 81 + [0.0] * 182, [0.5] * 263
    by_prompt = accuracy_interval_by_prompt(chosen, rejected, range(263))
    assert by_prompt == wilson_interval(81 / 263, 263)
    assert by_prompt == accuracy_interval_by_prompt(chosen, rejected, range(263), [0.25] * 263)


def test_equal_accuracies_of_all_prompts_have_wilsons_interval_of_the_prompts():
    prompts = [0, 0, 1, 1, 2, 2]
    assert accuracy_interval_by_prompt([1] * 6, [0] * 6, prompts) == wilson_interval(1.0, 3)
    assert accuracy_interval_by_prompt([1, 0] * 3, [0, 1] * 3, prompts) == wilson_interval(0.5, 3)


def test_the_bootstrap_has_the_quantiles_of_two_prompts():
    # Two prompts, one right in 3 of 3 and one wrong in 1: draws of two give 1 (1/4), 3/4 (1/2) and 0 (1/4).
    assert accuracy_interval_by_prompt([1, 1, 1, 0], [0, 0, 0, 1], [7, 7, 7, 3]) == (0.0, 1.0)


def test_the_bootstrap_has_the_width_of_its_prompts():
    """Ten copies of each comparison say nothing new: the standard error stays that of the prompts."""
    draw = np.random.default_rng(3)
    right = draw.random(400) < 0.7
    prompts = np.repeat(np.arange(400), 10)
    low, high = accuracy_interval_by_prompt(np.repeat(right, 10), np.full(4000, 0.5), prompts[::-1])
    error = math.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert right.mean() - low == pytest.approx(1.96 * error, rel=0.1)  # 2000 draws: a quantile is right to some percent
    assert high - right.mean() == pytest.approx(1.96 * error, rel=0.1)


@pytest.mark.parametrize("prompts", [10, 20, 400])
def test_the_interval_of_few_prompts_has_the_width_of_students(prompts):
    values = np.random.default_rng(prompts).normal(0, 1, prompts)
    low, high = mean_interval_by_prompt(values, np.arange(prompts), resamples=20_000)
    student = stats.t.interval(0.95, prompts - 1, values.mean(), values.std(ddof=1) / math.sqrt(prompts))
    assert high - low == pytest.approx(student[1] - student[0], rel=0.05)


def test_the_mean_of_a_prompt_counts_by_its_weights():
    interval = mean_interval_by_prompt([0.0, 4.0, 2.0], [1, 1, 2], [3.0, 1.0, 1.0])
    assert interval == pytest.approx((1.0, 2.0))


def test_the_bootstrap_resamples_weights_with_their_comparisons():
    """Where each prompt has one weighted comparison, the variance is that of a ratio: sum w^2 (x - mean)^2 / W^2."""
    draw = np.random.default_rng(5)
    right, weights = (draw.random(500) < 0.6).astype(float), draw.uniform(0, 4, 500)
    mean = accuracy(right, [0.5] * 500, weights)
    low, high = accuracy_interval_by_prompt(right, [0.5] * 500, range(500), weights)
    error = math.sqrt((weights**2 * (right - mean) ** 2).sum()) / weights.sum()
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_bootstrap_is_the_beginning_of_one_with_more_samples():
    random = np.random.default_rng(0)
    values, prompts, weights = random.normal(size=(2, 6000)), random.integers(3000, size=6000), random.random(6000)
    few, many = (metrics.resampled_means(values, prompts, weights, resamples=number) for number in (30, 100))
    np.testing.assert_allclose(few, many[:30], rtol=1e-12)


def test_the_interval_is_the_same_again_in_another_order():
    draw = np.random.default_rng(0)
    chosen, prompts, weights = draw.normal(size=300), draw.integers(0, 60, 300), draw.uniform(0.5, 2, 300)
    first = accuracy_interval_by_prompt(chosen, np.zeros(300), prompts, weights)
    order = draw.permutation(300)
    again = accuracy_interval_by_prompt(chosen[order], np.zeros(300), prompts[order], weights[order])
    assert again == pytest.approx(first)


# Correlation


def test_rank_correlation_shares_the_ranks_of_equals():
    # ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5 (each times 4) -> 4.5 / sqrt(22.5)
    assert rank_correlation([1, 5, 5, 9], [10, 30, 20, 40]) == pytest.approx(4.5 / 22.5**0.5)


@settings(deadline=None)
@given(st.lists(st.integers(-100, 100), min_size=2, max_size=20, unique=True))
def test_rank_correlation_sees_the_order_only(values):
    assert rank_correlation(values, np.exp(np.array(values) / 50)) == pytest.approx(1.0)
    assert rank_correlation(values, [-value for value in values]) == pytest.approx(-1.0)


def test_a_constant_has_no_rank_correlation():
    with pytest.raises(ValueError, match="a constant"):
        rank_correlation([1, 1, 1], [1, 2, 3])


def test_the_correlation_of_differences_is_that_worked_by_hand():
    # 1, 2, -1, -2 against 2, 1, -2, -1: ranks 3 4 2 1 and 4 3 1 2, squared distances 4, so 1 - 6 * 4 / (4 * 15)
    assert difference_correlation([1, 2], [2, 1]) == pytest.approx(0.6)
    assert difference_correlation([-1, -2], [2, 1]) == pytest.approx(-0.6)
    assert math.isnan(difference_correlation([0, 0], [1, 2]))
    assert math.isnan(difference_correlation([1, 2], [0, 0]))


def test_the_order_of_responses_and_of_comparisons_does_not_change_the_correlation_of_differences():
    draw = np.random.default_rng(0)
    one, other, swapped, order = draw.normal(size=90), draw.normal(size=90), draw.random(90) < 0.5, draw.permutation(90)
    correlation = difference_correlation(one, other)
    assert difference_correlation(one[order], other[order]) == pytest.approx(correlation)
    turned = [np.where(swapped, -values, values) for values in (one, other)]
    assert difference_correlation(*turned) == pytest.approx(correlation)
