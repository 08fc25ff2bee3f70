"""The files beside the weights of a reward model: `reward.json`, the contract in its config, and its card."""

import logging
import shutil
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from plaudit.checkpoint.card import write_model_card
from plaudit.checkpoint.fingerprint import Fingerprint, columns_as_saved, take_fingerprint
from plaudit.checkpoint.heads_file import HEADS_FILE, SavedHeads
from plaudit.checkpoint.metadata import (
    METADATA_FILE,
    library_versions,
    read_metadata,
    rendering_metadata,
    set_contract,
    write_metadata,
)
from plaudit.checkpoint.verify import Verification, verify_and_record
from plaudit.errors import CheckpointError
from plaudit.models.load import max_positions
from plaudit.models.member_heads import member_heads, num_members, set_member_heads, whole_heads, write_mean_head
from plaudit.models.precision import compute_dtype
from plaudit.models.quantization import describe_quantization
from plaudit.models.reward_head import head_names
from plaudit.training.distributed import greatest_over_processes, is_sharded
from plaudit.uncertainty import MemberUncertainty, UnmeasuredMembers

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

__all__ = ["RewardMetadata"]

logger = logging.getLogger(__name__)

_SAMPLED_ROWS = 16  # of the training data, for the scale of a model that was never evaluated
_SAMPLED_ROWS_OF_MEMBERS = 64  # since members are compared by their scales

# The options that the model card shows; training_args.bin holds all.
_CARD_OPTIONS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_tokens_per_batch", "max_length", "overlong", "loss_type", "center_rewards_coefficient", "bf16", "fp16", "seed",
    "num_heads",
)  # fmt: skip


