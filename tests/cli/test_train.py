"""`plaudit train` from its options to its files and messages, in this process; launched, in test_launch.py."""

import gzip
import json
import re
import signal
from contextlib import suppress
from dataclasses import fields

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification, TrainingArguments

from plaudit import RewardConfig, RewardTrainer
from plaudit.cli import cli
from plaudit.cli.train import COMMON_OPTIONS
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.learning_curve import LearningCurve
from plaudit.training.reward_options import RewardOptions


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger


@pytest.fixture
def data_file(tmp_path, text_rows):
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in text_rows * 2)
    return path


@pytest.fixture
def arguments(base_folder, data_file, tmp_path):
    """The arguments of a quick run, and those of the test."""
    quick = {
        "model_name_or_path": base_folder, "dataset_name": data_file, "output_dir": tmp_path / "run", "use_cpu": "true",
        "per_device_train_batch_size": 4, "learning_rate": "1e-2", "logging_steps": 2, "bf16": "false",
        "gradient_checkpointing": "false", "report_to": "none", "save_strategy": "no", "verify_on_save": "false",
    }  # fmt: skip

    def arguments(**options):
        return [str(part) for name, value in (quick | options).items() for part in (f"--{name}", value)]

    return arguments


def train(arguments):
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


def succeed(arguments):
    result = train(arguments)
    assert result.exit_code == 0, result.exception
    return result.output


def state_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


def weights_of(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).state_dict()


# Help


def test_help_has_plaudits_options_and_the_most_used_of_transformers():
    text = train(["--help"]).output
    for name in ("model_name_or_path", "dataset_format", "eval_fraction", "overlong", "lora_r", *COMMON_OPTIONS):
        assert f"--{name}" in text
    assert "--help_all" in text
    assert train(["run.yaml", "-h", "--max_steps", 3]).output == text


def test_the_help_names_options_that_there_are_and_all_of_plaudits_own():
    own = {each.name for each in fields(RewardOptions)}
    stock = {each.name for each in fields(TrainingArguments)}
    assert {each.name for each in fields(RewardConfig)} == own | stock
    assert set(COMMON_OPTIONS) <= stock - own


def test_help_all_lists_every_option():
    text = train(["--help_all"]).output
    for name in ("model_name_or_path", "overlong", "push_to_hub", "adam_beta1", "ddp_timeout"):
        assert f"--{name} " in text


# A run


def test_it_shows_its_plan_and_its_result_and_saves_the_model(arguments, tmp_path):
    shown = succeed(arguments(eval_fraction=0.2, num_train_epochs=4))
    for expected in ("What will run", "16 pairs", "none dropped", "float32", "accuracy", "95% interval"):
        assert expected in shown
    assert f"The reward model is in {tmp_path / 'run'}" in shown
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run", num_labels=1)
    assert model.config.pad_token_id == 0


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(arguments, tmp_path):
    parts = arguments(output_dir=tmp_path / "parts", max_steps=8, save_strategy="steps", save_steps=4)
    succeed(arguments(output_dir=tmp_path / "whole", max_steps=8))
    succeed(parts)
    succeed([*parts, "--resume_from_checkpoint", tmp_path / "parts" / "checkpoint-4"])
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_the_command_that_goes_on_is_printed(
    arguments, tmp_path, monkeypatch, sent, code
):
    def interrupt(_callback, _args, state, _control, **_):
        if state.global_step == 4:
            signal.raise_signal(sent)

    with monkeypatch.context() as patch:
        patch.setattr("plaudit.cli.live_progress.LiveProgress.on_step_end", interrupt)
        result = train(arguments(max_steps=100_000))
    assert result.exit_code == code
    step = int(re.search(r"Stopped after step (\d+)", result.output)[1])
    checkpoint = tmp_path / "run" / f"checkpoint-{step}"
    assert f"--resume_from_checkpoint {checkpoint}" in result.output
    assert state_of(checkpoint)["global_step"] == step
    succeed(arguments(max_steps=step + 2, resume_from_checkpoint="last"))
    assert state_of(tmp_path / "run")["global_step"] == step + 2


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_final_evaluation_saves_what_is_trained(arguments, tmp_path, monkeypatch, sent, code):
    monkeypatch.setattr(RewardTrainer, "evaluate", lambda *_, **__: signal.raise_signal(sent))
    result = train(arguments(eval_fraction=0.2, max_steps=2))
    assert result.exit_code == code
    assert f"The evaluation was stopped. The trained model is in {tmp_path / 'run'}" in result.output
    assert weights_of(tmp_path / "run")


