"""`plaudit train` as launchers start it: two CPU processes give the run of one, and print everything once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification

from plaudit.cli import cli

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [
    "accelerate.commands.launch", "--config_file", ROOT / "examples/accelerate/ddp.yaml", "--num_processes", "2",
    "--main_process_port", "0",
]  # fmt: skip
# Python imports it as each process starts; it writes down what DDP wraps.
WATCH = """
import os
if "RANK" in os.environ:
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel as DDP

    stock = DDP.__init__

    def noted(self, module, *args, **kwargs):
        stock(self, module, *args, **kwargs)
        with open(os.environ["WATCHED"] + os.environ["RANK"], "a") as file:
            print(type(module).__name__, torch.distributed.get_backend(self.process_group), file=file)

    DDP.__init__ = noted
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def data_file(tmp_path, text_rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in text_rows))
    return path


def arguments(tmp_path, base_folder, data_file, name, *more):
    """The arguments of a run of four steps."""
    options = [
        "train", "--model_name_or_path", base_folder, "--dataset_name", data_file, "--eval_fraction", "0.2",
        "--output_dir", tmp_path / name, "--use_cpu", "true", "--bf16", "false", "--learning_rate", "1e-3",
        "--lr_scheduler_type", "constant", "--logging_steps", "1", "--save_strategy", "no",
        "--train_sampling_strategy", "sequential", "--report_to", "none", *more,
    ]  # fmt: skip
    return [str(option) for option in options]


def launch(launcher, tmp_path, base_folder, data_file, name, *more):
    """Start two processes; the folder that they have saved, and what they printed."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": path,
        "WATCHED": str(tmp_path / f"{name}."),
    }  # fmt: skip
    command = [sys.executable, "-m", *map(str, launcher), "-m", "plaudit.cli"]
    done = subprocess.run(
        [*command, *arguments(tmp_path, base_folder, data_file, name, *more)], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return tmp_path / name, done.stdout


def history_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def numbers_of(folder):
    """What is logged, without timings."""
    timed = ("runtime", "second", "time")
    return [{name: value for name, value in entry.items() if not name.endswith(timed)} for entry in history_of(folder)]


@pytest.fixture
def alone(tmp_path, base_folder, data_file, monkeypatch):
    """The folder of a run in this process."""
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    options = ("--per_device_train_batch_size", 4, "--max_steps", 4, "--verify_on_save", "false")
    done = CliRunner().invoke(cli, arguments(tmp_path, base_folder, data_file, "alone", *options))
    assert done.exit_code == 0, done.exception
    return tmp_path / "alone"


def test_two_launched_processes_give_the_run_of_one_and_say_it_once(alone, tmp_path, base_folder, data_file):
    expected = dict(AutoModelForSequenceClassification.from_pretrained(alone).named_parameters())
    for name, launcher in (("torchrun", TORCHRUN), ("accelerate", ACCELERATE)):
        verify = str(name == "accelerate")  # a fresh process takes seconds
        folder, said = launch(
            launcher, tmp_path, base_folder, data_file, name, "--per_device_train_batch_size", 2, "--max_steps", 4,
            "--verify_on_save", verify,
        )  # fmt: skip
        for rank in (0, 1):
            assert (tmp_path / f"{name}.{rank}").read_text() == "Qwen3ForSequenceClassification gloo\n"
        both, one = numbers_of(folder), numbers_of(alone)
        assert len(both) == len(one) > 4
        for entry, theirs in zip(both, one, strict=True):
            assert entry == pytest.approx(theirs, abs=1e-4, rel=1e-4)
        saved = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        for weight_name, weight in saved.named_parameters():
            # 2e-5: four float32 steps with gradients summed in another order, which AdamW's division magnifies
            torch.testing.assert_close(weight, expected[weight_name], atol=2e-5, rtol=0, msg=weight_name)
        once = ["What will run", "2 rows x 1 accumulated x 2 processes", "train: 8 pairs", "new reward head", "Result",
                "The reward model is in", *(f"step {step} of 4: loss" for step in (1, 2, 3, 4))]  # fmt: skip
        assert {text: said.count(text) for text in once} == dict.fromkeys(once, 1)


def test_a_launched_run_by_tokens_reports_its_balance_once_and_trains_on_every_row(tmp_path, base_folder, data_file):
    folder, said = launch(
        TORCHRUN, tmp_path, base_folder, data_file, "tokens", "--max_tokens_per_batch", 65, "--num_train_epochs", 1,
        "--verify_on_save", "false",
    )  # fmt: skip
    assert said.count("times the mean over processes") == 1
    tokens = [entry["num_tokens"] for entry in history_of(folder) if "num_tokens" in entry]
    assert said.count(f"8 pairs, {tokens[-1]:,.0f} tokens") >= 1  # those of the plan, each counted once
    assert (tmp_path / "tokens.1").read_text() == "Qwen3ForSequenceClassification gloo\n"


def test_a_launched_learning_curve_is_that_of_one_process_and_is_shown_once(
    tmp_path, base_folder, text_rows, monkeypatch
):
    data = tmp_path / "more.jsonl"
    rows = [{**row, "prompt": f"{row['prompt']} {number}"} for number in range(4) for row in text_rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--num_train_epochs", 1, "--verify_on_save", "false", "--learning_curve")
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)
    one = [*arguments(tmp_path, base_folder, data, "one", *options), "--per_device_train_batch_size", "4"]
    assert CliRunner().invoke(cli, one).exit_code == 0
    folder, said = launch(
        TORCHRUN, tmp_path, base_folder, data, "two", *options, "--per_device_train_batch_size", 2
    )  # fmt: skip
    expected, curve = (
        json.loads((each / "learning_curve.json").read_text()) for each in (tmp_path / "one", folder)
    )  # fmt: skip
    assert curve["sizes"] == expected["sizes"] == [4, 8, 16, 32]
    assert curve["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    assert said.count("Would more data help?") == 1
    assert not list(folder.glob("_*"))
