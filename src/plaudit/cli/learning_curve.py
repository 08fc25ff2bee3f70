"""The option `--learning_curve` of `plaudit train`: the smaller runs, their table, the prediction and its file."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from transformers import TrainerCallback

from plaudit.checkpoint.atomic import write_atomically
from plaudit.cli import display
from plaudit.cli.interrupts import Terminated
from plaudit.cli.live_progress import LiveProgress
from plaudit.evaluation.learning_curve import LearningCurve, measure_learning_curve, nested_subsets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from plaudit.data.script_arguments import ScriptArguments
    from plaudit.models.model_config import ModelConfig
    from plaudit.training.evaluated_comparisons import EvaluatedComparisons
    from plaudit.training.trainer import RewardTrainer

__all__ = ["FILE_NAME", "check_learning_curve", "run_learning_curve"]

FILE_NAME = "learning_curve.json"


def check_learning_curve(trainer: "RewardTrainer") -> None:
    """Refuse what has no learning curve, by a `ConfigError` or a `DataError`, before anything trains."""
    from plaudit.training.smaller_runs import check_smaller_runs

    check_smaller_runs(trainer)
    nested_subsets(_prompt_keys(trainer), seed=trainer.args.seed)


class _EndAtSignal(TrainerCallback):
    """End a smaller run at a signal whose own exception was lost: see `sigterm_as_interrupt`."""

    def __init__(self, received: Sequence[int]) -> None:
        self._received = received

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._received:
            raise Terminated

    on_prediction_step = on_step_end


def run_learning_curve(
    trainer: "RewardTrainer", script: "ScriptArguments", model: "ModelConfig", received: Sequence[int] = ()
) -> None:
    """Train the smaller models of a run that has trained and been evaluated; show the curve and write its file.

    The smaller runs end where `received` holds a signal.
    """
    from plaudit.training.smaller_runs import evaluated_comparisons, free_memory, train_on_rows

    whole, total = evaluated_comparisons(trainer), len(trainer.train_dataset)
    is_first = trainer.is_world_process_zero()
    free_memory(trainer)

    def train(rows: "NDArray[np.int64]") -> "NDArray[np.float64]":
        if is_first:
            display.console.print(f"\n[bold]Learning curve[/bold]: {len(rows):,} of {total:,} training rows")
        with _quiet():
            return _differences(train_on_rows(trainer, script, model, rows, [LiveProgress(), _EndAtSignal(received)]))

    held_out, seed = (whole.prompts, whole.preferences, whole.shares), trainer.args.seed
    curve = measure_learning_curve(train, _prompt_keys(trainer), *held_out, whole=_differences(whole), seed=seed)
    if is_first:
        path = Path(trainer.args.output_dir) / FILE_NAME
        write_atomically(path, json.dumps(curve.to_dict(), indent=2) + "\n")
        _show(curve, path)


def _prompt_keys(trainer: "RewardTrainer") -> "NDArray[np.int64]":
    return trainer.train_dataset.with_format("numpy")["prompt_key"][:]


def _differences(compared: "EvaluatedComparisons") -> "NDArray[np.float64]":
    return compared.first.astype(np.float64) - compared.second


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Plaudit log errors only: the main run has said all about the data and the model."""
    logger = logging.getLogger("plaudit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _show(curve: LearningCurve, path: Path) -> None:
    columns = (
        curve.sizes, curve.losses, curve.loss_low, curve.loss_high,
        curve.accuracies, curve.accuracy_low, curve.accuracy_high,
    )  # fmt: skip
    text = "log loss {:.3f} ({:.3f} to {:.3f}), accuracy {:.1%} ({:.0%} to {:.0%})"
    rows = [(f"{size:,} rows", text.format(*figures)) for size, *figures in zip(*columns, strict=True)]
    display.show_table(f"Would more data help? {curve.comparisons:,} held-out comparisons, 95% intervals", rows)
    display.console.print(curve.verdict)
    display.console.print(f"The curve is in [bold]{escape(str(path))}[/bold]", soft_wrap=True)
