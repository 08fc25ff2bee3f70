"""The progress of training as a callback of transformers."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plaudit.cli.display import console

__all__ = ["LiveProgress"]

_SHOWN = ("loss", "accuracy", "margin", "eval_loss", "eval_accuracy")


class LiveProgress(TrainerCallback):
    """Show a progress bar with the figures of the last log entry; without a terminal, a line for each log entry."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Start the progress bar."""
        if state.is_world_process_zero and console.is_terminal:
            self._bar = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20),
                TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, figures="")

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Advance the progress bar to the current step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Show the figures of a log entry."""
        if not state.is_world_process_zero or not logs.keys() & {"loss", "eval_loss"}:
            return
        figures = "  ".join(f"{name.replace('_', ' ')} {logs[name]:.3f}" for name in _SHOWN if name in logs)
        if self._bar is not None:
            self._bar.update(self._task, figures=figures)
        else:
            console.print(f"step {state.global_step} of {state.max_steps}: {figures}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop the progress bar where it is."""
        if self._bar is not None:
            self._bar.stop()
