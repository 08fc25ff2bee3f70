"""Best-of-n curves beside a count over all subsets."""

import json
import math
from itertools import combinations

import numpy as np
import pytest

from plaudit.errors import DataError
from plaudit.evaluation.best_of_n import best_of_n, expected_best


def by_counting(proxy, gold, n):
    """The mean over all subsets of n; equal proxies share the choice evenly."""
    means = []
    for subset in combinations(range(len(proxy)), n):
        top = max(proxy[place] for place in subset)
        means.append(np.mean([gold[place] for place in subset if proxy[place] == top]))
    return np.mean(means)


@pytest.mark.parametrize("distinct", [2, 3, 1000])
def test_every_subset_counts_the_same_with_ties_and_without(distinct):
    draw = np.random.default_rng(distinct)
    for _ in range(5):
        proxy, gold = draw.integers(distinct, size=8), draw.normal(size=8)
        expected = [by_counting(proxy, gold, n) for n in range(1, 9)]
        assert expected_best(proxy, gold, range(1, 9)) == pytest.approx(expected, abs=1e-10)


def test_thousands_of_responses_neither_overflow_nor_lose_digits():
    gold = np.arange(5000) / 5000
    best = expected_best(gold, gold, [1, 2, 5000])
    assert best == pytest.approx([gold.mean(), (2 * 5001 / 3 - 1) / 5000, gold[-1]], rel=1e-9)


def test_a_curve_has_a_point_for_each_n_with_its_distance_from_the_policy():
    draw = np.random.default_rng(0)
    gold = draw.normal(size=(200, 8))
    curve = best_of_n(gold + draw.normal(size=gold.shape), gold)
    assert curve.n == list(range(1, 9))
    assert curve.sqrt_kl == pytest.approx([math.sqrt(math.log(n) - (n - 1) / n) for n in curve.n])
    assert curve.gold[0] == pytest.approx(gold.mean())
    assert curve.oracle[-1] == pytest.approx(gold.max(1).mean())
    assert curve.proxy[0] == pytest.approx(0, abs=1e-12)
    assert all(low < mean < high for low, mean, high in zip(curve.gold_low, curve.gold, curve.gold_high, strict=True))
    assert (np.diff(curve.gold) > 0).all()
    assert curve.gain == pytest.approx(curve.gold[-1] - curve.gold[0])
    assert curve.gain_low > 0
    assert "within chance" not in curve.verdict
    assert json.loads(json.dumps(curve.to_dict()))["groups"] == 200


def test_a_proxy_that_knows_nothing_gains_nothing_and_the_verdict_says_so():
    draw = np.random.default_rng(0)
    curve = best_of_n(draw.normal(size=(200, 8)), draw.normal(size=(200, 8)))
    assert curve.gain_low < 0 < curve.gain_high
    assert curve.verdict.endswith("The gain is within chance.")
    assert curve.proxy[-1] > 1


def test_equal_rewards_everywhere_are_a_random_choice():
    gold = np.random.default_rng(0).normal(size=(5, 4))
    assert best_of_n(np.zeros((5, 4)), gold).gold == pytest.approx([gold.mean()] * 4)


def test_a_shift_of_the_rewards_of_a_prompt_changes_nothing():
    draw = np.random.default_rng(0)
    proxy, gold, shift = draw.integers(9, size=(20, 4)), draw.normal(size=(20, 4)), draw.integers(9, size=(20, 1))
    one, other = best_of_n(proxy, gold), best_of_n(proxy + shift, gold)
    assert one.gold == other.gold
    assert one.proxy == pytest.approx(other.proxy)


def test_groups_of_one_prompt_are_resampled_together():
    draw = np.random.default_rng(0)
    proxy, gold = draw.normal(size=(40, 4)), draw.normal(size=(40, 4))
    alone = best_of_n(proxy, gold)
    copied = best_of_n(np.repeat(proxy, 5, 0), np.repeat(gold, 5, 0), np.repeat(np.arange(40), 5))
    width, copied_width = (curve.gold_high[-1] - curve.gold_low[-1] for curve in (alone, copied))
    assert copied_width == pytest.approx(width, rel=0.15)


def test_the_curve_ends_at_the_size_that_half_of_the_groups_have():
    groups = [[1, 2], [1, 2, 3], [3, 2, 1], [4, 3, 2, 1]], [[0, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0, 0]]
    curve = best_of_n(*groups)
    assert (curve.n, curve.groups, curve.left_out) == ([1, 2, 3], 3, 1)
    curve = best_of_n(*groups, largest=4)
    assert (curve.n, curve.groups, curve.left_out) == ([1, 2, 3, 4], 1, 3)
    with pytest.raises(DataError, match="of at least 5 responses"):
        best_of_n(*groups, largest=5)


def test_hundreds_of_responses_have_fewer_points_than_that():
    draw = np.random.default_rng(0)
    curve = best_of_n(draw.normal(size=(3, 300)), draw.normal(size=(3, 300)))
    assert curve.n[0] == 1
    assert curve.n[-1] == 300
    assert len(curve.n) == len(set(curve.n)) <= 32


@pytest.mark.parametrize(
    ("rewards", "gold", "message"),
    [
        ([], [], "got 0 groups"),
        ([[1.0], [2.0]], [[1.0], [2.0]], "of at least 2 responses.*the largest of 1 responses"),
        ([[1.0, 2.0]], [[1.0]], "group 0: expected one gold score for each response, got 2 rewards and 1"),
        ([[1.0, 2.0]], [[1.0, math.nan]], "group 0: a reward or a gold score is not a finite number"),
    ],
)
def test_what_makes_no_curve_is_an_error(rewards, gold, message):
    with pytest.raises(DataError, match=message):
        best_of_n(rewards, gold)
