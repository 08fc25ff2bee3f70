"""The temperature of an evaluation: fitted, saved with the model, and used by its probabilities."""

import json
import math

import numpy as np
import pytest

from plaudit import RewardModel
from plaudit.checkpoint.metadata import read_metadata
from plaudit.errors import ConfigError
from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.saved_temperature import fit_temperature, save_temperature
from plaudit.evaluation.scores import ScoredRow, Scores


def scores_with_temperature(temperature, count=1500, seed=0):
    """Rewards whose differences, divided by the temperature, are the log-odds of the preferences."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1.5, count)
    signs = np.where(draw.random(count) < 1 / (1 + np.exp(-logits)), 1, -1)
    return Scores({}, [ScoredRow(n, [float(d), 0.0]) for n, d in enumerate(temperature * logits * signs)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fit_finds_the_temperature_that_the_rewards_were_made_with(temperature):
    fitted = fit_temperature(scores_with_temperature(temperature))
    assert fitted["temperature"] == pytest.approx(temperature, rel=0.15)
    assert fitted["low"] < temperature < fitted["high"]
    assert (fitted["comparisons"], fitted["prompts"]) == (1500, 1500)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    fits = [fit_temperature(scores_with_temperature(2.0, 200, seed)) for seed in range(20)]
    assert sum(fit["low"] < 2.0 < fit["high"] for fit in fits) >= 17


@pytest.mark.parametrize(("rewards", "reason"), [([1.0, 0.0], "always right"), ([0.0, 1.0], "no better than guessing")])
def test_rewards_without_a_temperature_are_refused(rewards, reason):
    with pytest.raises(ConfigError, match=reason):
        fit_temperature(Scores({}, [ScoredRow(0, rewards), ScoredRow(1, rewards)]))


@pytest.fixture
def folder(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.save_model()
    return trainer.args.output_dir


def evaluation_of(scores):
    return Evaluation(None, None, {}, {}, [], scores=scores)


def test_a_reloaded_model_divides_by_the_saved_temperature_where_asked(folder):
    saved = save_temperature(folder, evaluation_of(scores_with_temperature(3.0)))
    assert read_metadata(folder)["calibration"] == json.loads(json.dumps(saved))
    model = RewardModel.from_pretrained(folder, device="cpu")
    assert model.temperature == saved["temperature"]
    completions = [" It is blue.", " No, it is"]
    raw, calibrated = (model.rank("Is it?", completions, calibrated=each) for each in (False, True))
    gap = raw[0].reward - raw[1].reward
    assert [each.reward for each in raw] == [each.reward for each in calibrated]
    assert raw[0].win_probability == pytest.approx(1 / (1 + math.exp(-gap)), rel=1e-5)
    assert calibrated[0].win_probability == pytest.approx(1 / (1 + math.exp(-gap / model.temperature)), rel=1e-5)
    best, other = (each.completion for each in raw)
    probability = model.preference_probability("Is it?", best, other, calibrated=True)
    assert probability == pytest.approx(calibrated[0].win_probability, rel=1e-5)


def test_a_model_without_a_saved_temperature_says_how_to_get_one(folder):
    model = RewardModel.from_pretrained(folder, device="cpu")
    with pytest.raises(ConfigError, match="--save_temperature"):
        model.rank("Is it?", [" It", " No"], calibrated=True)
    with pytest.raises(ConfigError, match="--save_temperature"):
        model.preference_probability("Is it?", " It", " No", calibrated=True)


def test_the_other_entries_of_reward_json_stay(folder):
    before = read_metadata(folder)
    save_temperature(folder, evaluation_of(scores_with_temperature(3.0, 200)))
    after = read_metadata(folder)
    assert after.pop("calibration")["dataset"] is None
    assert after == before


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected the model's folder"):
        save_temperature(tmp_path / "none", evaluation_of(None))
