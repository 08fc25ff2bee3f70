"""A run that goes on from any of its checkpoints is the run that was never stopped, bit for bit."""

import errno
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers.trainer_utils import get_last_checkpoint

from plaudit.checkpoint.integrity import mark_unfinished
from plaudit.errors import CheckpointError


def steps_saved(trainer):
    return sorted(int(path.name.split("-")[1]) for path in Path(trainer.args.output_dir).glob("checkpoint-*"))


def checkpoint(trainer, step):
    return f"{trainer.args.output_dir}/checkpoint-{step}"


NOUNS = ["sky", "dog", "fox", "tool", "two", "four", "green", "blue", "lazy", "brown"]
PAIRS = [{"prompt": f"Is the {noun}?", "chosen": " Yes, the " + noun, "rejected": " No, it is"} for noun in NOUNS]
REPLIES = [" Yes", " No, it is", " Yes, the sky is blue", " sorry"]
RANKS = [[1, 0, 2, 1], [1, 0], [0, 2, 1], [3, 0, 1, 1], [0, 1], [2, 1, 0], [1, 0], [0, 0, 1]]
GROUPS = [
    {"prompt": row["prompt"], "completions": REPLIES[: len(ranks)], "ranks": ranks}
    for row, ranks in zip(PAIRS, RANKS, strict=False)
]
SHARED = [row | {"prompt": f"Is the {'sky' if n % 2 else 'dog'} lazy?"} for n, row in enumerate(PAIRS)]


def stream():
    return Dataset.from_list(PAIRS).to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=4)


def evaluated(**more):
    options = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": PAIRS[:5]}
    return options | {"load_best_model_at_end": True, "metric_for_best_model": "loss"} | more


BUDGET = {"max_tokens_per_batch": 45}
# Each runs two epochs or so, saves at every second step, and is resumed from each checkpoint.
RUNS = {
    "rows": {},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
    "an epoch that accumulation does not divide": {
        "gradient_accumulation_steps": 3, "per_device_train_batch_size": 1, "train_dataset": PAIRS[:7],
    },
    "tokens": BUDGET,
    "tokens accumulated": BUDGET | {"gradient_accumulation_steps": 2},
    "prompts": {"group_by_prompt": True, "train_dataset": SHARED},
    "prompts by tokens": BUDGET | {"group_by_prompt": True, "train_dataset": SHARED},
    "groups": {"train_dataset": GROUPS, "per_device_train_batch_size": 2},
    "stream": {"train_dataset": stream, "max_steps": 9},
    "stream accumulated": {
        "train_dataset": stream, "max_steps": 11, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1,
    },
    "adapter": {"peft_config": LoraConfig(r=4, lora_dropout=0.3)},
    "learnt threshold": {"train_dataset": GROUPS, "loss_type": "ties", "per_device_train_batch_size": 2},
    "padded": {"batch_layout": "padded"},
    "workers": {"dataloader_num_workers": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "a plateau": evaluated(lr_scheduler_type="reduce_lr_on_plateau"),
    "the best": evaluated(save_total_limit=None),
}  # fmt: skip


@pytest.fixture
def run(make_trainer, make_model, tokenizer):
    return partial(trained, make_trainer, lambda: make_model(attention_dropout=0.2), tokenizer)


def trained(make_trainer, make_model, tokenizer, options, checkpoint=None):
    """A trainer that has run, from the start or from a checkpoint, with dropout on and the rows in random order."""
    options = {
        "model": make_model(), "processing_class": tokenizer, "num_train_epochs": 2,
        "train_sampling_strategy": "random", "disable_dropout": False, "learning_rate": 5e-3, "logging_steps": 2,
        "lr_scheduler_type": "cosine", "warmup_steps": 2, "save_strategy": "steps", "save_steps": 2,
    } | options  # fmt: skip
    if callable(options.get("train_dataset")):
        options["train_dataset"] = options["train_dataset"]()
    trainer = make_trainer(**options)
    if checkpoint is not None:  # nothing may depend on what the process did before
        random.random(), np.random.random(), torch.rand(1)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def logged(trainer):
    timed = ("runtime", "per_second", "flos", "compilation_time")
    history = [
        {name: value for name, value in entry.items() if not name.endswith(timed)}
        for entry in trainer.state.log_history
    ]
    return history[:-1], history[-1]


def flat(state, name=""):
    """The leaves of nested dicts and lists, tensors as lists."""
    if isinstance(state, torch.Tensor):
        return {name: state.tolist()}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else None
    if items is None:
        return {name: state}
    return {key: leaf for each, value in items for key, leaf in flat(value, f"{name}.{each}").items()}


def state_of(trainer):
    """All that a next step would depend on."""
    return flat(
        {
            "weights": trainer.model.state_dict(), "objective": trainer.objective.state_dict(),
            "optimizer": trainer.optimizer.state_dict(), "scheduler": trainer.lr_scheduler.state_dict(),
            "torch": torch.get_rng_state(), "numpy": list(np.random.get_state()[1]), "python": random.getstate(),
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumed_from_any_checkpoint_is_the_uninterrupted_one(run, name):
    whole = run(RUNS[name])
    state, (log, summary) = state_of(whole), logged(whole)
    steps = range(2, whole.state.global_step, 2)
    assert len(steps) >= 2
    for step in steps:
        resumed = run(RUNS[name], checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
        assert resumed.state.global_step == whole.state.global_step
        different = [key for key, value in state_of(resumed).items() if value != state[key]]
        assert not different, (step, different[:5])
        again, summary_again = logged(resumed)
        assert again == log, step
        assert summary_again["train_loss"] == pytest.approx(summary["train_loss"], rel=1e-6)


def test_dropout_and_order_are_at_work(run):
    """Else the test above would prove less than it says."""
    first = run({})
    other = run({"disable_dropout": True})
    assert not torch.equal(first.model.score.weight, other.model.score.weight)
    other = run({"train_sampling_strategy": "sequential"})
    assert not torch.equal(first.model.score.weight, other.model.score.weight)


# Resuming


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_trainer, text_rows):
    options = {
        "max_steps": 6, "learning_rate": 1e-2, "lr_scheduler_type": "linear", "warmup_steps": 2, "logging_steps": 2,
        "train_sampling_strategy": "random", "disable_dropout": False, "save_steps": 1, "save_strategy": "steps",
        "eval_dataset": text_rows,
    }  # fmt: skip
    whole = make_trainer(**options)
    whole.train()
    for step in (1, 3, 5):  # within an epoch, at its end, in the middle of a logging interval
        resumed = make_trainer(**options | {"save_strategy": "no"})
        resumed.train(resume_from_checkpoint=checkpoint(whole, step))
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(weight, resumed.model.state_dict()[name]), (step, name)
        assert resumed.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]


def test_a_resumed_run_logs_what_the_uninterrupted_one_logged(make_trainer):
    options = {"max_steps": 6, "learning_rate": 1e-2, "save_steps": 2, "save_strategy": "steps", "logging_steps": 2}
    whole = make_trainer(**options)
    whole.train()
    resumed = make_trainer(**options | {"save_strategy": "no"})
    resumed.train(resume_from_checkpoint=checkpoint(whole, 4))
    entries = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)]
    assert entries[0] == entries[1]


