"""`plaudit laplace`: the posterior of a trained model's head, written beside its weights."""

import json
import shutil

import pytest
from click.testing import CliRunner

from plaudit import RewardModel
from plaudit.cli import cli
from plaudit.errors import ConfigError


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    return lambda *arguments: CliRunner().invoke(cli, ["laplace", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def data(tmp_path, text_rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in text_rows))
    return path


def test_a_posterior_is_written_and_used(run, model_folder, data, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    result = run(folder, data, "--device", "cpu")
    printed = " ".join(result.output.split())
    assert result.exit_code == 0
    assert "10 comparisons of" in printed
    assert "where the marginal likelihood is greatest" in printed
    assert "of 32 directions of the head" in printed
    assert f"Wrote {folder}/laplace.safetensors" in printed
    _, std = RewardModel.from_pretrained(folder, device="cpu").score(["Is the sky? Yes"], return_std=True)
    assert std[0] > 0


def test_a_posterior_of_an_older_head_is_replaced(run, model_folder, data, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    run(folder, data, "--device", "cpu")
    model = RewardModel.from_pretrained(folder, device="cpu").model
    model.score.weight.data *= 1.5
    model.save_pretrained(folder)
    assert run(folder, data, "--device", "cpu").exit_code == 0
    assert RewardModel.from_pretrained(folder, device="cpu").uncertainty is not None


def test_a_place_that_is_no_folder_of_one_model_is_refused(run, model_folder, data, tmp_path):
    with pytest.raises(ConfigError, match="expected the folder of a reward model.*got 'my/hub-id'"):
        run("my/hub-id", data)
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "heads.safetensors").touch()
    with pytest.raises(ConfigError, match="is an ensemble"):
        run(folder, data)
