"""The uncertainty that is saved beside the weights of a model, attached to the model when it is loaded for scoring."""

from typing import TYPE_CHECKING, Any

from plaudit.checkpoint.heads_file import HEADS_FILE, SavedHeads
from plaudit.checkpoint.laplace_file import LAPLACE_FILE, SavedLaplace
from plaudit.errors import CheckpointError, ModelError
from plaudit.models.adapters import base_model
from plaudit.models.laplace_head import LaplaceHead
from plaudit.models.member_heads import MemberHeads, attach_member_heads, is_mean_of_members
from plaudit.models.precision import compute_dtype
from plaudit.models.reward_head import attach_uncertainty, bind_reward_forward, head_names
from plaudit.uncertainty import PosteriorUncertainty, Uncertainty

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["attach_posterior", "attach_saved_uncertainty"]


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
    heads = SavedHeads.read(path_or_id, **hub)
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
    head = base.get_submodule(head_names(base)[-1]).weight  # under PEFT, the trained copy comes after the original
    if not posterior.is_of_head(head, compute_dtype(base)):
        raise CheckpointError(
            f"{path_or_id}: {LAPLACE_FILE} was fitted for another head than that of the model, which may have been "
            "trained on since. Run `plaudit laplace MODEL DATA` again, or remove the file to use the rewards alone."
        )
    attach_uncertainty(base, LaplaceHead(posterior.factor, posterior.feature_mean).to(head.device))
    return posterior.constants


def _bound_base(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """Return the model without its adapter, with the float32 head to which an uncertainty is attached."""
    base = base_model(model)
    bind_reward_forward(base, keep_forward=not type(base).forward.__module__.startswith("transformers."))
    return base