def test_an_adapter_run_resumes_bit_for_bit(make_trainer, make_model):
    options = {"max_steps": 4, "learning_rate": 1e-2, "save_steps": 2, "save_strategy": "steps"}
    whole = make_trainer(peft_config=LoraConfig(), **options)
    whole.train()
    resumed = make_trainer(peft_config=LoraConfig(), **options | {"save_strategy": "no"})
    resumed.train(resume_from_checkpoint=checkpoint(whole, 2))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_resume_true_finds_the_last_checkpoint_past_the_leftovers_of_a_killed_save(make_trainer):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    Path(trainer.args.output_dir, ".saving-checkpoint-3").mkdir()
    assert get_last_checkpoint(trainer.args.output_dir) == checkpoint(trainer, 2)
    resumed = make_trainer(max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_a_run_first_puts_its_folder_in_order(make_trainer):
    options = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = make_trainer(max_steps=4, **options)
    whole.train()
    output = Path(whole.args.output_dir)
    for half in ("checkpoint-5", "_saving-model"):
        shutil.copytree(output / "checkpoint-2", output / half)
    (output / "checkpoint-5" / "trainer_state.json").unlink()  # killed while it was written
    mark_unfinished(output / "checkpoint-5")
    shutil.copytree(output / "checkpoint-2", output / "checkpoint-3")
    (output / "checkpoint-3" / "trainer_state.json").unlink()  # by its owner, to save space
    resumed = make_trainer(max_steps=6, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[:2] == whole.state.log_history[:2]
    assert steps_saved(resumed) == [2, 3, 4, 6]
    assert not list(output.glob("_*"))
    assert not list(output.glob("checkpoint-*/_*"))


def test_a_checkpoint_that_is_cut_short_is_not_resumed_from(make_trainer):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=1).train()
    resumed = make_trainer(max_steps=3)
    broken = Path(checkpoint(resumed, 2), "optimizer.pt")
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="(?s)checkpoint-2' is not whole: optimizer.pt.*from .*checkpoint-1'"):
        resumed.train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="checkpoint-2' is not whole"):
        resumed.train(resume_from_checkpoint=broken.parent)  # a `Path`, which the Trainer takes as well


def test_a_disk_that_is_full_stops_the_run_and_keeps_the_last_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=1)
    save = torch.save

    def full(value, path, *args, **kwargs):
        if trainer.state.global_step == 3 and str(path).endswith("scheduler.pt"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="(?s)checkpoint-3' could not be written.*checkpoint-2' still stands"):
        trainer.train()
    assert sorted(path.name for path in Path(trainer.args.output_dir).iterdir()) == ["checkpoint-1", "checkpoint-2"]
