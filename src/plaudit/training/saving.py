"""A `Trainer` whose saves are whole or not there."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from plaudit.checkpoint.save import staged_folder

__all__ = ["StagedSavingTrainer"]


class StagedSavingTrainer(Trainer):
    """Writes every folder beside its place and renames it when all processes have written theirs.

    It knows nothing of rewards; a subclass adds files of its own in `_write_model`.
    """

    def _staged(self, final: Path, *, keep_others: bool, together: bool) -> AbstractContextManager[Path]:
        return staged_folder(
            final,
            keep_others=keep_others,
            writes=self.args.should_save,
            barrier=self.accelerator.wait_for_everyone if together else lambda: None,
            first_of_node=together and self.is_local_process_zero(),
        )

    @property
    def _is_spread(self) -> bool:
        """Whether one model lies on several processes, so that all take part in a save or a forward pass.

        Elsewhere each has the whole model and one of them writes: a script may call `save_model` on that one alone.
        """
        return self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_distributed_loading_by_transformers

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model, tokenizer, model card and trainer state beside `output_dir`, then put them in place."""
        final = Path(output_dir or self.args.output_dir)
        with self._staged(final, keep_others=True, together=self._is_spread) as folder:
            self._write_model(folder)
        if _internal_call:
            return
        self._after_save(final)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _after_save(self, folder: Path) -> None:
        """A final model stands in its place; a subclass may look at it."""

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
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

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
