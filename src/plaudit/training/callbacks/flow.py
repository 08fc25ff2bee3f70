"""The flow of training: the epoch of the batch sampler, and a log with each checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from plaudit.checkpoint.integrity import mark_finished

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

__all__ = ["FinishCheckpoint", "TrainingFlow", "mean_logged_loss"]


class TrainingFlow(TrainerCallback):
    """Tells the batch sampler its epoch, and logs where a resumed run must find the sums of the log complete.

    Args:
        trainer: The trainer, whose `sampler` is told the epoch.
    """

    def __init__(self, trainer: "RewardTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Forget the comparisons that an earlier training, ended by an error, did not log."""
        self.trainer.reward_log.clear()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Tell the batch sampler its epoch: after a resumption the wrappers of the loader do not pass it on.

        `state.epoch` is the epochs done, in whole numbers and a share of the one that a resumed run begins in.
        """
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log with each checkpoint, and after the last step.

        What the trainer has summed up since the last log is in no checkpoint: a resumed run would report other figures.
        """
        may_save = control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST)
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        control.should_log |= may_save or (is_last and args.logging_strategy != IntervalStrategy.NO)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log with the checkpoint of an epoch, and after a stop that an evaluation has led to (early stopping)."""
        self.on_step_end(args, state, control)


class FinishCheckpoint(TrainerCallback):
    """Takes the mark of an unfinished checkpoint away when the Trainer has written the last file."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Take the mark away."""
        if args.should_save:
            mark_finished(Path(args.output_dir, f"checkpoint-{state.global_step}"))


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