class RewardMetadata:
    """Writes what a reward model's folder says of the model, verifies the folder, and reads it on resuming.

    Args:
        trainer: The trainer whose model is saved.

    Attributes:
        reward_scale: Mean and standard deviation of the rewards in the last evaluation; `None` before.
        member_constants: Centre and scale of the members of an ensemble in an evaluation of the weights as they are;
            `None` without one.
        verification: The result of the last verification of a save; `None` before.
    """

    def __init__(self, trainer: "RewardTrainer") -> None:
        self.trainer = trainer
        self.reward_scale: tuple[float, float] | None = None
        self.member_constants: MemberUncertainty | None = None
        self._heads: SavedHeads | None = None  # of the model that is being saved
        self.verification: Verification | None = None
        self._verified: dict[str, Any] = {}  # fingerprint and verification of the last save that was verified

    def prepare(self) -> dict[str, Any]:
        """Write the contract into the model's config and return the content of `reward.json`, before weights are saved.

        All processes must call this for a sharded model; elsewhere only the one that saves does.

        Raises:
            CheckpointError: A weight is not finite.
        """
        trainer = self.trainer
        base = self.trainer.bare_model
        _check_finite(trainer)
        write_mean_head(base)
        head, weights = head_names(base)[0].split(".")[0], str(base.dtype).removeprefix("torch.")
        fingerprint = self._take_fingerprint(base)
        (mean, std, origin), self._heads = self._measure(base)
        set_contract(base.config, head, mean, std)
        args = trainer.args
        metadata = {
            "versions": library_versions(),
            **trainer.objective.to_metadata(),
            "rendering": rendering_metadata(
                trainer.processing_class,
                fingerprint.ids[0] if fingerprint else [],
                conversational=trainer.conversational,
                max_length=args.max_length,
            ),
            "head": {"name": head, "trained_in": "float32"},
            "members": None if self._heads is None else len(self._heads.weight),
            "training": {
                "weights": weights,
                "precision": "bf16 mixed" if args.bf16 else "fp16 mixed" if args.fp16 else weights,
                "attention": base.config._attn_implementation,
                "layout": trainer.layout,
                "processes": args.world_size,
            },
            "quantization": describe_quantization(base),
            "rewards": {"mean": mean, "std": std, "of": origin},
            "fingerprint": fingerprint and fingerprint.as_json(),
        }
        if self._verified.get("fingerprint") == metadata["fingerprint"]:
            metadata |= self._verified  # the same model, saved again, as a push to the hub does
        return metadata

    def write(self, folder: Path, metadata: dict[str, Any]) -> None:
        """Write `reward.json`, the members of an ensemble and the model card into a folder in which the model lies."""
        write_metadata(folder, metadata)
        if self._heads is not None:
            self._heads.write(folder)
        self.write_card(folder)

    def copy_for_push(self, checkpoint: Path) -> None:
        """Copy `reward.json`, the members and the card of a checkpoint to the folder that the Trainer uploads with it.

        The Trainer copies the files of a checkpoint that it knows of.
        """
        args = self.trainer.args
        if args.push_to_hub and args.should_save:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            members = () if self._heads is None else (HEADS_FILE,)
            for name in (METADATA_FILE, "README.md", *members):
                shutil.copy(checkpoint / name, Path(args.output_dir, name))

    def verify(self, folder: Path, *, again: bool) -> None:
        """Reload a saved folder in a fresh process and compare its rewards.

        Args:
            folder: The folder, complete.
            again: Also if this very model was saved and verified before; a push to the hub need not.

        Raises:
            CheckpointError: The reloaded model gives other rewards.
        """
        if not again and "verification" in read_metadata(folder):
            return
        logger.info("reloading the saved model in a fresh process, to compare its rewards with this one's ...")
        self.verification = verify_and_record(folder, trust_remote_code=self.trainer.args.trust_remote_code)
        recorded = read_metadata(folder)
        self._verified = {name: recorded[name] for name in ("fingerprint", "verification")}
        for finding in self.verification.findings:
            if finding.holds is None:
                logger.warning("%s: %s", finding.layer, finding.message)
        if self.verification.status == "verified":
            logger.info("verified with %s: %s", self.verification.engine, self.verification.findings[-1].message)
        else:
            logger.warning("NOT VERIFIED: it is not proven that '%s' scores as the model did in training", folder)

    def restore(self, checkpoint: Path) -> None:
        """Take over the members, the scale of rewards and the tie threshold of a checkpoint that a run resumes from.

        Raises:
            CheckpointError: The checkpoint has another number of members than the run.
        """
        metadata = read_metadata(checkpoint)
        if metadata.get("rewards", {}).get("of") == "evaluation":
            self.reward_scale = metadata["rewards"]["mean"], metadata["rewards"]["std"]
        self.trainer.objective.restore(metadata)
        self._restore_members(checkpoint)

    def _restore_members(self, checkpoint: Path) -> None:
        heads, members = SavedHeads.read(checkpoint), member_heads(self.trainer.bare_model)
        found, expected = (1 if each is None else len(each.weight) for each in (heads, members))
        if found != expected:
            raise CheckpointError(
                f"the checkpoint '{checkpoint}' has {found} heads, and the run has {expected}. Set `num_heads={found}`."
            )
        if heads is None or members is None:
            return
        if heads.measured_on == "evaluation":
            self.member_constants = heads.constants
        set_member_heads(self.trainer.bare_model, heads.weight, heads.bias)

    def write_card(self, folder: Path, model_name: str | None = None, tags: tuple[str, ...] = ()) -> None:
        """Write the model card into a folder."""
        trainer, base = self.trainer, self.trainer.bare_model
        report, history, args = trainer.reports["train"], trainer.state.log_history, trainer.args
        logged = [entry for entry in history if "loss" in entry]
        evaluated = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
        options = {name: getattr(args, name) for name in _CARD_OPTIONS}
        location = trainer.hub_model_id or args.output_dir
        write_model_card(
            folder,
            model_name=model_name or Path(location).name,
            location=location,
            base_model=trainer.base_model_name or None,
            dataset_name=trainer.dataset_name,
            rows=None if report.streaming else report.kept,
            options={name: value for name, value in options.items() if value is not None},
            training_metrics=logged[-1] if logged else {},
            evaluation_metrics=evaluated[-1] if evaluated else {},
            conversational=trainer.conversational,
            adapter=base is not trainer.accelerator.unwrap_model(trainer.model),
            dtype=str(base.dtype).removeprefix("torch."),
            quantized=describe_quantization(base) is not None,
            members=num_members(base),
            tags=tags,
        )

    # Rewards of the model as it will be saved

    def _columns(self, sequences: list[list[int]]) -> list[list[float]]:
        trainer, sharded = self.trainer, is_sharded(self.trainer)
        model = trainer.model_wrapped if sharded else trainer.accelerator.unwrap_model(trainer.model)
        return columns_as_saved(model, sequences, sharded=sharded)

    def _take_fingerprint(self, base: PreTrainedModel) -> Fingerprint | None:
        """Return the rewards of the probes; `None`, with a warning, if the model cannot be run here."""
        args = self.trainer.args
        try:
            return take_fingerprint(
                self._columns,
                self.trainer.processing_class,
                conversational=self.trainer.conversational,
                dtype=(is_sharded(self.trainer) and args.mixed_dtype) or compute_dtype(base),
                longest=max_positions(base),
            )
        except RuntimeError as error:  # out of memory, or a kernel for half precision only: the save goes on
            logger.warning("the fingerprint could not be taken, so the model cannot be verified: %s", error)
            return None

    def _measure(self, base: PreTrainedModel) -> tuple[tuple[float, float, str], SavedHeads | None]:
        """Return mean, standard deviation and origin of the rewards, and the members with their constants, if any.

        What no evaluation has measured is measured on a sample of the training data.
        """
        has_members = member_heads(base) is not None
        columns, sample = np.zeros((0, 1)), "nothing"
        if self.reward_scale is None or (has_members and self.member_constants is None):
            try:
                columns = np.array(self._columns(self._sampled_sequences()))
                sample = f"{len(columns)} training sequences"
            except RuntimeError as error:  # as for the fingerprint
                logger.warning("the scale of the rewards could not be measured: %s", error)
        scale = (0.0, 1.0, sample)
        if self.reward_scale is not None:
            scale = *self.reward_scale, "evaluation"
        elif len(columns):
            scale = float(columns[:, 0].mean()), float(columns[:, 0].std()), sample
        if not has_members:
            return scale, None
        heads, bias = whole_heads(base)
        if self.member_constants is not None:
            return scale, SavedHeads(heads, bias, self.member_constants, "evaluation")
        measured = MemberUncertainty.measure(columns[:, 1:], columns[:, 0]) if len(columns) else None
        ones = (1.0,) * len(heads)
        unmeasured = UnmeasuredMembers((0.0,) * len(heads), ones, 1.0, lacking=self.trainer.args.output_dir)
        return scale, SavedHeads(heads, bias, measured or unmeasured, sample)

    def _sampled_sequences(self) -> list[list[int]]:
        """Return the sequences of a few training rows, taken evenly from all; of a stream, of the first rows."""
        data, count = self.trainer.train_dataset, _SAMPLED_ROWS
        if member_heads(self.trainer.bare_model) is not None:
            count = _SAMPLED_ROWS_OF_MEMBERS
        if isinstance(data, Dataset):
            rows = data.select(np.linspace(0, len(data) - 1, min(count, len(data)), dtype=int)).to_list()
        else:
            with self.trainer.reports["train"].unchanged():
                rows = list(islice(iter(data), count))
        return [ids for row in rows for ids in row.get("sequence_ids") or (row["chosen_ids"], row["rejected_ids"])]


def _check_finite(trainer: "RewardTrainer") -> None:
    """Raise a CheckpointError if a trained weight is not finite; of a sharded model each process checks its shards."""
    trained = {name: _local(p) for name, p in trainer.model.named_parameters() if p.requires_grad}
    # The greatest absolute value is not finite if any is not, and needs no second tensor of a weight's size.
    largest = {n: torch.linalg.vector_norm(weight, float("inf")) for n, weight in trained.items() if weight.numel()}
    bad = [name for name, value in largest.items() if not value.isfinite()]
    most = len(bad)
    if is_sharded(trainer):
        (most,) = greatest_over_processes([most], trainer.args.device)
    if most:
        where = f", the first '{bad[0]}'" if bad else " on another process"
        raise CheckpointError(
            f"{most} of {len(trained)} weights hold numbers that are not finite{where}: they are not saved, "
            "and earlier checkpoints stay as they are. Resume from one of them, with a lower learning rate."
        )


def _local(parameter: Any) -> torch.Tensor:
    """Return the part of a parameter that lies on this process, under FSDP2 and ZeRO-3 too."""
    if hasattr(parameter, "to_local"):
        return parameter.to_local().detach()
    return getattr(parameter, "ds_tensor", parameter).detach()
