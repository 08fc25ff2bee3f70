"""Ctrl-C during training: stop at the end of the step, with a checkpoint."""

import signal
import sys
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["StopOnInterrupt"]


class StopOnInterrupt(TrainerCallback):
    """On the first SIGINT, saves a checkpoint at the end of the step and stops; a second one interrupts at once.

    Attributes:
        stopped: Whether that happened.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._previous: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Take over SIGINT."""
        self._previous = signal.signal(signal.SIGINT, self._ask)

    def on_step_end(
        self, args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for the checkpoint and the end, if a signal came."""
        if self._anyone_asked(args):
            self.stopped = control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Give SIGINT back."""
        signal.signal(signal.SIGINT, self._previous)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked = True
        print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)  # noqa: T201
        signal.signal(signal.SIGINT, self._previous)

    def _anyone_asked(self, args: TrainingArguments) -> bool:
        # The signal reaches the processes at different steps, and saving takes all of them at the same one.
        if args.world_size == 1:
            return self._asked
        asked = torch.tensor(int(self._asked), device=args.device)
        distributed.all_reduce(asked)
        return bool(asked.item())
