"""The output of the commands: tables, log messages and a progress bar."""

import logging
from collections.abc import Iterable
from typing import Any

import datasets
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar

__all__ = ["LiveProgress", "console", "show_log_messages", "show_table"]

console = Console(highlight=False)


def show_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a two-column table under its title."""
    console.print(f"\n[bold]{title}[/bold]")
    table = Table(show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def show_log_messages() -> None:
    """Show the log messages of Plaudit, and of other libraries from warnings on.

    The progress bars of transformers are disabled, and those of datasets too where the output is no terminal.
    """
    disable_progress_bar()  # transformers shows one for each file that it reads or writes
    if not console.is_terminal:
        datasets.disable_progress_bars()
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    logging.basicConfig(format="%(message)s", handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("plaudit").setLevel(logging.INFO)


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
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the figures of a log entry."""
        logs = logs or {}
        named = [name for name in ("loss", "accuracy", "margin", "eval_loss", "eval_accuracy") if name in logs]
        if not state.is_world_process_zero or not logs.keys() & {"loss", "eval_loss"}:
            return
        figures = "  ".join(f"{name.replace('_', ' ')} {logs[name]:.3f}" for name in named)
        if self._bar is not None:
            self._bar.update(self._task, figures=figures)
        else:
            console.print(f"step {state.global_step} of {state.max_steps}: {figures}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop the progress bar where it is."""
        if self._bar is not None:
            self._bar.stop()
