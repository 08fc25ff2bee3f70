import json

import pytest
from click.testing import CliRunner
from peft import LoraConfig

from plaudit import RewardModel
from plaudit.checkpoint import reload
from plaudit.cli import cli

TEXTS = ["Is the sky blue? Yes, the sky", "Is the dog green? No, it is"]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr("plaudit.checkpoint.verify.reload_and_score", lambda request: reload.score(**request))
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger

    def run(*arguments):
        result = CliRunner().invoke(cli, [str(each) for each in arguments])
        return result.exit_code, " ".join(result.output.replace("│", " ").split()), result.exception

    return run


@pytest.fixture
def members(make_trainer, base_folder, tmp_path):
    """Two saved adapters on one base."""
    paths = []
    for seed in range(2):
        lora = LoraConfig(init_lora_weights=False)
        trainer = make_trainer.func(tmp_path / f"m{seed}", model=str(base_folder), peft_config=lora, seed=seed)
        trainer.save_model()
        paths.append(trainer.args.output_dir)
    return paths


@pytest.fixture
def data(tmp_path, text_rows):
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, text_rows)))
    return tmp_path / "pairs.jsonl"


def test_an_ensemble_is_written_verified_scored_and_refused_where_one_model_is_needed(run, members, data, tmp_path):
    output = tmp_path / "ensemble"
    code, printed, _ = run("ensemble", *members, "--output", output, "--data", data)
    assert code == 0, printed
    assert "member 2" in printed
    assert f"The ensemble is in {output}" in printed
    ensemble = RewardModel.from_pretrained(output)
    assert ensemble.score(TEXTS, return_members=True).shape == (2, 2)
    said = json.loads((output / "ensemble.json").read_text())
    assert said["measured_on"].startswith("20 responses of")
    assert None not in [each["fingerprint"] for each in said["members"]]

    code, printed, _ = run("verify", output)
    assert code == 0, printed
    assert "2 members that read text alike" in printed
    assert "verified" in printed

    code, printed, _ = run("score", data, "--model", output, "--output", tmp_path / "scored.jsonl")
    assert code == 0, printed
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert len(rows) == 10

    code, _, error = run("merge", output, "--output", tmp_path / "merged")
    assert code == 1
    assert "is an ensemble of several models" in str(error)
    code, _, error = run(
        "train", "--model_name_or_path", output, "--dataset_name", data, "--output_dir", tmp_path / "t"
    )
    assert "is an ensemble of several models" in str(error)


def test_verify_names_the_member_that_breaks(run, members, data, tmp_path):
    output = tmp_path / "ensemble"
    run("ensemble", *members, "--output", output, "--data", data, "--copy")
    (output / "member-2" / "adapter_model.safetensors").write_bytes(b"cut short")
    code, printed, _ = run("verify", output)
    assert code == 1
    assert "failed: member 2" in printed
    (output / "member-2" / "reward.json").write_text(json.dumps({"fingerprint": {"of": "another model"}}))
    code, printed, _ = run("verify", output)
    assert code == 1
    assert "has other weights than when the ensemble was made" in printed


def test_merge_averages_several_models_if_it_is_told_to(run, members, tmp_path):
    output = tmp_path / "mean"
    code, _, error = run("merge", *members, "--output", output)
    assert code == 1
    assert "expected one adapter, got 2. --average" in str(error)
    code, printed, _ = run("merge", *members, "--average", "--output", output)
    assert code == 0, printed
    assert "verified: transformers" in printed
    assert RewardModel.from_pretrained(output).score(TEXTS).shape == (2,)
