"""The demonstration in small; `make proof` runs the whole one for three seeds."""

from dataclasses import replace

import pytest

from plaudit import RewardModel, evaluate
from plaudit.quickstart.demonstration import run_quickstart
from plaudit.quickstart.synthetic import PreferenceWorld, ceiling


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart") / "model"


@pytest.fixture(scope="module")
def result(folder):
    return run_quickstart(0, str(folder), train_pairs=320, test_pairs=60, responses=20)


def test_the_model_is_saved_and_scores(result, folder):
    saved = RewardModel.from_pretrained(folder)
    chats = [
        [{"role": "user", "content": result.prompt}, {"role": "assistant", "content": response}]
        for response in result.rewards
    ]
    assert saved.score(chats).tolist() == pytest.approx(list(result.rewards.values()), abs=1e-5)


def test_the_figures_are_of_the_held_out_pairs(result, folder):
    test = PreferenceWorld(0).pairs(60, "test")
    figures = evaluate(folder, [pair.row() for pair in test]).overall
    assert result.accuracy == figures["accuracy"]
    assert result.interval == (figures["accuracy_low"], figures["accuracy_high"])
    assert result.longer_wins == figures["longer_wins"]
    assert (result.pairs, result.ceiling) == (60, ceiling(test))
    assert 0 <= result.bag_of_words <= 1
    assert -1 <= result.correlation <= 1


def test_the_share_of_the_ceiling_counts_from_chance(result):
    assert replace(result, accuracy=0.86, ceiling=0.9).share_of_ceiling == pytest.approx(0.9)
    assert replace(result, accuracy=0.5).share_of_ceiling == 0