# The learning curve


@pytest.fixture
def curve_file(tmp_path, text_rows):
    """Rows of 40 prompts."""
    path = tmp_path / "curve.jsonl"
    rows = [{**row, "prompt": f"{row['prompt']} {number}"} for number in range(4) for row in text_rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_learning_curve_follows_the_run_and_ends_in_its_figures(arguments, curve_file, tmp_path):
    shown = succeed([*arguments(dataset_name=curve_file, eval_fraction=0.2, num_train_epochs=2), "--learning_curve"])
    assert re.findall(r"Learning curve: (\d+) of 32 training rows", shown) == ["4", "8", "16"]
    assert "Would more data help?" in shown
    curve = LearningCurve(**json.loads((tmp_path / "run" / "learning_curve.json").read_text()))
    assert curve.sizes == [4, 8, 16, 32]
    last = [entry for entry in state_of(tmp_path / "run")["log_history"] if "eval_loss" in entry][-1]
    assert curve.losses[-1] == pytest.approx(last["eval_loss"], abs=1e-6)
    assert curve.accuracies[-1] == last["eval_accuracy"]
    assert curve.verdict in " ".join(shown.split())
    assert not list((tmp_path / "run").glob("_*"))
    assert weights_of(tmp_path / "run")


def test_a_learning_curve_without_held_out_rows_is_refused_before_training(arguments, curve_file, tmp_path):
    for options, error in (({}, ConfigError), ({"eval_fraction": 0.9}, DataError)):
        result = train([*arguments(dataset_name=curve_file, **options), "--learning_curve"])
        assert isinstance(result.exception, error)
        assert "learning curve" in str(result.exception).replace("_", " ")
        assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_learning_curve_leaves_the_model_and_no_curve(
    arguments, curve_file, tmp_path, monkeypatch, sent, code
):
    def interrupt(_callback, args, _state, _control, **_):
        if "_learning_curve" in args.output_dir:
            signal.raise_signal(sent)

    monkeypatch.setattr("plaudit.cli.live_progress.LiveProgress.on_step_end", interrupt)
    result = train([*arguments(dataset_name=curve_file, eval_fraction=0.2), "--learning_curve"])
    assert result.exit_code == code
    assert "The learning curve was stopped, and has no file." in result.output
    assert weights_of(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*learning_curve*"))


def test_a_signal_whose_exception_was_lost_ends_the_learning_curve_at_the_next_step(
    arguments, curve_file, tmp_path, monkeypatch
):
    def interrupt(_callback, args, _state, _control, **_):
        if "_learning_curve" in args.output_dir:
            with suppress(KeyboardInterrupt):  # as in a finaliser
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("plaudit.cli.live_progress.LiveProgress.on_train_begin", interrupt)
    result = train([*arguments(dataset_name=curve_file, eval_fraction=0.2), "--learning_curve"])
    assert result.exit_code == 143
    assert not list((tmp_path / "run").glob("*learning_curve*"))


def test_options_may_come_from_a_yaml_file_and_rows_in_a_published_layout(base_folder, tmp_path):
    turns = "\n\nHuman: Is the sky blue?\n\nAssistant:"
    rows = [{"chosen": f"{turns} Yes, {n}", "rejected": f"{turns} No, {n}"} for n in range(8)]
    (tmp_path / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: {base_folder}\ndataset_name: {tmp_path / 'hh.jsonl'}\ndataset_format: hh\n"
        f"output_dir: {tmp_path / 'run'}\nmax_steps: 5\nbf16: false\nuse_cpu: true\nverify_on_save: false\n"
    )
    succeed([tmp_path / "run.yaml", "--max_steps", 2])
    assert state_of(tmp_path / "run")["global_step"] == 2


def test_what_cannot_be_trained_is_an_error_that_names_the_option(arguments, tmp_path):
    assert isinstance(train(arguments(dataset_name="missing.jsonl")).exception, DataError)
    assert "missing.jsonl" in str(train(arguments(dataset_name="missing.jsonl")).exception)
    nameless = train(["--dataset_name", tmp_path / "pairs.jsonl.gz"]).exception
    assert isinstance(nameless, ConfigError)
    assert "--model_name_or_path: name the model to start from" in str(nameless)
