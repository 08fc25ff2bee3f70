"""What is saved beside the weights: the checkpoint contract, the model's description with its fingerprint, the card."""

import logging
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit.checkpoint.card import write_model_card
from plaudit.checkpoint.fingerprint import Fingerprint, rewards_as_saved, take_fingerprint
from plaudit.checkpoint.metadata import (
    METADATA_FILE,
    library_versions,
    read_metadata,
    rendering_metadata,
    set_contract,
    write_metadata,
)
from plaudit.checkpoint.verify import Verification, verify_and_record
from plaudit.data.tokenize import TokenizationReport
from plaudit.models.adapters import base_model
from plaudit.models.precision import compute_dtype
from plaudit.models.quantization import describe_quantization
from plaudit.models.reward_head import head_names
from plaudit.training.config import RewardConfig
from plaudit.training.objective import Objective
from plaudit.training.saving import StagedSavingTrainer

__all__ = ["DescribedSavingTrainer"]

logger = logging.getLogger(__name__)

_SAMPLED_ROWS = 16  # of the training data, for the scale of a model that was never evaluated

# What the model card tells of a run; all the rest is in training_args.bin.
_TOLD_OPTIONS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_tokens_per_batch", "max_length", "overlong", "loss_type", "center_rewards_coefficient", "bf16", "fp16", "seed",
)  # fmt: skip


class DescribedSavingTrainer(StagedSavingTrainer):
    """Writes down what a reward model's folder must say, proves that it scores the same, and reads it on resuming.

    Attributes:
        verification: What came of the last save's verification; `None` before.
    """

    args: RewardConfig
    base_model_name: str
    processing_class: PreTrainedTokenizerBase
    dataset_name: str | None
    objective: Objective
    reports: dict[str, TokenizationReport]
    reward_scale: tuple[float, float] | None
    conversational: bool
    verification: Verification | None = None
    _proven: dict[str, Any] | None = None  # fingerprint and outcome, where this process has verified

    def _write_model(self, folder: Path) -> None:
        base = base_model(self.accelerator.unwrap_model(self.model))
        head = head_names(base)[0].split(".")[0]
        description: dict[str, Any] = {}
        if self.args.should_save or self._is_spread:  # then all must take part
            description = self._describe(base, head)
            set_contract(base.config, head, description["rewards"]["mean"], description["rewards"]["std"])
        super()._write_model(folder)
        if self.args.should_save:
            if self._proven is not None and self._proven["fingerprint"] == description["fingerprint"]:
                description |= self._proven  # the same model, written again: a push does that
            write_metadata(folder, description)
            self._write_card(folder)

    def _after_save(self, folder: Path, *, pushing: bool) -> None:
        super()._after_save(folder, pushing=pushing)
        if not (self.args.verify_on_save and self.args.should_save):
            return
        if pushing and "verification" in read_metadata(folder):  # the save before has proven it
            return
        logger.info("reloading the saved model in a fresh process, to prove that it scores the same ...")
        self.verification = verify_and_record(folder, trust_remote_code=self.args.trust_remote_code)
        said = read_metadata(folder)
        self._proven = {name: said[name] for name in ("fingerprint", "verification")}
        for finding in self.verification.findings:
            if finding.holds is None:
                logger.warning("%s: %s", finding.layer, finding.message)
        if self.verification.status == "verified":
            logger.info("verified with %s: %s", self.verification.engine, self.verification.findings[-1].message)
        else:
            logger.warning("NOT VERIFIED: nothing proves yet that '%s' scores as the model did in training", folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer copies what it knows of from the checkpoint into the folder that it uploads.
        if self.is_world_process_zero():
            for name in (METADATA_FILE, "README.md"):
                shutil.copy(Path(checkpoint_folder, name), Path(self.args.output_dir, name))
        super()._push_from_checkpoint(checkpoint_folder)

    # The description

    def _describe(self, base: PreTrainedModel, head: str) -> dict[str, Any]:
        fingerprint = self._take_fingerprint(base)
        rendered = fingerprint.ids[0] if fingerprint else []
        mean, std, origin = self._scale()
        run = "bf16 mixed" if self.args.bf16 else "fp16 mixed" if self.args.fp16 else str(base.dtype)[6:]
        return {
            "versions": library_versions(),
            **self.objective.described(),
            "rendering": rendering_metadata(
                self.processing_class,
                rendered,
                conversational=self.conversational,
                max_length=self.args.max_length,
            ),
            "head": {"name": head, "trained_in": "float32"},
            "training": {
                "weights": str(base.dtype)[6:],
                "precision": run,
                "attention": base.config._attn_implementation,
                "layout": getattr(self.data_collator, "layout", "padded"),
            },
            "quantization": describe_quantization(base),
            "rewards": {"mean": mean, "std": std, "of": origin},
            "fingerprint": fingerprint and fingerprint.as_json(),
        }

    def _take_fingerprint(self, base: PreTrainedModel) -> Fingerprint | None:
        """The probes' rewards; `None`, with a warning, if the model cannot be run here, as for want of memory."""
        mixed = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        try:
            return take_fingerprint(
                self._rewards_as_saved,
                self.processing_class,
                conversational=self.conversational,
                dtype=mixed if self._is_spread and mixed else compute_dtype(base),
                longest=getattr(base.config.get_text_config(), "max_position_embeddings", None),
            )
        except RuntimeError as error:  # out of memory, or a kernel that knows half precision alone: never a lost save
            logger.warning("the fingerprint could not be taken, so the model cannot be verified: %s", error)
            return None

    def _rewards_as_saved(self, sequences: list[list[int]]) -> list[float]:
        model = self.model_wrapped if self._is_spread else self.accelerator.unwrap_model(self.model)
        return rewards_as_saved(model, sequences, sharded=self._is_spread)

    def _scale(self) -> tuple[float, float, str]:
        """Mean and standard deviation of rewards, and on what."""
        if self.reward_scale is not None:
            return *self.reward_scale, "evaluation"
        try:
            rewards = self._rewards_as_saved(self._sampled_sequences())
        except RuntimeError:
            rewards = []
        if not rewards:
            return 0.0, 1.0, "nothing"
        return float(np.mean(rewards)), float(np.std(rewards)), f"{len(rewards)} training sequences"

    def _sampled_sequences(self) -> list[list[int]]:
        """Those of a few training rows, taken evenly from all; from a stream, the first."""
        data = self.train_dataset
        if isinstance(data, Dataset):
            rows = data.select(np.linspace(0, len(data) - 1, min(_SAMPLED_ROWS, len(data)), dtype=int)).to_list()
        else:
            with self.reports["train"].unchanged():
                rows = list(islice(iter(data), _SAMPLED_ROWS))
        return [ids for row in rows for ids in row.get("sequence_ids") or (row["chosen_ids"], row["rejected_ids"])]

    # Reading it again

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_description(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_description(Path(self.state.best_model_checkpoint))

    def _load_description(self, checkpoint: Path) -> None:
        description = read_metadata(checkpoint)
        if description.get("rewards", {}).get("of") == "evaluation":
            self.reward_scale = description["rewards"]["mean"], description["rewards"]["std"]
        self.objective.restore(description)

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
        base = base_model(self.accelerator.unwrap_model(self.model))
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
            adapter=base is not self.accelerator.unwrap_model(self.model),
            dtype=str(base.dtype)[6:],
            quantized=describe_quantization(base) is not None,
            tags=tags,
        )
