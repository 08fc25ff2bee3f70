"""Log loss, calibration and temperature: worked by hand, and what must not change them."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit import calibration
from plaudit.calibration import best_temperature, calibration_bins, calibration_error, log_loss

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
COMPARISONS = st.lists(
    st.tuples(st.integers(-8, 8).map(lambda n: n / 2), st.integers(0, 4).map(lambda n: n / 4), st.integers(1, 4)),
    min_size=1,
    max_size=60,
)


def many(seed=0, size=400):
    """Differences, soft labels and weights without a pattern."""
    draw = np.random.default_rng(seed)
    return draw.normal(0.5, 2, size), draw.uniform(0, 1, size), draw.uniform(0.1, 3, size)


def test_the_examples_of_the_docstrings_hold():
    assert all(">>>" in getattr(calibration, name).__doc__ for name in calibration.__all__)
    assert doctest.testmod(calibration).failed == 0


# Log loss


def test_log_loss_is_that_worked_by_hand():
    # p = 3/4 and q = 1; p = 1/4 and q = 1; p = 3/4 and q = 1/2
    each = [-math.log(3 / 4), -math.log(1 / 4), -(math.log(3 / 4) + math.log(1 / 4)) / 2]
    assert log_loss([LOG3, -LOG3, LOG3], [1, 1, 0.5]) == pytest.approx(sum(each) / 3)
    assert log_loss([LOG3, -LOG3], weights=[3, 1]) == pytest.approx((3 * each[0] + each[1]) / 4)
    assert log_loss([2 * LOG3], temperature=2) == pytest.approx(each[0])


def test_log_loss_at_the_ends_of_the_temperature():
    assert log_loss([3.0, -1.0], temperature=math.inf) == pytest.approx(math.log(2))
    assert log_loss([3.0, 0.0], temperature=0.0) == pytest.approx(math.log(2) / 2)  # right for sure, and undecided
    assert log_loss([2000.0, 1e300]) == 0.0
    assert log_loss([-2000.0]) == 2000.0


# Calibration


def test_calibration_bins_are_those_worked_by_hand():
    # Sorted by confidence: 20 undecided, then 20 at 3/4 of which 12 are right. Two bins of 20.
    differences = [0.0] * 20 + [LOG3] * 12 + [-LOG3] * 8
    bins = calibration_bins(differences)
    np.testing.assert_allclose(bins, [[0.5, 0.5, 0.5], [0.75, 0.6, 0.5]])
    assert calibration_error(differences) == pytest.approx(0.15 / 2)


def test_bins_hold_equal_weight_and_equal_confidences_stay_together():
    differences = np.log(np.repeat([1.5, 2.0, 3.0, 4.0], [10, 10, 10, 30]))
    bins = calibration_bins(differences, bins=2)
    assert bins[:, 2].tolist() == [0.5, 0.5]
    heavy = calibration_bins(differences, weights=np.repeat([3.0, 1, 1, 1], [10, 10, 10, 30]), bins=2)
    assert heavy[:, 2].tolist() == [0.5, 0.5]  # 30 + 10 of 80, then 10 + 30
    assert heavy[:, 0] == pytest.approx([(3 * 0.6 + 2 / 3) / 4, (0.75 + 3 * 0.8) / 4])
    one = calibration_bins([1.0] * 100)
    assert one.shape == (1, 3)


def test_equal_confidences_go_where_most_of_them_belong_and_bins_count_by_weight():
    differences = np.repeat([math.log(1.5), LOG3, math.log(9)], [10, 21, 9])  # the 21 straddle the middle of 40
    np.testing.assert_allclose(calibration_bins(differences), [[0.6, 1, 0.25], [(21 * 0.75 + 9 * 0.9) / 30, 1, 0.75]])
    assert calibration_error(differences) == pytest.approx((10 * 0.4 + 21 * 0.25 + 9 * 0.1) / 40)


def test_few_comparisons_make_few_bins():
    assert [len(calibration_bins(np.arange(1, n + 1) / n)) for n in (1, 39, 40, 199, 200, 1000)] == [1, 1, 2, 9, 10, 10]


def test_a_model_that_is_right_as_often_as_it_says_has_no_error():
    differences = np.repeat([LOG3, -LOG3, math.log(9), -math.log(9)], [75, 25, 90, 10])
    assert calibration_error(differences) == pytest.approx(0, abs=1e-12)
    assert best_temperature(differences) == pytest.approx(1)
    assert calibration_error([0.0] * 50) == 0.0


def test_soft_labels_count_as_shares():
    assert calibration_error([LOG3] * 40, [0.75] * 40) == pytest.approx(0)
    assert best_temperature([LOG3] * 4, [0.75] * 4) == pytest.approx(1)
    assert best_temperature([LOG3], [0.9]) == pytest.approx(0.5)  # sigmoid(2 log 3) = 0.9


# Temperature


def test_the_temperature_is_that_worked_by_hand():
    # Three right and one wrong by 1: sigmoid(1 / T) = 3/4
    assert best_temperature([1, 1, 1, -1]) == pytest.approx(1 / LOG3)
    assert best_temperature([1, -1], weights=[3, 1]) == pytest.approx(1 / LOG3)


@pytest.mark.parametrize(
    ("differences", "temperature"),
    [
        ([1, 2, 3], 0.0),
        ([1, 0], 0.0),
        ([-1, -2], math.inf),
        ([1, -1], math.inf),
        ([0, 0], math.inf),
        ([1, 1, -3], math.inf),  # right more often, but wrong by more
    ],
)
def test_where_no_temperature_is_best_it_is_an_end(differences, temperature):
    assert best_temperature(differences) == temperature


def test_extreme_rewards_have_a_temperature_all_the_same():
    assert best_temperature([1e30, 1e30, 1e30, -1e30]) == pytest.approx(1e30 / LOG3)
    assert best_temperature([1e-30, 1e-30, 1e-30, -1e-30]) == pytest.approx(1e-30 / LOG3)
    tiny = best_temperature([1.0] * 10 + [-1e-6])  # hardly wrong at all
    assert 0 < tiny < 0.1


@settings(deadline=None)
@given(COMPARISONS)
def test_no_other_temperature_has_a_lower_loss(comparisons):
    d, q, w = zip(*comparisons, strict=True)
    best = best_temperature(d, q, w)
    least = log_loss(d, q, w, temperature=best)
    for other in (0.01, 0.1, 0.5, 0.9, 1, 1.1, 2, 10, 100, math.inf, best * 1.01, best / 1.01):
        if other > 0:
            assert least <= log_loss(d, q, w, temperature=other) + 1e-9


# What must not change them


def test_doubling_rewards_doubles_the_temperature_and_leaves_the_loss_there():
    d, _, w = many()
    once, twice = best_temperature(d, weights=w), best_temperature(2 * d, weights=w)
    assert 0.1 < once < 100
    assert twice == pytest.approx(2 * once, rel=1e-9)
    assert log_loss(2 * d, weights=w, temperature=twice) == pytest.approx(log_loss(d, weights=w, temperature=once))


def test_it_does_not_matter_which_response_is_called_the_first():
    d, q, w = many()
    turned = np.random.default_rng(1).random(len(d)) < 0.5
    swapped, label = np.where(turned, -d, d), np.where(turned, 1 - q, q)
    for function in (log_loss, calibration_error, best_temperature):
        assert function(swapped, label, w) == pytest.approx(function(d, q, w), rel=1e-9)


def test_a_comparison_of_weight_two_is_two():
    d, q, _ = many(size=60)
    w = np.random.default_rng(0).integers(1, 3, len(d))
    for function in (log_loss, best_temperature):
        assert function(d, q, w) == pytest.approx(function(np.repeat(d, w), np.repeat(q, w)), rel=1e-9)


@settings(deadline=None)
@given(COMPARISONS, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(comparisons, random):
    shuffled = list(comparisons)
    random.shuffle(shuffled)
    (d, q, w), (d2, q2, w2) = zip(*comparisons, strict=True), zip(*shuffled, strict=True)
    assert log_loss(d2, q2, w2) == pytest.approx(log_loss(d, q, w))
    np.testing.assert_allclose(calibration_bins(d2, q2, w2), calibration_bins(d, q, w))


@pytest.mark.parametrize("wrong", [([], None, None), ([1.0], [1.0, 0.5], None), ([[1.0]], None, None)])
def test_columns_that_are_empty_or_do_not_fit_are_refused(wrong):
    for function in (log_loss, calibration_bins, best_temperature):
        with pytest.raises(ValueError, match="expected one-dimensional arrays of one length"):
            function(*wrong)
