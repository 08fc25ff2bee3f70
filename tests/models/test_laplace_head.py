"""The columns of a head with a posterior, against their definition on made features."""

import pickle

import numpy as np
import pytest
import torch

from plaudit.models.laplace_head import LaplaceHead
from plaudit.models.reward_head import attach_uncertainty, bind_reward_forward, num_columns


@pytest.fixture
def made():
    """A covariance with its symmetric square root, a mean, and features with rewards."""
    draw = np.random.default_rng(0)
    roots = draw.normal(size=(4, 4))
    covariance = roots @ roots.T + 0.1 * np.eye(4)
    values, vectors = np.linalg.eigh(covariance)
    factor = torch.tensor((vectors * np.sqrt(values)) @ vectors.T, dtype=torch.float32)
    features = torch.tensor(draw.normal(size=(5, 4)), dtype=torch.float32)
    return covariance, LaplaceHead(factor, features.mean(0), 64), features, features[:, :1] * 2


def test_the_standard_deviation_is_that_of_a_linear_function_of_centred_features(made):
    covariance, head, features, rewards = made
    centred = (features - features.mean(0)).double().numpy()
    columns = head(features, rewards)
    assert columns.shape == (5, head.num_columns)
    assert torch.equal(columns[:, :1], rewards)
    expected = np.sqrt(np.einsum("nh,hk,nk->n", centred, covariance, centred))
    np.testing.assert_allclose(columns[:, 1], expected, rtol=1e-5)


def test_the_samples_are_linear_heads_whose_mean_is_the_reward(made):
    _, head, features, rewards = made
    samples = head(features, rewards)[:, 2:]
    assert samples.shape == (5, 64)
    np.testing.assert_allclose(samples.mean(1), rewards[:, 0], atol=1e-5)
    deviations = samples - rewards
    mixed = head(features.mean(0, keepdim=True), rewards[:1])
    np.testing.assert_allclose(mixed[:, 1:2], 0, atol=1e-6)  # the mean features have the reward that is certain
    np.testing.assert_allclose(deviations.mean(0), 0, atol=1e-5)  # the deviations are linear in centred features


def test_the_covariance_of_the_samples_approaches_the_exact_one():
    """Of many independent features, so that the sampling errors of 64 heads average out."""
    head = LaplaceHead(torch.eye(600) * 3, torch.zeros(600), 64)
    samples = head(torch.eye(600), torch.zeros(600, 1))[:, 2:]
    assert samples.pow(2).mean() == pytest.approx(9, rel=0.03)
    covariances = samples @ samples.T / 64 - 9 * torch.eye(600)
    assert abs(covariances.mean()) < 0.01
    assert covariances.std() < 2  # 9 / sqrt(32) pairs is 1.6


def test_all_processes_sample_the_same_heads(made):
    _, head, features, rewards = made
    torch.manual_seed(1)
    other = pickle.loads(pickle.dumps(LaplaceHead(head.factor, head.feature_mean, 64)))
    assert torch.equal(other(features, rewards), head(features, rewards))


def test_a_posterior_is_no_part_of_the_saved_weights(make_model):
    model = make_model()
    before = set(model.state_dict())
    bind_reward_forward(model)
    attach_uncertainty(model, LaplaceHead(torch.eye(32), torch.zeros(32), 64))
    assert num_columns(model) == 66
    assert set(model.state_dict()) == before
