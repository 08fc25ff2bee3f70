"""The uncertainty that is saved beside the weights of a model, attached to the model when it is loaded for scoring."""

from typing import TYPE_CHECKING, Any

from plaudit.checkpoint.heads_file import HEADS_FILE, SavedHeads
from plaudit.errors import CheckpointError
from plaudit.models.adapters import base_model
from plaudit.models.member_heads import MemberHeads, attach_member_heads, is_mean_of_members
from plaudit.models.reward_head import bind_reward_forward
from plaudit.uncertainty import Uncertainty

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["attach_saved_uncertainty"]


def attach_saved_uncertainty(
    model: "PreTrainedModel | PeftModel", path_or_id: str, recorded: int | None = None, **hub: Any
) -> Uncertainty | None:
    """Attach the member heads that are saved with a model, if there are any.

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
        return None
    base = base_model(model)
    bind_reward_forward(base, keep_forward=not type(base).forward.__module__.startswith("transformers."))
    attach_member_heads(base, MemberHeads(heads.weight, heads.bias), is_trainable=False)
    if not is_mean_of_members(base):
        raise CheckpointError(
            f"{path_or_id}: the head of the model is not the mean of the members in {HEADS_FILE}, so the weights and "
            "the members are of two different models. Save the model again, or remove the file to use the head alone."
        )
    return heads.constants
