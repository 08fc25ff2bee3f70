"""The uncertainty that is saved beside the weights of a model, attached to the model when it is loaded for scoring."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plaudit.checkpoint.heads_file import HEADS_FILE, SavedHeads
from plaudit.checkpoint.laplace_file import LAPLACE_FILE, SavedLaplace
from plaudit.errors import CheckpointError, ConfigError, ModelError
from plaudit.models.adapters import base_model
from plaudit.models.laplace_head import HeadFeatures, LaplaceHead
from plaudit.models.member_heads import MemberHeads, attach_member_heads, is_mean_of_members, member_heads
from plaudit.models.precision import compute_dtype
from plaudit.models.reward_head import attach_uncertainty, bind_reward_forward, trained_head
from plaudit.scoring.ensemble_engine import EnsembleEngine
from plaudit.uncertainty import PosteriorUncertainty, Uncertainty

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from plaudit.scoring.reward_model import RewardModel

__all__ = ["attach_posterior", "attach_saved_uncertainty", "features_as_columns"]


def attach_saved_uncertainty(
    model: "PreTrainedModel | PeftModel", path_or_id: str, recorded: int | None = None, **hub: Any
) -> Uncertainty | None:
    """Attach the member heads or the posterior of the head that are saved with a model, if there are any.

    Args:
        model: The loaded model. Changed in place.
        path_or_id: The folder or hub id that the model was loaded from.
        recorded: The number of members that the model's `reward.json` names, if it does.
        **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

    Returns:
        The reader of the columns that the model now gives; `None` for a model that gives the reward alone.

    Raises:
        CheckpointError: The file is missing, not whole, or of another model.
    """
    # On the hub, where each look-up takes time, only what `reward.json` names is looked up, else a posterior.
    heads = SavedHeads.read(path_or_id, **hub) if recorded or Path(path_or_id).is_dir() else None
    if heads is None and recorded:
        raise CheckpointError(
            f"{path_or_id}: reward.json names {recorded} members, and {HEADS_FILE}, which holds them, is missing. Copy "
            "it to the other files; or remove `members` from reward.json to use the members' mean alone."
        )
    if heads is None:
        posterior = SavedLaplace.read(path_or_id, **hub)
        return None if posterior is None else attach_posterior(model, posterior, path_or_id)
    base = _bound_base(model)
    try:
        attach_member_heads(base, MemberHeads(heads.weight, heads.bias), is_trainable=False)
    except ModelError as error:
        raise CheckpointError(
            f"{path_or_id}: {HEADS_FILE} is of another model: {error} Copy the model's own."
        ) from error
    if not is_mean_of_members(base):
        raise CheckpointError(
            f"{path_or_id}: the head of the model is not the mean of the members in {HEADS_FILE}, so the weights and "
            "the members are of two different models. Save the model again, or remove the file to use the head alone."
        )
    return heads.constants


def attach_posterior(
    model: "PreTrainedModel | PeftModel", posterior: SavedLaplace, path_or_id: str
) -> PosteriorUncertainty:
    """Attach a posterior to the head that it was fitted for, and return the reader of the columns.

    Args:
        model: The model. Changed in place.
        posterior: The posterior.
        path_or_id: The folder or hub id of the model, for the message of the error.

    Raises:
        CheckpointError: The head is not the one that the posterior was fitted for.
    """
    base = _bound_base(model)
    head = trained_head(base).weight
    if not posterior.is_of_head(head, compute_dtype(base)):
        raise CheckpointError(
            f"{path_or_id}: {LAPLACE_FILE} was fitted for another head than that of the model, which may have been "
            "trained on since. Run `plaudit laplace MODEL DATA` again, or remove the file to use the rewards alone."
        )
    constants = posterior.constants
    attach_uncertainty(
        base, LaplaceHead(posterior.factor, posterior.feature_mean, constants.num_samples).to(head.device)
    )
    return constants


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
    if member_heads(model) is not None or isinstance(reward_model.engine, EnsembleEngine):
        raise ConfigError(f"{reward_model.name}: expected a model with one head, got an ensemble.")
    head = trained_head(model).weight
    before = getattr(model, "uncertainty", None)
    attach_uncertainty(model, HeadFeatures(head.shape[1]))
    try:
        yield head.detach().flatten().to("cpu", compute_dtype(model))
    finally:
        attach_uncertainty(model, before)


def _bound_base(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """Return the model without its adapter, with the float32 head to which an uncertainty is attached."""
    base = base_model(model)
    bind_reward_forward(base, keep_forward=not type(base).forward.__module__.startswith("transformers."))
    return base
