"""A guard against numbers that are not finite: it stops a run before the optimiser steps, and names the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plaudit.checkpoint.integrity import last_complete_checkpoint
from plaudit.errors import TrainingError
from plaudit.training.batch import Batch
from plaudit.training.distributed import greatest_over_processes
from plaudit.training.evaluated_comparisons import EvaluatedComparisons

__all__ = ["FiniteGuard", "check_rewards_are_finite"]

_NAMED_ROWS = 5
_EXCERPT = 80  # characters


@dataclass(frozen=True)
class _MicroBatch:
    """One micro-batch with its loss [], and with its rewards [N] and losses [C] where the trainer's own loss ran."""

    batch: Batch
    loss: torch.Tensor
    rewards: torch.Tensor | None
    losses: torch.Tensor | None

    def is_finite(self) -> torch.Tensor:
        """Return a boolean [] on the device."""
        figures = [each for each in (self.loss, self.rewards, self.losses) if each is not None]
        return torch.stack([each.isfinite().all() for each in figures]).all()

    def bad_rows(self) -> list[int]:
        """Return the rows, by place in the batch, with a reward or a loss that is not finite; all if it is unknown."""
        bad = []
        if self.rewards is not None and self.losses is not None:
            rows = [
                self.batch.sequence_row[~self.rewards.isfinite()],
                self.batch.comparison_row[~self.losses.isfinite()],
            ]
            bad = torch.cat(rows).unique().tolist()
        return bad or self.all_rows()

    def all_rows(self) -> list[int]:
        return self.batch.comparison_row.unique().tolist()

    def describe(self, row: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str]:
        """Return the number of a row, where it is known, and the text of its first sequence."""
        number = None if self.batch.row_number is None else int(self.batch.row_number[row])
        first = int((self.batch.sequence_row == row).nonzero()[0])
        return number, tokenizer.decode(self.batch.sequence(first))


class FiniteGuard(TrainerCallback):
    """Stops a run when a reward, a loss or the gradient is not finite, before the optimiser steps.

    In a token forest a number that is not finite spreads from one row to the others of the batch (zero times NaN is
    NaN), so the rows that are named are those of the batch it is in, and the first of them need not be its source.

    Attributes:
        gradient_norm: The norm of the gradient of this step, of shape [], as the trainer has measured it.
        loss_is_scaled: True under a scaler of losses (fp16), which skips a step whose gradient is not finite.
    """

    def __init__(self, *, loss_is_scaled: bool = False) -> None:
        self.loss_is_scaled = loss_is_scaled
        self.gradient_norm: torch.Tensor | float | None = None
        self._seen: list[_MicroBatch] = []
        self._noted: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def note(self, rewards: torch.Tensor, losses: torch.Tensor) -> None:
        """Keep the rewards [N] and losses [C] of `compute_loss` for the call of `add` after the backward pass."""
        self._noted = rewards.detach(), losses.detach()

    def add(self, batch: Batch, loss: torch.Tensor) -> None:
        """Keep a micro-batch and its loss []; all stays on the device until the step is complete."""
        self._seen.append(_MicroBatch(batch, loss.detach(), *self._noted))
        self._noted = (None, None)

    def clear(self) -> None:
        """Forget the micro-batches of the last step."""
        self._seen, self._noted, self.gradient_norm = [], (None, None), None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a new step."""
        self.clear()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002  # the signature of the hook
        processing_class: PreTrainedTokenizerBase | None = None,
        **_: Any,
    ) -> None:
        """Raise if anything in this step is not finite, on all processes if it is so on one.

        Raises:
            TrainingError: It names the rows and the last checkpoint.
        """
        assert processing_class is not None
        finite = torch.stack([torch.tensor(True, device=args.device), *(each.is_finite() for each in self._seen)]).all()
        norm = torch.as_tensor(0.0 if self.gradient_norm is None else self.gradient_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        steep = ~norm.isfinite().to(finite.device) & (not self.loss_is_scaled)
        bad_rows, bad_gradient = greatest_over_processes(torch.stack([~finite, steep]).tolist(), args.device)
        if bad_rows or bad_gradient:
            raise TrainingError(self._message(args, state, processing_class, of_rows=bool(bad_rows)))

    def _message(
        self, args: TrainingArguments, state: TrainerState, tokenizer: PreTrainedTokenizerBase, *, of_rows: bool
    ) -> str:
        lines = self._lines(tokenizer, of_rows=of_rows)
        if args.world_size > 1:
            lines = gather_object([f"process {args.process_index}, {line}" for line in lines])
        if of_rows:
            found = "a loss or a reward is not finite. It belongs to a batch with these rows"
        else:
            found = "the gradient is not finite, but all rewards and losses are finite. The step was made of these rows"
        last = last_complete_checkpoint(Path(args.output_dir))
        kept = f"The last checkpoint, '{last}', was saved before." if last else "There is no checkpoint yet."
        return "\n  ".join([f"step {state.global_step + 1}: {found}:", *lines]) + (
            f"\nThe optimiser has not taken the step. {kept} Look at these rows; or lower the learning rate, and use "
            "bf16 or float32 rather than fp16."
        )

    def _lines(self, tokenizer: PreTrainedTokenizerBase, *, of_rows: bool) -> list[str]:
        bad = [each for each in self._seen if not (of_rows and each.is_finite())]
        rows = [(each, row) for each in bad for row in (each.bad_rows() if of_rows else each.all_rows())]
        return _describe_rows([each.describe(row, tokenizer) for each, row in rows], len(rows))


def check_rewards_are_finite(
    compared: EvaluatedComparisons, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, split: str
) -> None:
    """Refuse an evaluation with a reward or a loss that is not finite.

    Args:
        compared: The comparisons of the evaluation.
        dataset: The tokenised rows that they are of.
        tokenizer: Shows the rows as text.
        split: The name of the rows in the message.

    Raises:
        TrainingError: It names the rows.
    """
    bad = compared.rows_not_finite()
    if not bad:
        return
    places = np.flatnonzero(np.isin(dataset.with_format("numpy")["row_number"][:], bad))[: _NAMED_ROWS + 1]
    rows = dataset.select(places).to_list()
    first = [(row.get("sequence_ids") or [row["chosen_ids"]])[0] for row in rows]
    named = [(row["row_number"], tokenizer.decode(ids)) for row, ids in zip(rows, first, strict=True)]
    lines = _describe_rows(named, len(bad))
    raise TrainingError(
        "\n  ".join([f"{split}: a loss or a reward is not finite. It belongs to a batch with these rows:", *lines])
        + "\nNo figure of this evaluation would mean anything. Look at these rows, and at the weights; use bf16 or "
        "float32 rather than fp16."
    )


def _describe_rows(rows: Sequence[tuple[int | None, str]], count: int) -> list[str]:
    """Return a line for each of the first few rows, given by number and text, and one for the rest of `count` rows."""
    lines = [
        ("a row of unknown number" if number is None else f"row {number}") + f": {_shorten(text)!r}"
        for number, text in rows[:_NAMED_ROWS]
    ]
    return lines + ([f"and {count - _NAMED_ROWS} more"] if count > _NAMED_ROWS else [])


def _shorten(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 2]} ... {text[-_EXCERPT // 2 :]}"
