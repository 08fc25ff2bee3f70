"""Trainings that are sent signals: `signalled.py FOLDER` forks one for each case; under a launcher it trains itself.

Each leaves marks in its folder by which the sender knows where it is; `codes.json` tells how each ended.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))
from conftest import build_trainer, pair_rows
from plaudit.training import preparation

SLOWLY = {"max_steps": 100_000, "learning_rate": 1e-3, "train_sampling_strategy": "random", "disable_dropout": False}


class Marks(TrainerCallback):
    """Marks a step when it begins and an evaluation when it runs, and takes its time for both."""

    def __init__(self, folder, seconds=0.05):
        self.folder, self.seconds = folder, seconds

    def on_step_begin(self, args, state, control, **_):
        (self.folder / f"step-{state.global_step}").touch()
        time.sleep(self.seconds)

    def on_prediction_step(self, *_, **__):
        (self.folder / "evaluating").touch()
        time.sleep(0.2)


def train(folder, seconds=0.05, **options):
    build_trainer(folder / "run", callbacks=[Marks(folder, seconds)], **SLOWLY | options).train()


def tokenise_slowly(folder):
    def slow(*_, **__):
        (folder / "tokenising").touch()
        time.sleep(60)

    preparation.tokenize_dataset = slow
    train(folder)


# What runs, the mark to wait for, and the seconds before each signal.
CASES = {
    "training": (train, "step-5", [0]),
    "evaluating": (
        lambda folder: train(folder, eval_dataset=pair_rows(), eval_strategy="steps", eval_steps=2), "evaluating", [0],
    ),
    "tokenising": (tokenise_slowly, "tokenising", [0]),
    "twice in a moment": (lambda folder: train(folder, 1), "step-1", [0, 0.01]),
    "twice": (lambda folder: train(folder, 60), "step-0", [0, 2.5]),
}  # fmt: skip


def started(act, folder):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        act(folder)
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stdout.flush()
        os._exit(code)


def send(child, folder, mark, pauses):
    deadline = time.monotonic() + 120
    while not (folder / mark).exists():
        assert time.monotonic() < deadline, f"{mark} never came"
        time.sleep(0.01)
    for pause in pauses:
        time.sleep(pause)
        os.kill(child, signal.SIGTERM)
    sent = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, time.monotonic() - sent


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    if "RANK" in os.environ:
        train(root, per_device_train_batch_size=2)
    else:
        codes = {}
        for name, (act, mark, pauses) in CASES.items():
            (root / name).mkdir()
            codes[name] = send(started(act, root / name), root / name, mark, pauses)
        (root / "codes.json").write_text(json.dumps(codes))
