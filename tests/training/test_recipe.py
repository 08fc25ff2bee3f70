"""From the options of a run to its trainer, without training."""

import json
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from plaudit import ModelConfig, RewardConfig, ScriptArguments
from plaudit.errors import ConfigError
from plaudit.training.recipe import build_trainer, checkpoint_to_resume, final_evaluation


@pytest.fixture
def config(tmp_path):
    def make(**options):
        quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "verify_on_save": False}
        return RewardConfig(str(tmp_path / "run"), **quiet | options)

    return make


@pytest.fixture
def build(base_folder, config, tmp_path, text_rows):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text_rows))

    def build(*, script=None, model=None, callbacks=(), **options):
        names = {"dataset_name": str(tmp_path / "pairs.jsonl")} | (script or {})
        return build_trainer(
            ScriptArguments(**names), ModelConfig(str(base_folder), **model or {}), config(**options), callbacks
        )

    return build


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoint-4"
    folder.mkdir(parents=True)
    for name in ("trainer_state.json", "config.json", "model.safetensors"):
        (folder / name).write_text('{"global_step": 4}')
    return folder


def test_data_model_and_callbacks_are_those_of_the_options(build, tmp_path):
    class Mine(TrainerCallback):
        """Counted below."""

    trainer = build(script={"eval_fraction": 0.2}, model={"dtype": "bfloat16"}, callbacks=[Mine()])
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (8, 2)
    assert trainer.dataset_name == str(tmp_path / "pairs.jsonl")
    assert trainer.model.dtype == torch.bfloat16
    kinds = [type(each).__name__ for each in trainer.callback_handler.callbacks]
    assert "Mine" in kinds
    assert "PrinterCallback" not in kinds


def test_options_of_loading_win_over_those_of_the_model(build):
    trainer = build(model={"dtype": "bfloat16"}, model_init_kwargs={"dtype": "float32"})
    assert trainer.model.dtype == torch.float32


def test_a_mixture_is_called_by_its_paths(build, tmp_path):
    entries = [{"path": str(tmp_path / "pairs.jsonl"), "weight": 1}] * 2
    for name in (None, "a dataset that is ignored"):
        trainer = build(script={"dataset_name": name, "datasets": entries})
        assert trainer.dataset_name == ", ".join([str(tmp_path / "pairs.jsonl")] * 2)


def test_boolean_buffers_are_left_out_of_ddp_if_that_is_asked_for(build, monkeypatch):
    assert not hasattr(build().model, "_ddp_params_and_buffers_to_ignore")
    assert build(script={"ignore_bias_buffers": True}).model._ddp_params_and_buffers_to_ignore == []


def test_a_run_starts_anew_unless_it_is_to_resume(config, checkpoint, caplog):
    for value in (None, "", "false", False):
        assert checkpoint_to_resume(config(resume_from_checkpoint=value)) is None
    assert "holds checkpoints of an earlier run; this one starts anew" in caplog.text


def test_the_newest_checkpoint_or_a_folder_can_be_resumed(config, checkpoint):
    for value in ("last", "true", True):
        assert checkpoint_to_resume(config(resume_from_checkpoint=value)) is True
    assert Path(checkpoint_to_resume(config(resume_from_checkpoint=str(checkpoint)))) == checkpoint


def test_a_checkpoint_that_is_not_there_is_an_error(config, tmp_path):
    with pytest.raises(ConfigError, match="--resume_from_checkpoint last: there is no checkpoint in '.*run'"):
        checkpoint_to_resume(config(resume_from_checkpoint="last"))
    with pytest.raises(ConfigError, match="there is no folder '.*gone'. Use 'last' for the newest one"):
        checkpoint_to_resume(config(resume_from_checkpoint=str(tmp_path / "gone")))


def test_the_final_model_is_evaluated_unless_its_last_step_was(build, monkeypatch):
    assert final_evaluation(build()) == {}
    trainer = build(script={"eval_fraction": 0.2}, eval_strategy="steps", eval_steps=1, save_strategy="no")
    monkeypatch.setattr(trainer, "evaluate", lambda: {"eval_accuracy": 0.75})
    assert final_evaluation(trainer) == {"eval_accuracy": 0.75}
    trainer.state.global_step = 3
    trainer.state.log_history = [{"step": 2, "eval_accuracy": 0.25}, {"step": 3, "eval_accuracy": 0.5, "loss": 0.7}]
    assert final_evaluation(trainer) == {"eval_accuracy": 0.5}
    trainer.args.load_best_model_at_end = True
    assert final_evaluation(trainer) == {"eval_accuracy": 0.75}
