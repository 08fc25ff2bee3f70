"""The smaller runs of a learning curve: the recipe of the run on some of its rows, and nothing left behind."""

import json

import pytest
import torch

from plaudit import ModelConfig, RewardConfig, ScriptArguments
from plaudit.errors import ConfigError
from plaudit.training.recipe import build_trainer
from plaudit.training.smaller_runs import check_smaller_runs, evaluated_comparisons, train_on_rows


@pytest.fixture
def build(base_folder, tmp_path, text_rows):
    rows = [{**row, "prompt": f"{row['prompt']} {number}"} for number in range(2) for row in text_rows]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(*, data=None, **options):
        script = ScriptArguments(**{"dataset_name": str(tmp_path / "train.jsonl"), "eval_fraction": 0.2} | (data or {}))
        model = ModelConfig(str(base_folder))
        quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "verify_on_save": False, "save_strategy": "no"}
        config = RewardConfig(str(tmp_path / "run"), **quiet | {"per_device_train_batch_size": 4} | options)
        return build_trainer(script, model, config), script, model

    return build


def test_a_run_on_all_rows_is_the_run_itself(build):
    whole, script, model = build(num_train_epochs=2, learning_rate=1e-2)
    again = train_on_rows(whole, script, model, torch.arange(len(whole.train_dataset)).numpy())
    whole.train()
    expected = evaluated_comparisons(whole)
    for name in ("numbers", "first", "second", "preferences", "shares", "prompts"):
        assert (getattr(again, name) == getattr(expected, name)).all(), name


def test_a_run_on_some_rows_takes_the_passes_of_the_run_and_leaves_nothing(build, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        "plaudit.training.smaller_runs.evaluated_comparisons",
        lambda trainer: steps.append(
            (trainer.state.global_step, trainer.args.get_warmup_steps(trainer.state.max_steps))
        ),
    )
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for schedule in ({"num_train_epochs": 2}, {"max_steps": 8, "warmup_steps": 4}):
        whole, script, model = build(**options, **schedule)
        assert len(whole.train_dataset) == 16
        train_on_rows(whole, script, model, torch.arange(8).numpy())
        assert whole.args.max_steps == schedule.get("max_steps", -1)
    assert steps == [(4, 0), (4, 2)]
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"eval_fraction": None}, {}, "learning_curve needs held-out rows.*eval_fraction"),
        (
            {},
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "Turn `load_best_model_at_end` off",
        ),
        ({"eval_fraction": None, "dataset_streaming": True}, {"max_steps": 2}, "a stream has no parts"),
    ],
)
def test_a_run_whose_smaller_runs_would_be_of_another_kind_is_refused(build, data, options, message):
    trainer, _, _ = build(data=data, **options)
    with pytest.raises(ConfigError, match=message):
        check_smaller_runs(trainer)
