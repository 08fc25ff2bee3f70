"""A script written for TRL moves over by changing the import. `make test` puts TRL beside the tested environment."""

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

import plaudit

trl = pytest.importorskip("trl", reason="TRL is not beside this environment; `make test` puts it there")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def defaults(kind):
    return {field.name: field.default for field in dataclasses.fields(kind)}


def test_the_trainer_takes_the_same_arguments_in_the_same_order():
    ours, theirs = (list(inspect.signature(library.RewardTrainer).parameters) for library in (plaudit, trl))
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "other_defaults"),
    [
        # `None` stands for "on" in both names of the one option; a loss that is not finite ends the run, and is not
        # looked for again to filter the log; and see the docs for the task type.
        ("RewardConfig", {"gradient_checkpointing", "logging_nan_inf_filter"}),
        ("ModelConfig", {"lora_task_type"}),
        ("ScriptArguments", set()),
    ],
)
def test_options_have_the_same_names_and_defaults(name, other_defaults):
    ours, theirs = (defaults(getattr(library, name)) for library in (plaudit, trl))
    assert theirs.keys() <= ours.keys()
    assert {option for option in theirs if theirs[option] != ours[option]} == other_defaults


@pytest.mark.parametrize("multiple", [None, 4])
@pytest.mark.parametrize("margins", [(), (0.5, 0.0)])
def test_the_collator_makes_the_same_batch(multiple, margins):
    from trl.trainer.reward_trainer import DataCollatorForPreference

    rows = [{"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5]}, {"chosen_ids": [6, 7], "rejected_ids": [8]}]
    rows = [row | {"margin": margin} for row, margin in zip(rows, margins, strict=True)] if margins else rows
    ours, theirs = (
        collator(pad_token_id=0, pad_to_multiple_of=multiple)(rows)
        for collator in (plaudit.DataCollatorForPreference, DataCollatorForPreference)
    )
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)


@pytest.mark.slow
def test_a_few_steps_have_the_same_loss_and_gradient(tmp_path):
    """The short form of `benchmarks/parity_trl.py`, which `make proof` runs on real data."""
    nouns = ["sky", "dog", "fox", "tool", "two", "four", "green", "blue", "lazy", "brown"]
    rows = [
        {"prompt": f"Is the {a}{b}?", "chosen": f" Yes, {b}", "rejected": f" No, {a}."} for a in nouns for b in nouns
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = subprocess.run(
        [sys.executable, BENCHMARKS / "parity_trl.py", data, "--steps", "5"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    differences = [float(line.split()[-1]) for line in result.stdout.splitlines() if line.startswith("largest")]
    assert len(differences) == 5
    assert max(differences) <= 1e-5  # float32; the loss itself may differ by 1e-4 at most


@pytest.mark.parametrize("options", [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["score"]}])
def test_an_adapter_that_trl_trained_and_saved_trains_on_from_where_it_was(
    base_folder, tmp_path, text_rows, make_trainer, options
):
    config = trl.RewardConfig(
        str(tmp_path / "trl"), per_device_eval_batch_size=10, bf16=False, use_cpu=True, report_to="none", max_steps=2,
        learning_rate=1e-2, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    theirs = trl.RewardTrainer(
        model=str(base_folder), args=config, train_dataset=Dataset.from_list(text_rows),
        eval_dataset=Dataset.from_list(text_rows), peft_config=LoraConfig(**options),
    )  # fmt: skip
    theirs.train()
    last = theirs.evaluate()["eval_loss"]
    theirs.save_model()
    ours = make_trainer(model=str(tmp_path / "trl"), max_steps=1, per_device_train_batch_size=10)
    ours.train()
    assert ours.state.log_history[0]["loss"] == pytest.approx(last, rel=2e-6)
    head = theirs.model.get_base_model().score.modules_to_save["default"].weight
    again = make_trainer(model=str(tmp_path / "trl")).model.get_base_model().score.modules_to_save["default"].weight
    assert torch.equal(head, again)


def test_trls_own_default_task_type_fails_before_any_training(base_folder, text_rows, tmp_path):
    """So no adapter of TRL 1.16's says CAUSAL_LM; those of older versions may."""
    peft_config = trl.get_peft_config(trl.ModelConfig(use_peft=True))
    assert peft_config.task_type == "CAUSAL_LM"
    with pytest.raises(AttributeError, match="prepare_inputs_for_generation"):
        trl.RewardTrainer(
            model=str(base_folder), args=trl.RewardConfig(str(tmp_path / "trl"), bf16=False, use_cpu=True),
            train_dataset=Dataset.from_list(text_rows), peft_config=peft_config,
        )  # fmt: skip
