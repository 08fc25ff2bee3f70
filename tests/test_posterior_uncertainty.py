"""The columns of a posterior as `plaudit.uncertainty` reads them."""

import doctest
import json

import numpy as np
import pytest

from plaudit import uncertainty as module
from plaudit.errors import ConfigError
from plaudit.uncertainty import MemberUncertainty, PosteriorUncertainty, uncertainty_from_dict

COLUMNS = np.array([[5.0, 1.0, 4.0, 6.0], [1.0, 3.0, -2.0, 4.0]], dtype=np.float32)
POSTERIOR = PosteriorUncertainty(reward_mean=1.0, reward_std=2.0, num_samples=2)


def test_the_columns_are_reward_standard_deviation_and_samples():
    assert POSTERIOR.num_columns == 4
    assert POSTERIOR.std(COLUMNS).tolist() == [1.0, 3.0]
    assert POSTERIOR.members(COLUMNS).tolist() == [[4.0, 6.0], [-2.0, 4.0]]
    assert POSTERIOR.standardize(POSTERIOR.members(COLUMNS)).tolist() == [[1.5, 2.5], [-1.5, 1.5]]


@pytest.mark.parametrize(
    ("how", "k", "expected"),
    [("mean", 9.0, [5.0, 1.0]), ("mean-std", 1.0, [1.5, -1.5]), ("mean-std", 0.0, [2.0, 0.0]),
     ("mean-var", 2.0, [1.5, -4.5])],
)  # fmt: skip
def test_conservative_rewards_are_in_standard_deviations_of_the_rewards(how, k, expected):
    assert POSTERIOR.aggregate(COLUMNS, how, k).tolist() == expected


@pytest.mark.parametrize("how", ["mean-std", "mean-var"])
def test_the_zero_and_the_unit_of_the_rewards_change_no_conservative_reward(how):
    moved = PosteriorUncertainty(reward_mean=13.0, reward_std=6.0, num_samples=2)
    columns = COLUMNS * 3 + np.array([10, 0, 10, 10], dtype=np.float32)
    np.testing.assert_allclose(moved.aggregate(columns, how), POSTERIOR.aggregate(COLUMNS, how), rtol=1e-6)


def test_the_minimum_of_a_posterior_is_refused():
    with pytest.raises(ConfigError, match="a posterior has no least member.*'mean-std'"):
        POSTERIOR.aggregate(COLUMNS, "min")


@pytest.mark.parametrize("uncertainty", [POSTERIOR, MemberUncertainty((0.0, 1.0), (1.0, 2.0), 0.5)])
def test_the_constants_survive_json(uncertainty):
    assert uncertainty_from_dict(json.loads(json.dumps(uncertainty.to_dict()))) == uncertainty


@pytest.mark.parametrize("described", [{}, {"kind": "oracle"}, {"kind": "members", "centers": [0.0]},
                                       {"kind": "posterior", "reward_std": 1.0}])  # fmt: skip
def test_constants_of_no_known_kind_are_refused(described):
    with pytest.raises(ConfigError, match="uncertainty: expected"):
        uncertainty_from_dict(described)


def test_the_examples_hold():
    assert doctest.testmod(module).failed == 0
