"""The smaller runs of a learning curve: the recipe of a run, on a part of its training rows."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from plaudit.data.script_arguments import ScriptArguments
from plaudit.errors import ConfigError
from plaudit.models.model_config import ModelConfig
from plaudit.training.config import RewardConfig
from plaudit.training.distributed import is_sharded, leave_process_group
from plaudit.training.evaluated_comparisons import EvaluatedComparisons
from plaudit.training.recipe import make_trainer
from plaudit.training.trainer import RewardTrainer

__all__ = ["check_smaller_runs", "evaluated_comparisons", "free_memory", "train_on_rows"]


def check_smaller_runs(trainer: RewardTrainer) -> None:
    """Refuse a learning curve of a run whose smaller runs would be of another kind, by a `ConfigError`."""
    if not isinstance(trainer.train_dataset, Dataset):
        raise ConfigError("learning_curve takes parts of the training rows, and a stream has no parts. Load it whole.")
    if trainer.eval_dataset is None:
        raise ConfigError(
            "learning_curve needs held-out rows, and there are none. Give a test split (`dataset_test_split`), or hold "
            "some rows out with `eval_fraction` (say 0.1)."
        )
    if trainer.args.load_best_model_at_end:
        raise ConfigError(
            "learning_curve compares runs of one recipe, and its smaller runs save no checkpoints to choose the best "
            "from. Turn `load_best_model_at_end` off."
        )
    if is_sharded(trainer):
        raise ConfigError(
            "learning_curve trains several models in one launch, which DeepSpeed, FSDP and tensor parallelism do not "
            "allow for. Run it on one process, or on several with plain data parallelism."
        )


def train_on_rows(
    whole: RewardTrainer,
    script: ScriptArguments,
    model: ModelConfig,
    rows: NDArray[np.int64],
    callbacks: Sequence[TrainerCallback] = (),
) -> EvaluatedComparisons:
    """Train a new model on some of the rows of a run, and evaluate it on the run's held-out rows.

    Options, seed and passes over the rows are those of the run `whole`; `max_steps`, and `warmup_steps` of 1 or more,
    shrink with the rows. Nothing is saved, reported or uploaded, and a signal ends the smaller run at once.
    """
    share = len(rows) / len(whole.train_dataset)
    Path(whole.args.output_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="_learning_curve-", dir=whole.args.output_dir) as folder:
        config = _smaller_config(whole.args, share, folder)
        part = whole.train_dataset.select(rows)
        trainer = make_trainer(script, model, config, part, whole.eval_dataset, callbacks)
        trainer.stop_on = ()
        trainer.train()
        compared = evaluated_comparisons(trainer)
    leave_process_group(trainer.model_wrapped)
    free_memory(trainer)
    return compared


def evaluated_comparisons(trainer: RewardTrainer) -> EvaluatedComparisons:
    """Return the held-out comparisons as the model of a trainer was last evaluated on them, or evaluate it now."""
    if trainer.evaluated is None:
        trainer.evaluate()
    return cast(EvaluatedComparisons, trainer.evaluated)


def free_memory(trainer: RewardTrainer) -> None:
    """Let go of the optimiser of a trainer that has trained, so that the next one has its memory."""
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()


def _smaller_config(config: RewardConfig, share: float, folder: str) -> RewardConfig:
    # A copy, since the fields of TrainingArguments do not survive a second `__post_init__` unchanged.
    config = copy.copy(config)
    config.output_dir, config.report_to, config.push_to_hub = folder, [], False
    config.eval_strategy, config.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    config.eval_on_start = False
    if config.max_steps > 0:
        config.max_steps = max(1, round(config.max_steps * share))
    if config.warmup_steps >= 1:
        config.warmup_steps = max(1, round(config.warmup_steps * share))
    return config
