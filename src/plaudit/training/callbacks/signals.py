"""Signals during training: a run stops at the end of the step, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plaudit.training.distributed import greatest_over_processes

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

__all__ = ["SignalListener", "StopOnSignal", "finish_early"]

# A launcher passes on a signal that its processes may have been sent as well: that is not a second request.
_SAME_REQUEST = 2.0  # seconds


class SignalListener:
    """Remembers the first signal that asks to stop; one that comes seconds later ends the process.

    Attributes:
        signal: The number of the signal that came, 0 while there is none. Processes may see it at different steps.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    @contextmanager
    def listening(self, signals: Sequence[int]) -> Iterator[None]:
        """Handle those signals that no other code handles; Python lets only the main thread do so."""
        self.signal, self._process = 0, os.getpid()
        unhandled = (signal.SIG_DFL, signal.default_int_handler)
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.getsignal(each) for each in signals if signal.getsignal(each) in unhandled}
        for each in self._previous:
            signal.signal(each, self._receive)
        try:
            yield
        finally:
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a forked worker: its parent handles Ctrl-C, and another signal ends it
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        elif self.signal and time.monotonic() - self._since > _SAME_REQUEST:
            self._restore_handlers()
            signal.raise_signal(number)
        elif not self.signal:
            self.signal, self._since = number, time.monotonic()
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            text = f"\n{name}: stopping after this step, with a checkpoint; a second {name} stops at once.\n"
            os.write(2, text.encode())  # `print` may be what the signal has interrupted


class StopOnSignal(TrainerCallback):
    """Asks for a checkpoint when a process has received a signal, and ends the run when it is saved.

    All processes vote once a step, so that they stop at the same one. The run ends with `SystemExit(128 + signal)`, as
    a shell reports a program that a signal ended, from the hook after the save: the trainer would otherwise load the
    best model, and remove checkpoints, as at the end of a complete run.

    Attributes:
        listener: Receives the signals of this process.
        stop_signal: The signal that stops the run on all processes, 0 while there is none.
    """

    def __init__(self) -> None:
        self.listener = SignalListener()
        self.stop_signal = 0
        self._saved_step = -1
        self._ends_on_save = False

    @contextmanager
    def listening(self, signals: Sequence[int]) -> Iterator[None]:
        """Listen to signals during one training; a signal that comes after the last vote is raised at the end."""
        self.stop_signal, self._saved_step, self._ends_on_save = 0, -1, False
        with self.listener.listening(signals):
            yield
        if self.listener.signal and not self.stop_signal:
            signal.raise_signal(self.listener.signal)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Vote; stop after this save in the middle of an epoch, and after all that is due at its end otherwise."""
        self._vote(args)
        if self.stop_signal:
            control.should_training_stop = True
            self._ends_on_save = not _is_whole(state.epoch)
            control.should_save |= self._ends_on_save

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Vote again, for a signal that came during the log, the evaluation or the save of the last step."""
        self._vote(args)
        if not self.stop_signal:
            return
        if not _is_whole(state.epoch):  # the trainer takes the break in the epoch for its end
            control.should_log = control.should_evaluate = False
        if self._saved_step == state.global_step and not control.should_evaluate:
            raise SystemExit(128 + self.stop_signal)
        control.should_training_stop = control.should_save = self._ends_on_save = True

    def on_save(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the signature of the hook
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """End the run, if it is to stop."""
        self._saved_step = state.global_step
        if self.stop_signal and self._ends_on_save:
            raise SystemExit(128 + self.stop_signal)

    def _vote(self, args: TrainingArguments) -> None:
        if not self.stop_signal:
            (self.stop_signal,) = greatest_over_processes(torch.tensor([self.listener.signal], device=args.device))


def finish_early(trainer: "RewardTrainer") -> None:
    """End the trackers, uploads and process group of a run that a signal has stopped."""
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    if getattr(trainer, "push_in_progress", None) is not None:
        trainer.push_in_progress.wait_until_done()
    trainer.end()


def _is_whole(epoch: float | None) -> bool:
    return not (epoch or 0) % 1
