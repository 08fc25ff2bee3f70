"""The paired difference of two models: its figures, its test beside scipy's, and simulations of known truths."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import permutation_test

from plaudit.evaluation.significance import adjust_for_several, paired_difference


def verdicts(counts):
    """Verdicts of a and b: `counts` of comparisons in which both, only a, only b and none is right."""
    return np.repeat([1.0, 1, 0, 0], counts), np.repeat([1.0, 0, 1, 0], counts)


def test_the_difference_is_that_of_the_accuracies():
    a, b = verdicts([60, 15, 5, 20])
    result = paired_difference(a, b, np.arange(100))
    assert (result.accuracy_a, result.accuracy_b) == (0.75, 0.65)
    assert result.difference == pytest.approx(0.10)
    assert (result.comparisons, result.prompts, result.tried) == (100, 100, 1)
    assert result.low < 0.10 < result.high


def test_independent_comparisons_have_mcnemar_s_exact_p_value():
    result = paired_difference(*verdicts([60, 15, 5, 20]), np.arange(100))
    tail = sum(math.comb(20, k) for k in range(6)) / 2**20
    assert result.test == "exact McNemar test"
    assert result.p_value == result.p_unadjusted == pytest.approx(2 * tail)


@pytest.mark.parametrize(
    "change",
    [{"prompts": np.arange(100) // 2}, {"weights": np.linspace(1, 2, 100)}, {"first": np.full(100, 0.5)}],
    ids=["two comparisons a prompt", "unequal weights", "equal rewards"],
)
def test_elsewhere_signs_of_whole_prompts_are_flipped_as_by_scipy(change):
    a, b = verdicts([60, 15, 5, 20])
    given = {"first": a, "second": b, "prompts": np.arange(100), "weights": np.ones(100)} | change
    result = paired_difference(**given)
    assert result.test == "sign-flip permutation test by prompt"
    moved = np.bincount(given["prompts"], given["weights"] * (given["first"] - given["second"]))
    theirs = permutation_test((moved,), np.sum, permutation_type="samples", n_resamples=9999, batch=500, rng=1)
    assert result.p_value == pytest.approx(theirs.pvalue, abs=0.015)


def test_weights_count_as_repeated_prompts():
    a, b = verdicts([60, 15, 5, 20])
    weighted = paired_difference(a, b, np.arange(100), np.where(a > b, 2.0, 1.0))
    assert weighted.difference == pytest.approx((30 - 5) / 115)


def test_the_smallest_detectable_difference_is_found_in_four_of_five_samples():
    """2.80 standard errors: 15 of 100 comparisons in favour of a, and 5 in favour of b."""
    result = paired_difference(*verdicts([60, 15, 5, 20]), np.arange(100))
    assert result.smallest_detectable == pytest.approx(2.8016 * math.sqrt((0.20 - 0.10**2) / 99), rel=1e-4)
    generator, found = np.random.default_rng(0), 0
    a, b = verdicts([600, 150 + 60, 150 - 60, 100])  # the truth: 12 points
    detectable = paired_difference(a, b, np.arange(1000)).smallest_detectable * math.sqrt(1000 / 200)
    assert detectable == pytest.approx(0.12, abs=0.015)
    for _ in range(200):
        drawn = generator.integers(1000, size=200)
        found += paired_difference(a[drawn], b[drawn], np.arange(200)).separable
    assert 0.70 <= found / 200 <= 0.95


def test_models_that_agree_everywhere_have_an_interval_of_some_width():
    right = np.repeat([1.0, 0.0], [70, 30])
    result = paired_difference(right, right, np.arange(100))
    assert (result.difference, result.p_value, result.separable) == (0, 1, False)
    assert -result.low == result.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert result.smallest_detectable == pytest.approx(0.06)  # six prompts: 2 / 2**6 < 0.05


def test_five_prompts_can_show_nothing():
    result = paired_difference(np.ones(50), np.zeros(50), np.arange(50) // 10)
    assert result.smallest_detectable == math.inf
    assert not result.separable
    assert result.to_dict()["smallest_detectable"] is None


def test_the_order_of_the_comparisons_changes_nothing():
    a, b = verdicts([60, 15, 5, 20])
    prompts, order = np.arange(100) // 3, np.random.default_rng(0).permutation(100)
    assert paired_difference(a, b, prompts) == paired_difference(a[order], b[order], prompts[order])


def test_swapped_models_have_the_opposite_difference():
    a, b = verdicts([60, 15, 5, 20])
    one, two = paired_difference(a, b, np.arange(100) // 2), paired_difference(b, a, np.arange(100) // 2)
    assert one.difference == -two.difference
    assert one.p_value == two.p_value
    assert one.smallest_detectable == two.smallest_detectable


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [([0.01, 0.04, 0.03, 0.5], [0.04, 0.09, 0.09, 0.5]), ([0.9, 0.8], [1, 1]), ([0.2, 0.2], [0.4, 0.4]), ([], [])],
)
def test_holm_multiplies_by_the_number_of_tests_that_are_left(p_values, adjusted):
    alone = paired_difference(*verdicts([60, 16, 5, 19]), np.arange(100))
    together = adjust_for_several([replace(alone, p_unadjusted=each) for each in p_values])
    assert [each.p_value for each in together] == pytest.approx(adjusted)
    assert [each.p_unadjusted for each in together] == p_values


def test_several_results_are_separable_by_their_adjusted_p_values():
    alone = paired_difference(*verdicts([60, 16, 5, 19]), np.arange(100))
    assert alone.separable
    assert alone.p_value == pytest.approx(0.0266, abs=1e-4)
    together = adjust_for_several([alone, alone, alone])
    assert [each.p_value for each in together] == pytest.approx([3 * alone.p_value] * 3)
    assert {each.tried for each in together} == {3}
    assert not any(each.separable for each in together)


def draw(generator, prompts, most, accuracies, shared):
    """Verdicts of two models whose margins have `shared` variance in common, and 0.4 of it within a prompt."""
    of = np.repeat(np.arange(prompts), generator.integers(1, most + 1, size=prompts))

    def noise():
        return math.sqrt(0.4) * generator.normal(size=prompts)[of] + math.sqrt(0.6) * generator.normal(size=len(of))

    common, thresholds = noise(), {0.75: 0.6745, 0.70: 0.5244}
    margins = [math.sqrt(shared) * common + math.sqrt(1 - shared) * noise() + thresholds[each] for each in accuracies]
    return *((margin > 0).astype(float) for margin in margins), of


@pytest.mark.parametrize("most", [1, 20])
def test_noise_is_called_separable_in_about_one_of_twenty_at_most(most):
    """benchmarks/compare_simulations.py does this 500 times; here chance alone exceeds the bound in one of 1,000."""
    generator = np.random.default_rng(0)
    results = [paired_difference(*draw(generator, 200, most, (0.75, 0.75), 0.9), flips=999) for _ in range(100)]
    assert sum(each.separable for each in results) <= 12


def test_a_difference_of_five_points_at_3000_pairs_is_found():
    generator = np.random.default_rng(0)
    results = [paired_difference(*draw(generator, 3000, 1, (0.75, 0.70), 0.5)) for _ in range(25)]
    assert sum(each.separable for each in results) >= 23


@pytest.mark.parametrize("most", [1, 5, 20])
def test_intervals_hold_the_true_difference(most):
    generator = np.random.default_rng(most)
    results = [paired_difference(*draw(generator, 200, most, (0.75, 0.70), 0.5), flips=99) for _ in range(100)]
    assert 88 <= sum(each.low <= 0.05 <= each.high for each in results) <= 100
