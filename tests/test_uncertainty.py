"""The spread of members, and the posterior of a head: no zero and no unit decides a conservative reward."""

import doctest
import json

import numpy as np
import pytest

import plaudit.uncertainty
from plaudit.errors import ConfigError
from plaudit.uncertainty import (
    AGGREGATES,
    MemberUncertainty,
    PosteriorUncertainty,
    UnmeasuredMembers,
    check_aggregate,
    checked_uncertainty,
    uncertainty_from_dict,
)

CONSERVATIVE = [name for name in AGGREGATES if name != "mean"]


@pytest.fixture
def members():
    return np.random.default_rng(0).normal(size=(50, 4)) * [1, 2, 3, 4] + [5, -5, 0, 1]


def weight(how, k):
    """The weight of the spread in an aggregate, 1 where it has none."""
    return k if how in ("mean-std", "mean-var") else 1.0


def columns_of(members):
    return np.column_stack([members.mean(1), members])


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(plaudit.uncertainty).failed == 0


def test_members_are_standardised_on_the_reference_set(members):
    values = MemberUncertainty.measure(members).standardize(members)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(values.std(0), 1)


@pytest.mark.parametrize("how", CONSERVATIVE)
def test_a_shift_or_a_scale_of_one_member_changes_no_conservative_reward(members, how):
    changed = members.copy()
    changed[:, 1] = 7 + 30 * changed[:, 1]
    one, other = (
        MemberUncertainty.measure(each).aggregate(columns_of(each), how, weight(how, 0.7))
        for each in (members, changed)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_conservative_rewards_by_hand():
    uncertainty = MemberUncertainty((0.0, 1.0, 2.0), (1.0, 1.0, 2.0), reward_std=3.0)
    columns = [[9.0, 1.0, 3.0, 8.0]]  # standardised: 1, 2, 3
    by_name = {how: uncertainty.aggregate(columns, how, weight(how, 0.5)).tolist() for how in AGGREGATES}
    assert by_name == {"mean": [9.0], "min": [1.0], "mean-std": [1.5], "mean-var": [1.5]}
    assert uncertainty.std(columns).tolist() == [3.0]
    assert uncertainty.members(columns).tolist() == [[1.0, 3.0, 8.0]]


def test_without_weight_the_spread_changes_nothing_and_with_more_it_lowers(members):
    uncertainty, columns = MemberUncertainty.measure(members), columns_of(members)
    least, less, most = (uncertainty.aggregate(columns, "mean-std", k) for k in (0, 1, 2))
    np.testing.assert_allclose(least, uncertainty.standardize(members).mean(1), rtol=1e-5, atol=1e-6)
    assert (most < less).all()
    assert (less < least).all()


def test_members_that_agree_have_no_spread(members):
    same = np.repeat(members[:, :1], 3, axis=1)
    assert MemberUncertainty.measure(same).std(columns_of(same)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("same", [1.0, 0.1, 1e7])
def test_a_member_that_never_changes_keeps_its_unit_and_is_named(same, caplog):
    """The standard deviation of three times 0.1 is 1.4e-17."""
    constants = MemberUncertainty.measure([[2.0, same], [3.0, same], [4.0, same]])
    assert constants.scales == (pytest.approx((2 / 3) ** 0.5), 1.0)
    assert "member 2 gives the same reward" in caplog.text
    assert MemberUncertainty.measure([[same, same]] * 3).reward_std == 1.0


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_standard_deviation_that_is_not_above_zero_is_refused(scale):
    for arguments in (((0.0, 0.0), (1.0, scale), 1.0), ((0.0, 0.0), (1.0, 1.0), scale)):
        with pytest.raises(ConfigError, match="uncertainty: expected standard deviations above 0"):
            MemberUncertainty(*arguments)
    with pytest.raises(ConfigError, match="uncertainty: expected standard deviations above 0"):
        PosteriorUncertainty(0.0, scale)


def test_each_of_two_or_more_members_has_both_constants():
    for centers, scales in (((0.0, 0.0), (1.0,)), ((0.0,), (1.0,))):
        with pytest.raises(ConfigError, match="two or more members, got"):
            MemberUncertainty(centers, scales, 1.0)


@pytest.mark.parametrize(
    ("how", "k", "message"),
    [("median", 1.0, "one of mean, min"), ("mean-std", -1.0, "at least 0"), ("min", 2.0, "no spread to weigh")],
)
def test_other_aggregates_and_negative_weights_are_refused(members, how, k, message):
    with pytest.raises(ConfigError, match=message):
        MemberUncertainty.measure(members).aggregate(columns_of(members), how, k)


def test_what_a_model_cannot_give_is_refused_before_anything_is_scored(members):
    uncertainty = MemberUncertainty.measure(members)
    assert checked_uncertainty(uncertainty, "a", "min", needed_by="members") is uncertainty
    assert checked_uncertainty(None, "a") is None
    for options in ({"aggregate": "min"}, {"needed_by": "members"}):
        with pytest.raises(ConfigError, match="^(aggregate='min'|members): a is a single model"):
            checked_uncertainty(None, "a", **options)
    with pytest.raises(ConfigError, match="a posterior has no least member"):
        checked_uncertainty(PosteriorUncertainty(0.0, 1.0), "a", "min")


@pytest.mark.parametrize("k", [-1, float("nan"), float("inf"), "1", None])
def test_the_weight_of_the_spread_is_a_finite_number(k):
    with pytest.raises(ConfigError, match="^k: expected a finite number of at least 0"):
        check_aggregate("min", k)


# The posterior of one head

COLUMNS = np.array([[5.0, 1.0, 4.0, 6.0], [1.0, 3.0, -2.0, 4.0]], dtype=np.float32)
POSTERIOR = PosteriorUncertainty(reward_mean=1.0, reward_std=2.0, num_samples=2)


def test_the_columns_are_reward_standard_deviation_and_samples():
    assert POSTERIOR.num_columns == 4
    assert POSTERIOR.std(COLUMNS).tolist() == [1.0, 3.0]
    assert POSTERIOR.members(COLUMNS).tolist() == [[4.0, 6.0], [-2.0, 4.0]]
    assert POSTERIOR.standardize(POSTERIOR.members(COLUMNS)).tolist() == [[1.5, 2.5], [-1.5, 1.5]]


@pytest.mark.parametrize(
    ("how", "k", "expected"),
    [("mean", 1.0, [5.0, 1.0]), ("mean-std", 1.0, [1.5, -1.5]), ("mean-std", 0.0, [2.0, 0.0]),
     ("mean-var", 2.0, [1.5, -4.5])],
)  # fmt: skip
def test_conservative_rewards_of_a_posterior_are_in_standard_deviations_of_the_rewards(how, k, expected):
    assert POSTERIOR.aggregate(COLUMNS, how, k).tolist() == expected


@pytest.mark.parametrize("how", ["mean-std", "mean-var"])
def test_the_zero_and_the_unit_of_the_rewards_change_no_conservative_reward(how):
    moved = PosteriorUncertainty(reward_mean=13.0, reward_std=6.0, num_samples=2)
    columns = COLUMNS * 3 + np.array([10, 0, 10, 10], dtype=np.float32)
    np.testing.assert_allclose(moved.aggregate(columns, how), POSTERIOR.aggregate(COLUMNS, how), rtol=1e-6)


def test_the_minimum_of_a_posterior_is_refused():
    with pytest.raises(ConfigError, match="a posterior has no least member.*'mean-std'"):
        POSTERIOR.aggregate(COLUMNS, "min")


UNMEASURED = UnmeasuredMembers((1.0, 1.0), (1.0, 1.0), 1.0, lacking="models/b")


def test_members_without_constants_give_themselves_and_their_mean_only():
    columns = [[2.0, 1.0, 3.0]]
    assert UNMEASURED.members(columns).tolist() == [[1.0, 3.0]]
    assert UNMEASURED.aggregate(columns, "mean").tolist() == [2.0]
    for figure in (UNMEASURED.std, lambda each: UNMEASURED.aggregate(each, "min")):
        with pytest.raises(ConfigError, match=r"models/b was saved without them.*`plaudit ensemble"):
            figure(np.zeros((0, 3)))


@pytest.mark.parametrize("uncertainty", [POSTERIOR, MemberUncertainty((0.0, 1.0), (1.0, 2.0), 0.5), UNMEASURED])
def test_the_constants_survive_json(uncertainty):
    assert uncertainty_from_dict(json.loads(json.dumps(uncertainty.to_dict()))) == uncertainty


@pytest.mark.parametrize("described", [{}, {"kind": "oracle"}, [1.0], {"kind": "members", "centers": [0.0]},
                                       {"kind": "posterior", "reward_std": 1.0},
                                       {"kind": "posterior", "reward_mean": 0.0, "reward_std": "x"}])  # fmt: skip
def test_constants_of_no_known_kind_are_refused(described):
    with pytest.raises(ConfigError, match="uncertainty: expected"):
        uncertainty_from_dict(described)
