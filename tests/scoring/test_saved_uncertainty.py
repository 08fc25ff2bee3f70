"""A model with members as its users call it: members, standard deviations, conservative rewards, and ranks by them."""

import shutil

import numpy as np
import pytest
import torch

from plaudit import RewardModel
from plaudit.checkpoint.heads_file import SavedHeads
from plaudit.errors import CheckpointError, ConfigError
from plaudit.models.load import load_model
from plaudit.scoring.saved_uncertainty import attach_saved_uncertainty
from plaudit.uncertainty import AGGREGATES, MemberUncertainty

TEXTS = ["Is the sky blue? Yes, the sky is blue.", "What is two plus two? five", "sorry, thank you", "No"]


@pytest.fixture
def folder(model_folder, tmp_path):
    """A model with four members around its head."""
    folder = shutil.copytree(model_folder, tmp_path / "ensemble")
    head = load_model(str(folder)).score.weight.detach()
    noise = torch.randn(4, head.shape[1], generator=torch.Generator().manual_seed(0))
    weight = head + 0.3 * (noise - noise.mean(0))
    constants = MemberUncertainty((1.0, 1.5, 0.5, 1.0), (0.2, 0.3, 0.25, 0.2), reward_std=0.25)
    SavedHeads(weight, None, constants, "evaluation").write(folder)
    return folder


@pytest.fixture
def ensemble(folder):
    return RewardModel.from_pretrained(folder)


def test_rewards_are_those_of_the_model_without_its_members(ensemble, model_folder):
    np.testing.assert_allclose(ensemble.score(TEXTS), RewardModel.from_pretrained(model_folder).score(TEXTS), atol=1e-6)


def test_members_and_standard_deviations_follow_from_each_other(ensemble):
    members = ensemble.score(TEXTS, return_members=True)
    rewards, std = ensemble.score(TEXTS, return_std=True)
    assert (members.shape, members.dtype, std.dtype) == ((4, 4), np.float32, np.float32)
    np.testing.assert_allclose(members.mean(1), rewards, atol=1e-5)
    np.testing.assert_allclose(std, ensemble.uncertainty.standardize(members).std(1, ddof=1) * 0.25, rtol=1e-5)


def test_a_standard_deviation_has_the_unit_of_the_reward_beside_it(ensemble):
    ensemble.scale = (1.5, 0.5)
    _, raw = ensemble.score(TEXTS, return_std=True)
    rewards, normalized = ensemble.score(TEXTS, return_std=True, normalize=True)
    np.testing.assert_allclose(rewards, (ensemble.score(TEXTS) - 1.5) / 0.5, atol=1e-5)
    np.testing.assert_allclose(normalized, raw / 0.5, rtol=1e-5)
    for how in ("min", "mean-std", "mean-var"):
        _, conservative = ensemble.score(TEXTS, return_std=True, aggregate=how)
        np.testing.assert_allclose(conservative, raw / 0.25, rtol=1e-5)
    mean, std = (ensemble.score(TEXTS, return_std=True, aggregate="mean-std", k=k) for k in (0.0, 1.0))
    np.testing.assert_allclose(mean[0] - std[0], mean[1], atol=1e-5)
    ranked = ensemble.rank(TEXTS[0], TEXTS[1:], aggregate="min")
    raw = {each.index: each.reward_std for each in ensemble.rank(TEXTS[0], TEXTS[1:])}
    assert all(each.reward_std == pytest.approx(raw[each.index] / 0.25, rel=1e-4) for each in ranked)


