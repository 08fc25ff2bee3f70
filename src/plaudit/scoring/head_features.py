"""The features at the input of a reward model's head, as the columns of its sequences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from plaudit.errors import ConfigError
from plaudit.models.adapters import base_model
from plaudit.models.laplace_head import HeadFeatures
from plaudit.models.member_heads import member_heads
from plaudit.models.precision import compute_dtype
from plaudit.models.reward_head import attach_uncertainty, head_names

if TYPE_CHECKING:
    from plaudit.scoring.reward_model import RewardModel

__all__ = ["features_as_columns"]


@contextmanager
def features_as_columns(reward_model: "RewardModel") -> Iterator[torch.Tensor]:
    """Put the features of each sequence beside its reward within this context: columns [N, 1 + H].

    The features are float32, whatever the precision of the model. `RewardModel.begin_call` gives the columns.

    Args:
        reward_model: A model with one head. What it said of its uncertainty before holds again at the end.

    Yields:
        The weight of the head on the CPU, in the precision of the model, shape [H].

    Raises:
        ConfigError: The model is an ensemble.
    """
    model = base_model(reward_model.model)
    if member_heads(model) is not None:
        raise ConfigError(f"{reward_model.name}: expected a model with one head, got an ensemble.")
    head = model.get_submodule(head_names(model)[-1]).weight  # under PEFT, the trained copy comes after the original
    before = getattr(model, "uncertainty", None)
    attach_uncertainty(model, HeadFeatures(head.shape[1]))
    try:
        yield head.detach().flatten().to("cpu", compute_dtype(model))
    finally:
        attach_uncertainty(model, before)
