"""SIGTERM and Ctrl-C: in processes of their own, and under a launcher."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from plaudit.training.callbacks.signals import SignalListener

SCRIPT = Path(__file__).with_name("signalled.py")


def environment():
    return {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    """The folder of all cases, and how each ended: exit code, and seconds since its last signal."""
    folder = tmp_path_factory.mktemp("signalled")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "codes.json").read_text()), done.stderr


def state_of(checkpoint):
    return json.loads(Path(checkpoint, "trainer_state.json").read_text())


@pytest.mark.slow
def test_a_training_that_is_terminated_saves_a_checkpoint_to_go_on_from(signalled, make_trainer):
    folder, codes, stderr = signalled
    assert codes["training"][0] == 128 + signal.SIGTERM == 143
    assert "SIGTERM: stopping after this step, with a checkpoint" in stderr
    checkpoint = get_last_checkpoint(str(folder / "training" / "run"))
    step = state_of(checkpoint)["global_step"]
    assert step >= 5
    options = {"max_steps": step + 2, "learning_rate": 1e-3, "train_sampling_strategy": "random"}
    options["disable_dropout"] = False
    whole = make_trainer(**options)
    whole.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=checkpoint)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.slow
def test_an_evaluation_that_is_terminated_is_ended_and_kept(signalled):
    folder, codes, _ = signalled
    assert codes["evaluating"][0] == 143
    state = state_of(get_last_checkpoint(str(folder / "evaluating" / "run")))
    assert state["global_step"] == 2
    assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == [2]


@pytest.mark.slow
def test_before_training_there_is_nothing_to_save_and_a_signal_is_an_end(signalled):
    folder, codes, _ = signalled
    code, seconds = codes["tokenising"]
    assert code == -signal.SIGTERM
    assert seconds < 20
    assert not list((folder / "tokenising").rglob("checkpoint-*"))


@pytest.mark.slow
def test_a_launcher_that_passes_on_a_signal_does_not_make_it_a_second_one(signalled):
    folder, codes, _ = signalled
    assert codes["twice in a moment"][0] == 143
    assert get_last_checkpoint(str(folder / "twice in a moment" / "run"))


@pytest.mark.slow
def test_a_second_signal_ends_at_once(signalled):
    folder, codes, _ = signalled
    code, seconds = codes["twice"]
    assert code == -signal.SIGTERM
    assert seconds < 20  # of a step of 60
    assert not list((folder / "twice").rglob("checkpoint-*"))


@pytest.mark.slow
def test_a_launcher_that_is_terminated_leaves_a_checkpoint_of_both_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, tmp_path]
    with (tmp_path / "log").open("w") as log:
        launched = subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 200
            while not (tmp_path / "step-5").exists() and launched.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            launched.send_signal(signal.SIGTERM)
            launched.wait(120)
        finally:
            launched.kill()
    text = (tmp_path / "log").read_text()
    assert launched.returncode not in (0, None), text[-3000:]
    checkpoint = get_last_checkpoint(str(tmp_path / "run"))
    assert checkpoint, text[-3000:]
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= {path.name for path in Path(checkpoint).iterdir()}
    assert state_of(checkpoint)["global_step"] >= 5
    assert load_file(f"{checkpoint}/model.safetensors")["score.weight"].isfinite().all()
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith("_")]


# In this process


class SendsItself(TrainerCallback):
    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


def stopped(trainer, code=143):
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == code
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return sorted(path.name for path in Path(trainer.args.output_dir).iterdir())


def test_a_signal_saves_once_and_gives_back_the_handler(make_trainer):
    trainer = make_trainer(max_steps=5, callbacks=[SendsItself(3)])
    assert stopped(trainer) == ["checkpoint-3"]


def test_a_signal_in_the_evaluation_after_the_last_epoch_is_not_lost(make_trainer, text_rows):
    class Late(TrainerCallback):
        def on_prediction_step(self, args, state, control, **_):
            if state.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(callbacks=[Late()], num_train_epochs=2, eval_dataset=text_rows, eval_strategy="epoch")
    assert stopped(trainer) == ["checkpoint-6"]


@pytest.mark.parametrize("event", ["on_step_end", "on_log", "on_save", "on_epoch_end"])
def test_a_signal_after_the_last_step_is_not_lost(make_trainer, event):
    class Late(TrainerCallback):
        pass

    def send(self, args, state, control, **_):
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(Late, event, send)
    trainer = make_trainer(max_steps=2, callbacks=[Late()], save_strategy="steps", save_steps=1)
    assert stopped(trainer) == ["checkpoint-1", "checkpoint-2"]


def test_a_signal_at_the_very_end_is_handed_on(make_trainer):
    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **_):
            os.kill(os.getpid(), signal.SIGINT)

    trainer = make_trainer(max_steps=2, callbacks=[AtTheEnd()])
    trainer.stop_on = (signal.SIGINT, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_the_code_is_that_of_the_signal(make_trainer):
    trainer = make_trainer(max_steps=5, callbacks=[SendsItself(2, signal.SIGINT)])
    trainer.stop_on = (signal.SIGINT, signal.SIGTERM)
    assert stopped(trainer, 130) == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_best_of_all_is_neither_loaded_nor_alone_kept(make_trainer, text_rows):
    """The Trainer would take the last checkpoint away at its end, if it is not the best."""
    wrong = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in text_rows]
    trainer = make_trainer(
        max_steps=9, callbacks=[SendsItself(5)], eval_dataset=wrong, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, load_best_model_at_end=True, metric_for_best_model="accuracy",
        save_total_limit=1, learning_rate=1e-2,
    )  # fmt: skip
    assert stopped(trainer) == ["checkpoint-2", "checkpoint-5"]


def test_a_stop_in_the_middle_of_an_epoch_is_not_taken_for_its_end(make_trainer, text_rows):
    options = {
        "num_train_epochs": 3, "eval_dataset": text_rows, "eval_strategy": "epoch", "save_strategy": "epoch",
        "logging_strategy": "epoch", "learning_rate": 1e-2,
    }  # fmt: skip
    trainer = make_trainer(callbacks=[SendsItself(5)], **options)
    assert stopped(trainer) == ["checkpoint-3", "checkpoint-5"]
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(**options)
    whole.train()
    assert evaluations(resumed) == evaluations(whole)
    assert torch.equal(resumed.model.score.weight, whole.model.score.weight)


def test_a_stop_at_the_end_of_an_epoch_keeps_its_evaluation(make_trainer, text_rows):
    options = {"num_train_epochs": 2, "eval_dataset": text_rows, "eval_strategy": "epoch", "learning_rate": 1e-2}
    trainer = make_trainer(callbacks=[SendsItself(3)], **options)
    assert stopped(trainer) == ["checkpoint-3"]
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(**options)
    whole.train()
    assert evaluations(resumed) == evaluations(whole)


def evaluations(trainer):
    names = ("step", "eval_loss", "eval_margin", "eval_accuracy")
    return [[entry[name] for name in names] for entry in trainer.state.log_history if "eval_loss" in entry]


def test_a_stop_is_saved_where_only_the_best_would_be(make_trainer, text_rows):
    wrong = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in text_rows]
    trainer = make_trainer(
        max_steps=6, callbacks=[SendsItself(4)], eval_dataset=wrong, eval_strategy="steps", eval_steps=1,
        save_strategy="best", metric_for_best_model="loss", greater_is_better=False, learning_rate=1e-2,
    )  # fmt: skip
    assert "checkpoint-4" in stopped(trainer)


def test_a_handler_of_somebody_else_stays(make_trainer):
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        trainer = make_trainer(max_steps=4, callbacks=[SendsItself(2)])
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == ["theirs"]
    assert trainer.state.global_step == 4


def test_outside_the_main_thread_nothing_is_taken_over(make_trainer):
    trainer = make_trainer(max_steps=2)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2


def test_a_forked_worker_ends_by_the_signal_and_leaves_ctrl_c_to_its_parent():
    for number, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)):
        with SignalListener().listening((signal.SIGTERM, signal.SIGINT)):
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), number)
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