def test_a_batch_has_the_columns_of_its_sequences_alone(ensemble):
    together = ensemble.score(TEXTS, return_members=True)
    alone = [ensemble.score([text], return_members=True)[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert ensemble.score([], return_members=True).shape == (0, 4)


@pytest.mark.parametrize("how", AGGREGATES)
def test_ranks_are_by_the_aggregate(ensemble, how):
    k = 2.0 if how.startswith("mean-") else 1.0
    scores = ensemble.score([TEXTS[0]] * 3, TEXTS[1:], aggregate=how, k=k)
    ranked = ensemble.rank(TEXTS[0], TEXTS[1:], aggregate=how, k=k)
    assert [each.index for each in ranked] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([each.reward for each in ranked], np.sort(scores)[::-1], atol=1e-5)
    assert all(each.reward_std > 0 for each in ranked)
    assert ensemble.best_of(TEXTS[0], TEXTS[1:], aggregate=how, k=k) == ranked[0].completion


def test_details_have_the_raw_columns(ensemble):
    details = ensemble.score(TEXTS, return_details=True)
    np.testing.assert_array_equal(details.columns[:, 0], details.rewards)
    assert details.columns.shape == (4, 5)


@pytest.mark.parametrize("options", [{"aggregate": "min"}, {"return_members": True}, {"return_std": True}])
def test_a_single_model_says_how_to_get_an_uncertainty(model_folder, options):
    scorer = RewardModel.from_pretrained(model_folder)
    with pytest.raises(ConfigError, match=r"single model.*num_heads=5.*plaudit ensemble.*plaudit laplace"):
        scorer.score(TEXTS, **options)
    assert scorer.rank("a", ["b", "c"])[0].reward_std is None
    assert scorer.score(TEXTS, return_details=True).columns.shape == (4, 1)


def test_options_that_exclude_each_other_are_refused(ensemble):
    with pytest.raises(ConfigError, match="at most one"):
        ensemble.score(TEXTS, return_members=True, return_std=True)
    with pytest.raises(ConfigError, match="normalize: aggregate='min' is in standard deviations"):
        ensemble.score(TEXTS, aggregate="min", normalize=True)
    with pytest.raises(ConfigError, match="k=2.0: the aggregate 'mean' has no spread to weigh"):
        ensemble.score(TEXTS, k=2.0)


def test_members_of_another_model_are_refused(folder):
    heads = SavedHeads.read(folder)
    SavedHeads(heads.weight + 1, None, heads.constants, "evaluation").write(folder)
    with pytest.raises(CheckpointError, match="not the mean of the members"):
        RewardModel.from_pretrained(folder)


def test_members_of_another_size_are_refused_with_the_name_of_the_file(folder):
    heads = SavedHeads.read(folder)
    SavedHeads(torch.zeros(4, 7), None, heads.constants, "evaluation").write(folder)
    with pytest.raises(CheckpointError, match=r"ensemble: heads.safetensors is of another model: .*got 7 without"):
        RewardModel.from_pretrained(folder)


def test_constants_that_are_passed_replace_the_saved_ones(folder, ensemble):
    constants = MemberUncertainty((0.0,) * 4, (1.0,) * 4, reward_std=1.0)
    scorer = RewardModel.from_pretrained(folder, uncertainty=constants)
    members = scorer.score(TEXTS, return_members=True)
    np.testing.assert_allclose(members, ensemble.score(TEXTS, return_members=True), atol=1e-6)
    np.testing.assert_allclose(scorer.score(TEXTS, aggregate="min"), members.min(1), atol=1e-6)
    assert RewardModel.from_pretrained(folder, uncertainty=None).uncertainty is None


def test_constants_of_another_number_of_members_are_refused(folder):
    with pytest.raises(ConfigError, match="uncertainty: expected constants of the 5 columns .*, got those of 3"):
        RewardModel.from_pretrained(folder, uncertainty=MemberUncertainty((0.0, 0.0), (1.0, 1.0), 1.0))


def test_on_the_hub_one_file_is_looked_for_where_no_members_are_named(monkeypatch):
    names = []

    def look_up(_, name, **hub):
        names.append(name)
        raise OSError

    monkeypatch.setattr("plaudit.checkpoint.constants_file.cached_file", look_up)
    assert attach_saved_uncertainty(None, "someone/model") is None
    assert names == ["laplace.safetensors"]
    with pytest.raises(CheckpointError, match=r"reward.json names 3 members, and heads.safetensors"):
        attach_saved_uncertainty(None, "someone/ensemble", 3)
