"""What a model computes in, and what that leaves of its rewards."""

from typing import Any

import torch
from transformers import PreTrainedModel

from plaudit.models.steady import rounds_its_inputs

__all__ = ["precision_of", "share_of_rounding"]

# Adding up a product's terms in another order costs a few units in the last place each layer; 8 leave room for deep
# models, and anything wrong (a mask, a head, a token) moves rewards by much more.
_ROUNDINGS = 8
_LEAST_SHARE = 1e-4


def precision_of(model: PreTrainedModel) -> torch.dtype:
    """The coarsest of the precisions that a model's backbone computes in, autocast apart.

    Some weights may be kept wider than the products are computed in: norms, adapters, or all that is not quantised.
    """
    kinds = {p.dtype for p in model.base_model.parameters() if p.is_floating_point()}
    quantization: Any = getattr(model.config, "quantization_config", None)
    if getattr(quantization, "load_in_4bit", False):
        kinds.add(quantization.bnb_4bit_compute_dtype)
    if rounds_its_inputs(model):
        kinds.add(torch.bfloat16)  # 8 bits of an integer are about as fine
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def share_of_rounding(precision: torch.dtype) -> float:
    """By what share of their size rewards may differ from rounding alone: 1e-4 in float32, 0.8% in fp16, 6% in bf16."""
    return max(_LEAST_SHARE, _ROUNDINGS * torch.finfo(precision).eps)
