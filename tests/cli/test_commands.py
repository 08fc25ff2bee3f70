"""The command as a person runs it: in a process of its own."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForSequenceClassification

PLAUDIT = [sys.executable, "-m", "plaudit.cli"]
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160", "TOKENIZERS_PARALLELISM": "false"}


def run(*arguments, **kwargs):
    environment = os.environ | QUIET
    return subprocess.run(
        [*PLAUDIT, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300, **kwargs
    )


@pytest.fixture
def data_file(tmp_path):
    nouns = ["sky", "dog", "fox", "tool", "two", "four", "green", "blue", "lazy", "brown"]
    rows = [{"prompt": f"Is the {n}?", "chosen": f" Yes, the {n}", "rejected": " No, it is"} for n in nouns] * 2
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def train_arguments(base_folder, data_file, output, *more):
    return [
        "train", "--model_name_or_path", base_folder, "--dataset_name", data_file, "--output_dir", output,
        "--per_device_train_batch_size", 4, "--learning_rate", "1e-2", "--logging_steps", 2, "--bf16", "false", *more,
    ]  # fmt: skip


def test_help_is_quick_and_lists_the_commands():
    started = time.perf_counter()
    result = run("--help")
    seconds = time.perf_counter() - started
    assert result.returncode == 0
    assert "quickstart" in result.stdout
    assert "train" in result.stdout
    assert seconds < 5, "a wide margin: timings gate nothing, but a torch import would show"


def test_ctrl_c_where_nothing_is_trained_ends_as_a_shell_expects():
    """Also a second one during training. click's own code, 1, is that of a verification that failed."""
    script = """
import os, signal, sys, click
import plaudit.cli

@click.command()
def waiting():
    os.kill(os.getpid(), signal.SIGINT)

plaudit.cli._Commands.get_command = lambda *_: waiting
sys.argv = ["plaudit", "train"]
plaudit.cli.main()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 130
    assert result.stderr.strip() == "Stopped."


def test_an_error_is_one_line_and_not_a_traceback(base_folder):
    result = run("train", "--model_name_or_path", base_folder, "--dataset_name", "missing.jsonl")
    assert result.returncode == 2
    assert "missing.jsonl" in result.stderr
    assert "Traceback" not in result.stderr


def test_train_shows_its_plan_and_result_and_saves_the_model(base_folder, data_file, tmp_path):
    output = tmp_path / "run"
    result = run(*train_arguments(base_folder, data_file, output, "--eval_fraction", 0.2, "--num_train_epochs", 4))
    assert result.returncode == 0, result.stderr
    for shown in ("What will run", "16 pairs", "none dropped", "float32", "accuracy", "95% interval", str(output)):
        assert shown in result.stdout
    model = AutoModelForSequenceClassification.from_pretrained(output, num_labels=1)
    assert model.config.pad_token_id == 0
    assert "Yes" not in result.stderr


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(base_folder, data_file, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ["--max_steps", 8, "--save_steps", 4]
    assert run(*train_arguments(base_folder, data_file, whole, *more)).returncode == 0
    assert run(*train_arguments(base_folder, data_file, parts, *more)).returncode == 0
    checkpoint = parts / "checkpoint-4"
    resumed = run(*train_arguments(base_folder, data_file, parts, *more, "--resume_from_checkpoint", checkpoint))
    assert resumed.returncode == 0, resumed.stderr
    first, second = (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).state_dict()
        for folder in (whole, parts)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_termination_save_a_checkpoint_and_say_how_to_go_on(base_folder, data_file, tmp_path, sent, code):
    output = tmp_path / "run"
    command = [*PLAUDIT, *map(str, train_arguments(base_folder, data_file, output, "--max_steps", 100_000))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | QUIET
    )
    for line in process.stdout:
        if line.startswith("step 4 "):
            process.send_signal(sent)
            break
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    step = int(re.search(r"Stopped after step (\d+)", stdout)[1])
    checkpoint = output / f"checkpoint-{step}"
    assert f"--resume_from_checkpoint {checkpoint}" in stdout
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step
    goes_on = run(
        *train_arguments(base_folder, data_file, output, "--max_steps", step + 2), "--resume_from_checkpoint", "last"
    )
    assert goes_on.returncode == 0, goes_on.stderr
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == step + 2


def test_a_dataset_format_and_a_yaml_file(base_folder, tmp_path):
    turns = "\n\nHuman: Is the sky blue?\n\nAssistant:"
    rows = [{"chosen": f"{turns} Yes, {n}", "rejected": f"{turns} No, {n}"} for n in range(8)]
    (tmp_path / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: {base_folder}\ndataset_name: {tmp_path / 'hh.jsonl'}\ndataset_format: hh\n"
        f"output_dir: {tmp_path / 'run'}\nmax_steps: 5\nbf16: false\n"
    )
    result = run("train", tmp_path / "run.yaml", "--max_steps", 2)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 2
