"""A `Trainer` that stops in good order: at a signal, at a number that is not finite, and when nothing is left to do."""

import logging
import signal
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import distributed, nn
from transformers import PreTrainedTokenizerBase, TrainerControl
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from plaudit.errors import TrainingError
from plaudit.training.collator import rows_apart
from plaudit.training.devices import ManyDevicesTrainer
from plaudit.training.finite import FiniteWatch
from plaudit.training.interrupt import StopRequest
from plaudit.training.rows import ROW_NUMBER

__all__ = ["GuardedTrainer"]

logger = logging.getLogger(__name__)


class GuardedTrainer(ManyDevicesTrainer):
    """Looks at each step before the optimiser takes it; all processes come to the same verdict.

    Attributes:
        stop_on: The signals that end `train` after the step, with a checkpoint and `SystemExit(128 + signal)`, unless
            somebody else handles them already.
        watch: Where a subclass notes each batch's rewards and losses.
    """

    stop_on: tuple[int, ...] = (signal.SIGTERM,)
    processing_class: PreTrainedTokenizerBase
    control: TrainerControl

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.watch = FiniteWatch()
        self._request, self._stop_signal = StopRequest(), 0  # this process's, and that of all
        self._is_stopping = self._has_saved = False
        self._numbers: list[tuple[Any, torch.Tensor | None]] = []
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, listening to signals."""
        self._stop_signal, self._is_stopping = 0, False
        with self._request.listening(self.stop_on):
            output = super().train(*args, **kwargs)
        if self._request.signal:  # it came after the last look, and is not for this trainer to swallow
            signal.raise_signal(self._request.signal)
        return output

    # Numbers

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one accumulation step; the numbers of their rows are kept apart."""
        self.watch.start()
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._numbers = [(batch, batch.pop(ROW_NUMBER, None)) for batch in batches if isinstance(batch, MutableMapping)]
        return batches, count

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward, and a look at what it gave."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch.look(loss, inputs, next((numbers for batch, numbers in self._numbers if batch is inputs), None))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self._look_before_step(norm)  # the last moment before the optimiser
        return norm

    def _look_before_step(self, norm: torch.Tensor | float | None) -> None:
        found = self.watch.found()
        norm = torch.as_tensor(0.0 if norm is None else norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        scaled = getattr(self.accelerator, "scaler", None) is not None  # it skips such a step, and goes on
        steep = torch.zeros_like(found) if scaled else ~norm.isfinite().to(found.device)
        asked = torch.full_like(found, self._request.signal, dtype=torch.int)
        self._stop_signal, bad_row, bad_gradient = self._agreed(torch.stack([asked, found.int(), steep.int()]))
        if bad_row:
            self._look_at_rows_apart()
        if bad_row or bad_gradient:
            raise TrainingError(self._in_words(of_rows=bool(bad_row)))

    def _look_at_rows_apart(self) -> None:
        """Run each forest that gave something not finite once more, padded: in a forest it spreads from row to row."""
        if self._is_spread:
            return

        def loss_of(batch: dict[str, Any]) -> torch.Tensor:
            return self.compute_loss(self.model, batch)

        with torch.no_grad(), self.compute_loss_context_manager(), suppress(torch.OutOfMemoryError):
            self.watch.look_again(loss_of, lambda batch: rows_apart(batch, self.processing_class.pad_token_id))

    def _agreed(self, flags: torch.Tensor) -> list[int]:
        """The greatest of each flag over all processes, each of which must call this."""
        if self.args.world_size > 1:
            flags = flags.to(self.args.device)
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return flags.tolist()

    def _in_words(self, *, of_rows: bool) -> str:
        lines = self.watch.report(self.processing_class, all_rows=not of_rows)
        if self.args.world_size > 1:
            lines = gather_object([f"process {self.args.process_index}, {line}" for line in lines])
        what = "a loss or a reward" if of_rows else "the gradient"
        whose = "It comes from" if of_rows else "All rewards are; the step was made of"
        run_dir = Path(self.args.output_dir)
        last = get_last_checkpoint(str(run_dir)) if run_dir.is_dir() else None
        kept = f"The last checkpoint, '{last}', is from before." if last else "There is no checkpoint yet."
        return "\n  ".join(
            [f"step {self.state.global_step + 1}: {what} is not finite. {whose} (numbers count the rows kept):", *lines]
        ) + (
            f"\nThe optimiser has not taken the step. {kept} Look at these rows; or lower the learning rate, and use "
            "bf16 or float32 rather than fp16."
        )

    # Stopping

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= self.state.max_steps:
            # A finished run was resumed, maybe since it was killed while it saved its model. The Trainer would train
            # one step more, past the end of the schedule.
            logger.warning(
                "step %d of %d is done: there is nothing left to train", self.state.global_step, self.state.max_steps
            )
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._is_stopping and self.state.epoch % 1:  # the Trainer takes the break for the end of an epoch
            self.control.should_log = self.control.should_evaluate = self.control.should_save = False
            return
        evaluates, self._has_saved = self.control.should_evaluate, False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        took_long, is_last = evaluates or self._has_saved, self.control.should_training_stop
        if (took_long or is_last) and not self._stop_signal:
            (self._stop_signal,) = self._agreed(torch.tensor([self._request.signal]))
        if not self._stop_signal:
            return
        if not self._has_saved and (evaluates or not self._is_stopping):
            self.control.should_save = True
            super()._maybe_log_save_evaluate(*args, **kwargs)
        self._is_stopping = self.control.should_training_stop = True

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self._has_saved = True

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if not self._is_stopping:
            return super()._finalize_training(*args, **kwargs)
        # Without loading the best model or taking away what is not the best: the run is not at its end.
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self._finish_current_push()
        self.end()
        raise SystemExit(128 + self._stop_signal)  # as a shell reports a program that a signal ended
