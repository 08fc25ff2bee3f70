"""A `Trainer` whose saves are whole or not there."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from plaudit.checkpoint.atomic import recover, staged_folder
from plaudit.checkpoint.disk_full import explain_disk_full
from plaudit.checkpoint.integrity import (
    check_checkpoint,
    last_complete_checkpoint,
    remove_checkpoint,
    remove_incomplete_checkpoints,
)
from plaudit.errors import CheckpointError
from plaudit.training.devices import ManyDevicesTrainer

__all__ = ["StagedSavingTrainer"]


class StagedSavingTrainer(ManyDevicesTrainer):
    """Writes every folder beside its place and renames it when all processes have written theirs.

    It knows nothing of rewards; a subclass adds files of its own in `_write_model`.
    """

    _total_loss_scalar: float

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as `Trainer.train` does, once the run's folder is in order and the checkpoint looked at.

        Raises:
            CheckpointError: The checkpoint to resume from is not whole.
        """
        run_dir = Path(self.args.output_dir)
        with self.accelerator.main_process_first():
            if self.is_local_process_zero():  # the first of a node where its disk is its own
                recover(run_dir)
                remove_incomplete_checkpoints(run_dir)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True and run_dir.is_dir():
            resume_from_checkpoint = last_complete_checkpoint(run_dir) or True
        if isinstance(resume_from_checkpoint, (str, Path)) and Path(resume_from_checkpoint).is_dir():
            check_checkpoint(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _init_training_state(
        self, max_steps: int, steps: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        done, batches = super()._init_training_state(max_steps, steps, epochs, checkpoint, trial)
        if checkpoint is None or not isinstance(self.train_dataset, IterableDataset) or self.args.ignore_data_skip:
            return done, batches
        # The Trainer takes the first pass over a stream to last for all steps. It has begun another when that ended
        # earlier, and written down how far it was in it, as a share of all batches there could be.
        saved = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        whole = saved.max_steps * self.args.gradient_accumulation_steps
        done = math.ceil(saved.epoch) - 1
        return done, round((saved.epoch - done) * whole)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model, tokenizer, model card and trainer state beside `output_dir`, then put them in place."""
        if _internal_call and output_dir:  # a checkpoint: its trainer_state.json is written last
            self._write_model(Path(output_dir))
            return
        final = Path(output_dir or self.args.output_dir)
        together = self._is_spread
        barrier = self.accelerator.wait_for_everyone if together else lambda: None
        folder = staged_folder(final, writes=self.args.should_save, barrier=barrier)
        with folder as path, _all_or_none(together and self.args.world_size > 1):
            self._write_model(path)
            if self.args.should_save:
                self.state.save_to_json(str(path / TRAINER_STATE_NAME))
        self._after_save(final, pushing=_internal_call)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _after_save(self, folder: Path, *, pushing: bool) -> None:
        """A final model stands in its place, and may be about to be uploaded; a subclass may look at it."""

    def _write_model(self, folder: Path) -> None:
        super().save_model(str(folder), _internal_call=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial=trial))
        checkpoint = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            remove_checkpoint(checkpoint)  # of an earlier run: its marker would cover a mixture
        self.accelerator.wait_for_everyone()
        try:
            with explain_disk_full(checkpoint), _all_or_none(self.args.world_size > 1):
                super()._save_checkpoint(model, trial)
        except CheckpointError:
            if self.args.should_save:
                remove_incomplete_checkpoints(run_dir)
            raise

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._count_earlier_losses()
        return super()._finalize_training(*args, **kwargs)

    def _count_earlier_losses(self) -> None:
        """Make the Trainer's mean loss one over all steps of a resumed run, and not over those since."""
        total, step = 0.0, 0
        for entry in self.state.log_history:  # each checkpoint comes with a log, so they reach up to it
            if "loss" in entry and entry["step"] <= self._initial_global_step:
                total += entry["loss"] * (entry["step"] - step)
                step = entry["step"]
        if step:
            rest = self._tr_loss.item()
            steps = max(self.state.global_step - self._initial_global_step, 0.001)  # what the Trainer divides by
            self._total_loss_scalar = (total + self._total_loss_scalar + rest) / self.state.global_step * steps - rest

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self.args.should_save:
            trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            _refuse_poison(trained if state_dict is None else state_dict)
        super()._save(output_dir, state_dict)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Each checkpoint comes with a log: what is summed up between two logs is not in it, and a resumed run would
        # report other figures than one that was not stopped.
        self.control.should_log |= self.control.should_save
        super()._maybe_log_save_evaluate(*args, **kwargs)


@contextmanager
def _all_or_none(together: bool) -> Iterator[None]:
    """If one process fails, all do; else the others would wait for it."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failures = gather_object([None if failure is None else str(failure)]) if together else []
    if failure is not None:
        raise failure
    if any(failures):
        raise CheckpointError(f"another process could not write: {next(filter(None, failures))}")


def _refuse_poison(weights: dict[str, torch.Tensor]) -> None:
    """Raise a CheckpointError if a weight is not finite."""
    kept = {name: weight.detach() for name, weight in weights.items() if weight.is_floating_point() and weight.numel()}
    # The greatest absolute value passes on what is not finite, and needs no second tensor of a weight's size.
    largest = [torch.linalg.vector_norm(weight, float("inf")).float().cpu() for weight in kept.values()]
    bad = [name for name, value in zip(kept, largest, strict=True) if not value.isfinite()]
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(kept)} weights hold numbers that are not finite, the first '{bad[0]}': they are not "
            "saved, so that the checkpoints there are stay good. Resume from one, with a lower learning rate."
        )
