"""The steps of `plaudit train` as functions: from three groups of options to a trainer, and its final evaluation."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from plaudit.checkpoint.integrity import last_complete_checkpoint
from plaudit.data.script_arguments import ScriptArguments
from plaudit.data.splits import load_splits
from plaudit.errors import ConfigError
from plaudit.models.adapters import get_peft_config
from plaudit.models.model_config import ModelConfig
from plaudit.models.quantization import get_quantization_config
from plaudit.training.config import RewardConfig
from plaudit.training.dataloaders import AnyDataset
from plaudit.training.trainer import RewardTrainer

__all__ = ["build_trainer", "checkpoint_to_resume", "final_evaluation", "make_trainer"]

logger = logging.getLogger(__name__)


def build_trainer(
    script: ScriptArguments,
    model: ModelConfig,
    config: RewardConfig,
    callbacks: Sequence[TrainerCallback] = (),
    splits: tuple[AnyDataset, AnyDataset | None] | None = None,
) -> RewardTrainer:
    """Load the data that the options name, and make the trainer.

    Args:
        script: The data.
        model: The model, its adapter and its quantisation.
        config: The training; its `model_init_kwargs` are completed by the options of `model`.
        callbacks: More callbacks; transformers' printing of logs is replaced by them.
        splits: The rows to train and to evaluate on, where they are loaded already.

    Raises:
        ConfigError: Options contradict each other.
        DataError: The data cannot be read, or a row is malformed.
        ModelError: The model cannot be a reward model.
    """
    _warn_of_unused_options(model)
    train_dataset, eval_dataset = splits or load_splits(script, config.seed)
    config.model_init_kwargs = _model_init_kwargs(model) | config.load_options
    trainer = make_trainer(script, model, config, train_dataset, eval_dataset, callbacks)
    mixture = ", ".join(str(entry["path"]) for entry in script.datasets or ())
    trainer.dataset_name = mixture or script.dataset_name  # a mixture is what `load_splits` reads where both are given
    return trainer


def make_trainer(
    script: ScriptArguments,
    model: ModelConfig,
    config: RewardConfig,
    train_dataset: AnyDataset,
    eval_dataset: AnyDataset | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RewardTrainer:
    """Make the trainer that the options describe, for data that is loaded already."""
    trainer = RewardTrainer(
        model=model.model_name_or_path,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=list(callbacks),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.remove_callback(PrinterCallback)
    if script.ignore_bias_buffers:  # the attribute in which DDP looks for what it does not synchronise
        buffers = trainer.model.named_buffers()
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in buffers if buffer.dtype == torch.bool
        ]
    return trainer


def checkpoint_to_resume(config: RewardConfig) -> str | bool | None:
    """Return `resume_from_checkpoint` as `RewardTrainer.train` takes it.

    Returns:
        A folder; `True` for the newest checkpoint ("last" or "true" in the options); `None` to start anew.

    Raises:
        ConfigError: There is no such checkpoint.
    """
    path = str(config.resume_from_checkpoint or "")  # YAML may hold the boolean
    last = last_complete_checkpoint(config.output_dir)
    if path.lower() in ("", "false"):
        if last is not None:
            logger.warning(
                "'%s' holds checkpoints of an earlier run; this one starts anew and adds its own.", config.output_dir
            )
        return None
    if path.lower() in ("true", "last"):
        if last is None:
            raise ConfigError(f"--resume_from_checkpoint {path}: there is no checkpoint in '{config.output_dir}'.")
        return True
    if not Path(path).is_dir():
        raise ConfigError(f"--resume_from_checkpoint: there is no folder '{path}'. Use 'last' for the newest one.")
    return path


def final_evaluation(trainer: RewardTrainer) -> dict[str, float]:
    """Evaluate the model that training left, unless that was done after the last step; without data, return nothing.

    With `load_best_model_at_end` it is evaluated in any case, since it may be the model of another step.
    """
    if trainer.eval_dataset is None:
        return {}
    state = trainer.state
    last = [entry for entry in state.log_history if entry.get("step") == state.global_step]
    metrics = {name: value for entry in last for name, value in entry.items() if name.startswith("eval_")}
    if metrics and not trainer.args.load_best_model_at_end:
        return metrics
    logger.info("Evaluating ...")
    return trainer.evaluate()


def _model_init_kwargs(model: ModelConfig) -> dict[str, Any]:
    options = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    return {name: value for name, value in options.items() if value is not None}


def _warn_of_unused_options(model: ModelConfig) -> None:
    if model.use_peft:
        return
    changed = [
        f"--{field.name}"
        for field in dataclasses.fields(model)
        if field.name.startswith(("lora_", "use_rslora", "use_dora")) and getattr(model, field.name) != field.default
    ]
    if changed:
        logger.warning("%s without --use_peft: ALL weights train", " ".join(changed))
