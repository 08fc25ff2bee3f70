"""The numbers of the charts."""

from itertools import pairwise

import numpy as np
import pytest

from plaudit.evaluation.chart_numbers import length_deciles, margin_bins, reward_bins, reward_length_cells
from plaudit.metrics import accuracy, accuracy_interval_by_prompt


@pytest.fixture
def draws():
    return np.random.default_rng(0)


def test_margins_right_of_zero_are_those_that_are_right(draws):
    margins, weights = draws.normal(0.5, 1, 700), draws.uniform(0.5, 2, 700)
    margins[:30] = 0
    bins = margin_bins(margins, weights)
    right = sum(each["share"] for each in bins if each["low"] >= 0)
    assert right == pytest.approx(accuracy(margins, np.zeros(700), weights))
    assert sum(each["share"] for each in bins) == pytest.approx(1)
    assert all(each["low"] >= 0 or each["high"] <= 0 for each in bins)


def test_one_far_margin_does_not_squeeze_the_others(draws):
    bins = margin_bins(np.append(draws.normal(size=999), 1000))
    assert bins[-1]["high"] < 4


@pytest.mark.parametrize("margins", [[0.0], [0.0, 0.0], [5.0], [-1.0] * 40])
def test_margins_that_are_few_or_equal_have_bins(margins):
    assert sum(each["share"] for each in margin_bins(margins)) == pytest.approx(1)


def test_ten_groups_of_length_differences_hold_each_comparison_once(draws):
    differences, longer = draws.normal(size=1000), draws.integers(-300, 300, 1000)
    groups = length_deciles(differences, longer)
    assert len(groups) == 10
    assert sum(each["comparisons"] for each in groups) == 1000
    assert all(one["longest"] < other["shortest"] for one, other in pairwise(groups))
    first = longer <= groups[0]["longest"]
    columns = differences[first], np.zeros(first.sum())
    assert groups[0]["accuracy"] == accuracy(*columns)
    interval = groups[0]["accuracy_low"], groups[0]["accuracy_high"]
    assert interval == accuracy_interval_by_prompt(*columns, np.arange(first.sum()))


def test_equal_lengths_are_one_group():
    (group,) = length_deciles(np.ones(100), np.zeros(100))
    assert (group["shortest"], group["longest"], group["comparisons"]) == (0, 0, 100)


def test_rewards_share_their_bins(draws):
    bins = reward_bins({"now": draws.normal(size=300), "before": draws.normal(3, 1, 200)})
    for name in ("now", "before"):
        assert sum(each[name] for each in bins) == pytest.approx(1)


def test_cells_hold_each_response_once_and_none_is_empty(draws):
    rewards, lengths = draws.normal(size=500), draws.integers(1, 4000, 500)
    cells = reward_length_cells(rewards, lengths)
    assert sum(each["responses"] for each in cells) == 500
    assert all(each["responses"] > 0 for each in cells)
    assert min(each["shortest"] for each in cells) == pytest.approx(lengths.min())
