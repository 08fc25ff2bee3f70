"""A guard against numbers that are not finite: it stops a run before the step is taken, and names the rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plaudit.checkpoint.integrity import last_complete_checkpoint
from plaudit.errors import TrainingError
from plaudit.training.batch import Batch
from plaudit.training.distributed import is_sharded, maximum_over_processes
from plaudit.training.evaluated_comparisons import EvaluatedComparisons

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

__all__ = ["FiniteGuard", "check_rewards_are_finite"]

# Their fused steps read `found_inf`, as `torch.amp.GradScaler` sets it
# (`tests/training/test_upstream_contract.py`).
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_NAMED_ROWS = 5
_EXCERPT = 80  # characters


@dataclass(frozen=True)
class _MicroBatch:
    """One micro-batch with its loss [], and with its rewards [N] and losses [C] where the trainer's own loss ran."""

    batch: Batch
    loss: torch.Tensor
    rewards: torch.Tensor | None
    losses: torch.Tensor | None

    def residue(self) -> torch.Tensor:
        """Return a number [] on the device: 0 if all figures are finite, else NaN, as 0 times infinity or NaN is."""
        figures = [each.reshape(-1) for each in (self.loss, self.rewards, self.losses) if each is not None]
        return torch.cat(figures).mul(0.0).sum()

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


