"""The quickstart in small; `make proof` holds the whole one to its promise for five seeds."""

import pytest
from click.testing import CliRunner

from plaudit import RewardModel
from plaudit.cli import quickstart


@pytest.fixture
def small(monkeypatch):
    for name, count in (("TRAIN_PAIRS", 1_600), ("TEST_PAIRS", 200), ("FRESH_RESPONSES", 100)):
        monkeypatch.setattr(quickstart, name, count)


@pytest.mark.slow
def test_the_quickstart_shows_what_it_learnt_beside_what_could_be_learnt(small, tmp_path):
    output = tmp_path / "model"
    result = CliRunner().invoke(quickstart.command, ["--output_dir", str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    for shown in ("200 held-out pairs", "95% interval", "the ceiling", "a bag of words", "the longer one wins",
                  "rank correlation", "It is Tokyo.", "It is Lima.", "plaudit train --model_name_or_path"):  # fmt: skip
        assert shown in result.output
    assert RewardModel.from_pretrained(output).score(["some text"]).shape == (1,)


def test_the_way_is_measured_from_chance_to_the_ceiling():
    result = quickstart.Quickstart(0.86, (0.84, 0.88), 0.9, 0.5, 0.5, 0.7, 90)
    assert result.way == pytest.approx(0.9)
