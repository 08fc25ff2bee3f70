"""What is saved beside the weights: the checkpoint contract, the loss and its threshold, and the model card."""

from pathlib import Path
from typing import Any

from torch import nn

from plaudit.checkpoint.card import write_model_card
from plaudit.checkpoint.contract import read_description, read_scale, write_contract, write_description
from plaudit.data.tokenization import TokenizationReport
from plaudit.models.adapters import base_model
from plaudit.models.head import head_names
from plaudit.training.objective import Objective
from plaudit.training.saving import StagedSavingTrainer

__all__ = ["DescribedSavingTrainer"]

# What the model card tells of a run; all the rest is in training_args.bin.
_TOLD_OPTIONS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_tokens_per_batch", "max_length", "overlong", "loss_type", "center_rewards_coefficient", "bf16", "fp16", "seed",
)  # fmt: skip


class DescribedSavingTrainer(StagedSavingTrainer):
    """Writes down what a reward model's folder must say, and reads it again when it resumes."""

    base_model_name: str
    dataset_name: str | None
    objective: Objective
    reports: dict[str, TokenizationReport]
    reward_scale: tuple[float, float]
    conversational: bool

    def _write_model(self, folder: Path) -> None:
        base = base_model(self.accelerator.unwrap_model(self.model))
        write_contract(base.config, head_names(base)[0].split(".")[0], *self.reward_scale)
        super()._write_model(folder)
        if self.args.should_save:
            write_description(folder, self.objective.described())
            self._write_card(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_description(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_description(Path(self.state.best_model_checkpoint))

    def _load_description(self, checkpoint: Path) -> None:
        self.reward_scale = read_scale(checkpoint)
        self.objective.restore(read_description(checkpoint))

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **_: Any,
    ) -> None:
        """Write the model card into the output folder (TRL's signature; the Trainer's further arguments are known)."""
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else tags or []
            self.dataset_name = dataset_name or self.dataset_name
            self._write_card(Path(self.args.output_dir), model_name=model_name, tags=tuple(tags))

    def _write_card(self, folder: Path, model_name: str | None = None, tags: tuple[str, ...] = ()) -> None:
        report, history = self.reports["train"], self.state.log_history
        logged = [entry for entry in history if "loss" in entry]
        evaluated = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
        options = {name: getattr(self.args, name) for name in _TOLD_OPTIONS}
        write_model_card(
            folder,
            model_name=model_name or Path(self.hub_model_id or self.args.output_dir).name,
            location=self.hub_model_id or self.args.output_dir,
            base_model=self.base_model_name or None,
            dataset_name=self.dataset_name,
            rows=None if report.streaming else report.kept,
            options={name: value for name, value in options.items() if value is not None},
            training_metrics=logged[-1] if logged else {},
            evaluation_metrics=evaluated[-1] if evaluated else {},
            conversational=self.conversational,
            adapter=hasattr(self.accelerator.unwrap_model(self.model), "peft_config"),
            tags=tags,
        )
