"""The weight of a row for each member of an ensemble."""

import numpy as np
import pytest
import torch

from plaudit.errors import ConfigError
from plaudit.training.batch import Batch
from plaudit.training.member_weights import WithMemberWeights, member_weights


def test_weights_are_poisson_of_mean_one_and_independent_of_each_other():
    weights = member_weights(list(range(20_000)), 4, seed=0)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.03)
    np.testing.assert_allclose(weights.var(0), 1, atol=0.05)
    np.testing.assert_allclose((weights == 0).mean(0), np.exp(-1), atol=0.02)
    np.testing.assert_allclose(np.corrcoef(weights.T), np.eye(4), atol=0.03)


def test_the_rows_of_a_prompt_go_together_whatever_else_is_in_the_batch():
    alone, among = member_weights([2**62 + 1], 3, seed=5), member_weights([4, -9, 2**62 + 1, 4], 3, seed=5)
    assert (among[2] == alone[0]).all()
    assert (among[0] == among[3]).all()


def test_another_seed_draws_other_weights():
    one, other = (member_weights(list(range(50)), 3, seed) for seed in (0, 1))
    assert (one != other).any()


def test_batches_carry_the_weights_of_their_rows():
    def collate(rows):
        ids = np.arange(2 * len(rows))[:, None]
        return Batch.of({"input_ids": torch.from_numpy(ids)})

    batch = WithMemberWeights(collate, 3, seed=0)([{"prompt_key": 7}, {"prompt_key": 8}])
    assert batch.member_weight.tolist() == member_weights([7, 8], 3, seed=0).tolist()
    with pytest.raises(ConfigError, match="num_heads: expected the column `prompt_key`"):
        WithMemberWeights(collate, 3, seed=0)([{"row_number": 0}])
