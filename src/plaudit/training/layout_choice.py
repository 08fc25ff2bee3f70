"""The layout of batches: chosen from the kind of the model, then confirmed on real rows."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from plaudit.errors import ConfigError
from plaudit.forest import attention
from plaudit.models.adapters import base_model, has_virtual_tokens
from plaudit.models.equivalence import layouts_differ, probe_size, reason_for_padding
from plaudit.models.precision import compute_dtype
from plaudit.training.config import RewardConfig
from plaudit.training.distributed import is_sharded
from plaudit.training.random_state import keep_random_state

if TYPE_CHECKING:
    from peft import PeftModel

    from plaudit.training.trainer import RewardTrainer

__all__ = ["ConfirmLayout", "choose_layout", "confirm_layout"]

logger = logging.getLogger(__name__)

_PROBED_ROWS = 4


def choose_layout(model: "PreTrainedModel | PeftModel", args: RewardConfig, *, own_code: str | None = None) -> str:
    """Choose "forest" or "padded", and log once which and why; a model that is to run forests is enabled for it.

    Args:
        model: The model as the trainer will wrap it.
        args: The options of the run.
        own_code: The name of the user's own code that makes or reads batches in TRL's shape, if there is any.

    Raises:
        ConfigError: `batch_layout` asks for a forest, and the model or the collator cannot; or prefix or prompt tuning
            is combined with checkpointing.
    """
    if has_virtual_tokens(model) and args.activation_checkpointing:
        raise ConfigError(
            "prefix and prompt tuning do not work under checkpointing, which leaves out the virtual tokens' cache. "
            "Set `gradient_checkpointing=False`."
        )
    if args.batch_layout == "padded":
        return "padded"
    reason = reason_for_padding(model)
    if reason is None and own_code is not None:
        reason = f"{own_code} expects TRL's batches"
    if reason is None:
        attention.enable(base_model(model))
        logger.info("batch layout: token forest (no padding, each shared prefix runs once)")
        return "forest"
    if args.batch_layout == "forest":
        raise ConfigError(f"batch_layout='forest' is not possible: {reason}. Use 'auto' or 'padded'.")
    logger.info("batch layout: padded, since %s", reason)
    return "padded"


def confirm_layout(trainer: "RewardTrainer", model: nn.Module) -> None:
    """Score a few rows in both layouts, and train padded from here on if their rewards differ.

    Every process must call this, and the first one decides for all. The random state, the weights and the counts of a
    stream stay as they were.

    Args:
        trainer: The trainer, whose collator changes its layout.
        model: The model to run: the wrapped one if it is sharded.

    Raises:
        ConfigError: The rewards differ, and `batch_layout` asks for a forest.
    """
    if trainer.layout != "forest" or trainer.layout_is_confirmed:
        return
    trainer.layout_is_confirmed = True
    was_training = model.training
    with torch.no_grad(), keep_random_state():
        rows = _first_rows(trainer)
        model.eval()
        try:
            reasons = [_difference(trainer, model, rows) if rows else None]
        finally:
            model.train(was_training)
    (reason,) = broadcast_object_list(reasons)
    if reason is None:
        return
    if trainer.args.batch_layout == "forest":
        raise ConfigError(f"batch_layout='forest' is not possible: {reason}. Use 'auto' or 'padded'.")
    logger.warning("batch layout: padded from here on, since %s", reason)
    trainer.data_collator.layout = "padded"


class ConfirmLayout(TrainerCallback):
    """Confirms the layout of a sharded model, whose weights are on their devices only when training begins.

    Args:
        trainer: The trainer, with the model wrapped and the batches planned.
    """

    def __init__(self, trainer: "RewardTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Compare the layouts.

        Raises:
            ConfigError: The layouts differ, and batches were planned by the tokens of the other one.
        """
        trainer, planned = self.trainer, self.trainer.layout
        if is_sharded(trainer):
            confirm_layout(trainer, trainer.model_wrapped)
        if trainer.layout != planned and trainer.args.max_tokens_per_batch is not None:
            raise ConfigError(
                "max_tokens_per_batch: the batches are planned for the forest, which this model cannot run (see "
                "the warning above). Set batch_layout='padded'."
            )


def _difference(trainer: "RewardTrainer", model: nn.Module, rows: list[dict[str, Any]]) -> str | None:
    """Return the reason against the forest, if the two layouts do not give the same rewards."""
    collator, args = trainer.data_collator, trainer.args
    sequences, sequence_row = collator.sequences(rows)
    count = probe_size([len(ids) for ids in sequences])
    sequences, sequence_row = sequences[:count], sequence_row[:count]

    def score(layout: str, float32: bool) -> torch.Tensor:
        inputs = replace(collator, layout=layout).model_inputs(sequences, sequence_row)
        # An evaluation before has wrapped the forward in accelerate's autocast, which float32 must do without.
        forward = vars(model).get("_original_forward", model) if float32 else model
        with nullcontext() if float32 else trainer.accelerator.autocast():
            outputs = forward(**{name: tensor.to(args.device) for name, tensor in inputs.items()})
        return outputs.logits[:, 0].float()

    base = base_model(trainer.model)
    dtype = args.mixed_dtype or compute_dtype(base)
    return layouts_differ(base, score, dtype=dtype, can_use_float32=not is_sharded(trainer))


def _first_rows(trainer: "RewardTrainer") -> list[dict[str, Any]]:
    dataset = trainer.train_dataset
    if isinstance(dataset, Dataset):
        return dataset.select(range(min(_PROBED_ROWS, len(dataset)))).to_list()
    with trainer.reports["train"].unchanged():
        return list(islice(iter(dataset), _PROBED_ROWS))
