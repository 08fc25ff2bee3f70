"""The heads of an ensemble on one backbone: K linear heads, whose mean is the head that is saved as the model's own."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from plaudit.errors import ModelError
from plaudit.models.reward_head import attach_uncertainty, head_names, trained_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "MemberHeads",
    "add_member_heads",
    "attach_member_heads",
    "is_mean_of_members",
    "mean_head_is_saved",
    "member_heads",
    "num_members",
    "set_member_heads",
    "whole_heads",
    "write_mean_head",
]


class MemberHeads(nn.Module):
    """K linear heads that put the reward of each member beside the reward of the model.

    The mean of linear heads is one linear head (arXiv 2310.02743 and 2406.01013 average K members), so the model's own
    head can be that mean, and a program that knows of no members scores the ensemble's mean.

    Args:
        weight: The heads, float32, shape [K, hidden].
        bias: Their biases, shape [K], if the model's head has one.

    Attributes:
        num_columns: 1 + K, the reward and the members.
        are_ahead: Whether the members train, so that the model's own head is not yet their mean again.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self.num_columns, self.are_ahead = 1 + len(weight), False

    def forward(self, features: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Map features [..., hidden] and rewards [..., 1] to [..., 1 + K], the reward first.

        While the members train, the first column is their mean rather than what the model's own head gives.
        """
        bias = None if self.bias is None else self.bias.float()
        members = nn.functional.linear(features, self.weight.float(), bias)
        first = members.mean(-1, keepdim=True) if self.are_ahead else rewards
        return torch.cat([first, members], -1)


def member_heads(model: "PreTrainedModel") -> MemberHeads | None:
    """Return the member heads of a model, not wrapped in PEFT; `None` where it has none."""
    found = getattr(model, "uncertainty", None)
    return found if isinstance(found, MemberHeads) else None


def num_members(model: "PreTrainedModel") -> int:
    """Return the number K of the member heads of a model, not wrapped in PEFT; 0 where it has none."""
    members = member_heads(model)
    return 0 if members is None else members.num_columns - 1


def add_member_heads(model: "PreTrainedModel", count: int, seed: int, *, around_head: bool) -> None:
    """Give a model K new heads that train, and freeze its own head, which is their mean whenever the model is saved.

    Args:
        model: A model with `RewardHead`s, not wrapped in PEFT (pass its base model then). Changed in place.
        count: K, at least 2.
        seed: The seed of the weights; the random state of the process is neither used nor changed.
        around_head: Draw the members around the model's head, so that their mean gives its rewards; otherwise around 0,
            as new heads are drawn.
    """
    head = trained_head(model)
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    weight = torch.empty(count, head.in_features).normal_(0, std, generator=torch.Generator().manual_seed(seed))
    bias = None if head.bias is None else torch.zeros(count)
    if around_head:
        weight = weight - weight.mean(0) + _whole(head.weight)
        bias = None if bias is None else bias + _whole(head.bias)
    attach_member_heads(model, MemberHeads(weight, bias), is_trainable=True)
    write_mean_head(model)


def attach_member_heads(model: "PreTrainedModel", members: MemberHeads, *, is_trainable: bool) -> None:
    """Give a model member heads; with `is_trainable` they train, and the model's own head is frozen.

    Raises:
        ModelError: The members do not fit the model's head.
    """
    head = trained_head(model)
    if members.weight.shape[1] != head.in_features or (members.bias is None) != (head.bias is None):
        raise ModelError(
            f"expected members of {head.in_features} features {'without' if head.bias is None else 'with'} a bias, as "
            f"the model's head has, got {members.weight.shape[1]} {'without' if members.bias is None else 'with'} one."
        )
    attach_uncertainty(model, members.to(head.weight.device).requires_grad_(is_trainable))
    members.are_ahead = is_trainable
    if is_trainable:
        for name in head_names(model):
            model.get_submodule(name).requires_grad_(False)


@torch.no_grad()
def set_member_heads(model: "PreTrainedModel", weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give the members of a model, sharded or not, the values of saved ones: weight [K, hidden] and bias [K]."""
    members = member_heads(model)
    assert members is not None
    for parameter, value in ((members.weight, weight), (members.bias, bias)):
        if parameter is not None and value is not None:
            with _gathered(parameter):
                parameter.copy_(_distributed_like(parameter, value.to(parameter.device)))


def whole_heads(model: "PreTrainedModel") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight [K, hidden] and bias [K] of the members, on the CPU; of a sharded model all processes call this."""
    members = member_heads(model)
    assert members is not None
    return _whole(members.weight), None if members.bias is None else _whole(members.bias)


@torch.no_grad()
def write_mean_head(model: "PreTrainedModel") -> None:
    """Set the model's own head to the mean of its members. Of a sharded model all processes must call this."""
    members = member_heads(model)
    if members is None:
        return
    head = trained_head(model)
    pairs = [(head.weight, members.weight)] + ([] if members.bias is None else [(head.bias, members.bias)])
    for own, each in pairs:
        mean = _whole(each).mean(0)
        with _gathered(own):
            own.copy_(_distributed_like(own, mean.view(own.shape).to(own.device, own.dtype)))


@contextmanager
def mean_head_is_saved(model: "PreTrainedModel") -> Iterator[None]:
    """Let the frozen mean of the members count as trained while a model is saved.

    Of an adapter under ZeRO-3 only parameters that train are gathered, and PEFT looks for its whole head among them.
    """
    frozen = [] if member_heads(model) is None else [p for p in trained_head(model).parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def is_mean_of_members(model: "PreTrainedModel") -> bool:
    """Return whether the model's own head is the mean of its members, up to the precision that it was saved in."""
    members, head = member_heads(model), trained_head(model)
    if members is None:
        return False
    pairs = [(head.weight, members.weight)] + ([] if members.bias is None else [(head.bias, members.bias)])
    return all(_is_rounded(own.detach().float().flatten(), each.detach().mean(0).flatten()) for own, each in pairs)


def _is_rounded(values: torch.Tensor, exact: torch.Tensor) -> bool:
    """Return whether values are exact ones, rounded to the coarsest precision that holds the values as they are."""
    precisions = (torch.bfloat16, torch.float16, torch.float32)
    precision = next(each for each in precisions if torch.equal(values.to(each).float(), values))
    return bool((values - exact).abs().max() <= 2 * torch.finfo(precision).eps * exact.abs().max())


@torch.no_grad()
def _whole(parameter: torch.Tensor) -> torch.Tensor:
    """Return a copy of a parameter on the CPU, put together from its shards under FSDP2 and ZeRO-3."""
    with _gathered(parameter):
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        return whole.detach().float().cpu().clone()


def _distributed_like(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """Return a whole value, shared out over devices as a parameter is under FSDP2; elsewhere as it is."""
    if not hasattr(parameter, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor  # takes a second to import

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _gathered(parameter: torch.Tensor) -> AbstractContextManager[None]:
    """Return a context in which a parameter is whole under ZeRO-3; at its end its shards have what was changed."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed import zero  # type: ignore[import-not-found]  # not a dependency

    return zero.GatheredParameters(parameter, modifier_rank=0)