@dataclass(frozen=True)
class _Step:
    """One step of the optimiser, and what is known of its numbers.

    Attributes:
        number: The number of the step, from 1.
        micro_batches: What the step was made of.
        found: 1 where a loss or a reward, and where the gradient, is not finite on any process, else 0, shape [2].
        copied: Reached by a GPU when it has copied `found` to the host; `None` where no copy is on its way.
    """

    number: int
    micro_batches: list[_MicroBatch]
    found: torch.Tensor
    copied: "torch.cuda.Event | None" = None

    def sent_to_host(self) -> "_Step":
        """Return the step with `found` on the host, without waiting for the copy."""
        if self.found.device.type != "cuda":
            return self
        found, copied = self.found.to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()
        return replace(self, found=found, copied=copied)

    def read(self) -> list[int]:
        """Return `found`, when it is there."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.found.tolist()


class FiniteGuard(TrainerCallback):
    """Stops a run when a reward, a loss or the gradient is not finite; the optimiser does not take that step.

    In a token forest a number that is not finite spreads from one row to the others of the batch (zero times NaN is
    NaN), so the rows that are named are those of the batch it is in, and the first of them need not be its source.

    Whether all is finite is found on the device. A host that reads the answer before each step of the optimiser waits
    for a GPU, and the GPU then waits for the host. So where the optimiser can look at the answer itself (the fused
    optimisers of torch, which leave out a step for `torch.amp.GradScaler`), the GPU leaves the step out, and the host
    reads the answer one step later, or before the next log, evaluation or save.

    Args:
        trainer: The trainer, whose steps are guarded.

    Attributes:
        gradient_norm: The norm of the gradient of this step, of shape [], as the trainer has measured it.
        reads_late: True where the answer is read late: on CUDA, with a whole model and without a scaler of losses.
    """

    def __init__(self, trainer: "RewardTrainer") -> None:
        self.trainer = trainer
        self._loss_is_scaled = getattr(trainer.accelerator, "scaler", None) is not None
        self.reads_late = trainer.args.device.type == "cuda" and not (self._loss_is_scaled or is_sharded(trainer))
        self.gradient_norm: torch.Tensor | float | None = None
        self._seen: list[_MicroBatch] = []
        self._noted: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self._unread: _Step | None = None

    def note(self, rewards: torch.Tensor, losses: torch.Tensor) -> None:
        """Keep the rewards [N] and losses [C] of `compute_loss` for the call of `add` after the backward pass."""
        self._noted = rewards.detach(), losses.detach()

    def add(self, batch: Batch, loss: torch.Tensor) -> None:
        """Keep a micro-batch and its loss []; all stays on the device until the step is complete."""
        self._seen.append(_MicroBatch(batch, loss.detach(), *self._noted))
        self._noted = (None, None)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Forget the last step of an earlier training that was interrupted."""
        self._unread = None
        self._forget_found_inf()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a new step."""
        self._seen, self._noted, self.gradient_norm = [], (None, None), None

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the signature of the hook
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Raise if anything in this step is not finite, on any process; or let the optimiser leave such a step out.

        Raises:
            TrainingError: It names the rows and the last checkpoint.
        """
        self.check()
        step = _Step(state.global_step + 1, self._seen, self._found())
        if not (self.reads_late and _can_leave_out_a_step(self._optimizer)):
            self._refuse(step)
            return
        self._optimizer.found_inf = step.found.amax().float()
        self._unread = step.sent_to_host()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Remove `found_inf` from the optimiser, which would leave out later steps as well."""
        self._forget_found_inf()

    def _forget_found_inf(self) -> None:
        if self.reads_late and hasattr(self._optimizer, "found_inf"):
            del self._optimizer.found_inf

    def check(self) -> None:
        """Raise if the last step was left out, and its numbers have not been read yet. Every process must call this.

        Raises:
            TrainingError: It names the rows and the last checkpoint.
        """
        step, self._unread = self._unread, None
        if step is not None:
            self._refuse(step)

    @property
    def _optimizer(self) -> Any:
        optimizer = self.trainer.optimizer
        return getattr(optimizer, "optimizer", optimizer)  # within accelerate's

    def _found(self) -> torch.Tensor:
        """Return for this step 1 where a loss or a reward, and where the gradient, is not finite, else 0, shape [2]."""
        residues = [each.residue() for each in self._seen]
        rows = torch.stack(residues).sum() if residues else torch.zeros((), device=self.trainer.args.device)
        norm = 0.0 if self.gradient_norm is None or self._loss_is_scaled else self.gradient_norm
        if isinstance(norm, torch.Tensor):
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        else:
            norm = rows.new_full((), norm)
        finite = torch.stack([rows.isfinite(), norm.isfinite().to(rows.device)])
        return maximum_over_processes((~finite).int())

    def _refuse(self, step: _Step) -> None:
        bad_rows, bad_gradient = step.read()
        if bad_rows or bad_gradient:
            self.trainer.state.global_step = step.number - 1  # the Trainer has counted a step that was left out
            raise TrainingError(self._message(step, of_rows=bool(bad_rows)))

    def _message(self, step: _Step, *, of_rows: bool) -> str:
        args = self.trainer.args
        lines = _lines(step, self.trainer.processing_class, of_rows=of_rows)
        if args.world_size > 1:
            lines = gather_object([f"process {args.process_index}, {line}" for line in lines])
        if of_rows:
            found = "a loss or a reward is not finite. It belongs to a batch with these rows"
        else:
            found = "the gradient is not finite, but all rewards and losses are finite. The step was made of these rows"
        last = last_complete_checkpoint(Path(args.output_dir))
        kept = f"The last checkpoint, '{last}', was saved before." if last else "There is no checkpoint yet."
        return "\n  ".join([f"step {step.number}: {found}:", *lines]) + (
            f"\nThe optimiser has not taken the step. {kept} Look at these rows; or lower the learning rate, and use "
            "bf16 or float32 rather than fp16."
        )


def _can_leave_out_a_step(optimizer: Any) -> bool:
    """Return whether an optimiser leaves a step out on the device where its attribute `found_inf` [] is 1."""
    return type(optimizer) in _FUSED and all(group["fused"] for group in optimizer.param_groups)


def _lines(step: _Step, tokenizer: PreTrainedTokenizerBase, *, of_rows: bool) -> list[str]:
    bad = [each for each in step.micro_batches if not (of_rows and each.residue().isfinite())]
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
