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
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint, sort_checkpoints

from plaudit.checkpoint.atomic import recover, remove_folder, staged_folder
from plaudit.checkpoint.integrity import check_intact
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
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True and run_dir.is_dir():
            resume_from_checkpoint = get_last_checkpoint(str(run_dir)) or True
        if isinstance(resume_from_checkpoint, (str, Path)) and Path(resume_from_checkpoint).is_dir():
            check_intact(Path(resume_from_checkpoint))
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

    @contextmanager
    def _staged(self, final: Path, *, keep_others: bool, together: bool) -> Iterator[Path]:
        folder = staged_folder(
            final,
            keep_others=keep_others,
            writes=self.args.should_save,
            barrier=self.accelerator.wait_for_everyone if together else lambda: None,
            first_of_node=together and self.is_local_process_zero(),
        )
        with folder as path, _all_or_none(together and self.args.world_size > 1):
            yield path

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model, tokenizer, model card and trainer state beside `output_dir`, then put them in place."""
        final = Path(output_dir or self.args.output_dir)
        with self._staged(final, keep_others=True, together=self._is_spread) as folder:
            self._write_model(folder)
        if _internal_call and output_dir:  # a checkpoint, as a search for hyperparameters writes it
            return
        self._after_save(final, pushing=_internal_call)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _after_save(self, folder: Path, *, pushing: bool) -> None:
        """A final model stands in its place, and may be about to be uploaded; a subclass may look at it."""

    def _write_model(self, folder: Path) -> None:
        super().save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ARG002  # the Trainer's signature
        """The stock checkpoint, written beside its place and renamed when all processes have written theirs."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_dir = Path(self._get_output_dir(trial=trial))
        final = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best == final or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        self._export_callback_states()
        with self._staged(final, keep_others=False, together=True) as folder:
            self._write_model(folder)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            self._rotate(run_dir)

    def _rotate(self, run_dir: Path) -> None:
        """What `transformers.trainer_utils.rotate_checkpoints` does, but a kill leaves none of them half-deleted."""
        limit = self.args.save_total_limit or 0
        found = sort_checkpoints(str(run_dir), use_mtime=True)
        best = self.state.best_model_checkpoint
        kept = {found[-1], *([str(Path(best))] if best else [])}
        surplus = len(found) - max(limit, len(kept)) if limit > 0 else 0
        for checkpoint in [each for each in found if each not in kept][: max(0, surplus)]:
            remove_folder(Path(checkpoint))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            for checkpoint in sort_checkpoints(self._get_output_dir(args[0])):  # the Trainer does it file by file
                if not Path(checkpoint).samefile(best):
                    remove_folder(Path(checkpoint))
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

    def _export_callback_states(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, states = type(callback).__name__, self.state.stateful_callbacks
                if isinstance(states.get(name), list):
                    states[name].append(callback.state())
                else:
                    states[name] = callback.state()


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
