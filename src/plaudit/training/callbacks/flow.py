"""The flow of training: the epoch of the batch sampler, a log with each checkpoint, and the end of a finished run."""

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

__all__ = ["TrainingFlow", "mean_logged_loss"]

logger = logging.getLogger(__name__)


class TrainingFlow(TrainerCallback):
    """Adjusts the flow of a run of `RewardTrainer` where resuming it would not continue it exactly.

    Args:
        trainer: The trainer, whose `sampler` is told the epoch.
    """

    def __init__(self, trainer: "RewardTrainer") -> None:
        self.trainer = trainer
        self._is_finished = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Train nothing if a run that has taken all its steps is resumed."""
        self._is_finished = state.global_step >= state.max_steps
        if self._is_finished:
            logger.warning("step %d of %d is done: there is nothing left to train", state.global_step, state.max_steps)
            control.should_training_stop = True

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Tell the batch sampler its epoch, which after a resumption the wrappers of the loader do not pass on."""
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log with each checkpoint and after the last step.

        What the trainer has summed up since the last log is in no checkpoint: a resumed run would report other figures.
        """
        may_save = control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST)
        is_last = state.global_step >= state.max_steps and args.logging_strategy != IntervalStrategy.NO
        control.should_log |= may_save or is_last

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log with each checkpoint here too; after a finished run, do nothing of what is due at the end of an epoch."""
        if self._is_finished:
            control.should_log = control.should_evaluate = control.should_save = False
        else:
            self.on_step_end(args, state, control)


def mean_logged_loss(state: TrainerState, *, default: float) -> float:
    """Return the mean training loss over all steps, from the log.

    Args:
        state: Its log has the mean loss of each interval between two logs.
        default: Returned if the log does not reach up to the last step.
    """
    total, step = 0.0, 0
    for entry in state.log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - step)
            step = entry["step"]
    return total / step if step and step == state.global_step else default
