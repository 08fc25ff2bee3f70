"""Which layout a run uses: chosen from what the model says of itself, then tried on real rows."""

import logging

from peft import PeftModel
from transformers import PreTrainedModel

from plaudit.errors import ConfigError
from plaudit.forest import attention
from plaudit.models.adapters import base_model
from plaudit.models.equivalence import has_virtual_tokens, reason_for_padding
from plaudit.training.config import RewardConfig

__all__ = ["choose_layout"]

logger = logging.getLogger(__name__)


def choose_layout(model: "PreTrainedModel | PeftModel", args: RewardConfig, *, own_code: str | None = None) -> str:
    """Choose "forest" or "padded", and say once which and why; a model that is to run forests is enabled for it.

    Args:
        model: As the trainer will wrap it.
        args: The run's options.
        own_code: The user's own code that makes or reads batches in TRL's shape, if there is any.

    Raises:
        ConfigError: `batch_layout` asks for a forest, and the model or the collator cannot; or prefix or prompt tuning
            is combined with checkpointing.
    """
    base = base_model(model)
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
        attention.enable(base)
        logger.info("batch layout: token forest (no padding, each shared prefix runs once)")
        return "forest"
    if args.batch_layout == "forest":
        raise ConfigError(f"batch_layout='forest' is not possible: {reason}. Use 'auto' or 'padded'.")
    logger.info("batch layout: padded, since %s", reason)
    return "padded"
