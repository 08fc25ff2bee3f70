"""The training objective: from the rewards of a batch to one loss for each comparison."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plaudit.errors import ConfigError
from plaudit.losses import bradley_terry, centering, hinge, plackett_luce, rao_kupper
from plaudit.training.batch import Batch
from plaudit.training.config import RewardConfig

__all__ = ["Objective"]

_FIRST_THRESHOLD = 0.5  # of a learnt one, in reward units: two equal rewards then tie with probability 0.24
_THRESHOLD_LR = 0.01  # one number of the size of a reward, which would hardly move at a model's learning rate


class Objective(nn.Module):
    """The loss that the options of a run ask for.

    Attributes:
        raw_threshold: The tie threshold before its softplus, of shape [], where it is learnt, else `None`. It belongs
            to the optimiser and the checkpoint, never to the model.
    """

    def __init__(self, args: RewardConfig) -> None:
        super().__init__()
        self.args, self._is_distributed = args, args.world_size > 1
        self.raw_threshold: nn.Parameter | None = None
        if args.loss_type == "ties" and args.tie_threshold is None:
            self.raw_threshold = nn.Parameter(torch.tensor(_inverse_softplus(_FIRST_THRESHOLD), device=args.device))
            self.raw_threshold.register_hook(self._average_over_processes)  # no wrapper of the model has this parameter

    @contextmanager
    def local_backward(self) -> Iterator[None]:
        """Let a backward pass of this process alone run without an exchange between processes."""
        is_distributed, self._is_distributed = self._is_distributed, False
        try:
            yield
        finally:
            self._is_distributed = is_distributed

    def _average_over_processes(self, gradient: torch.Tensor) -> torch.Tensor:
        if not self._is_distributed:
            return gradient
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient / torch.distributed.get_world_size()

    def threshold(self) -> torch.Tensor | None:
        """Return the tie threshold in reward units, of shape []; `None` for a loss without one."""
        if self.raw_threshold is not None:
            return nn.functional.softplus(self.raw_threshold)
        if self.args.loss_type == "ties":
            # On the host, where its sign is checked without a wait for a GPU.
            return torch.tensor(float(self.args.tie_threshold or 0.0))
        return None

    def add_to_optimizer(self, optimizer: torch.optim.Optimizer, *, can_grow: bool) -> torch.optim.Optimizer:
        """Return the optimiser with the tie threshold as a parameter group, if one is learnt.

        Args:
            optimizer: The optimiser of the model; changed in place.
            can_grow: Whether groups can be added; not under FSDP, DeepSpeed or a scheduler that knows the groups.

        Raises:
            ConfigError: The threshold is learnt, and the optimiser cannot take it.
        """
        threshold = self.raw_threshold
        if threshold is None or any(threshold is each for group in optimizer.param_groups for each in group["params"]):
            return optimizer
        if not can_grow:
            raise ConfigError(
                "tie_threshold: with FSDP, DeepSpeed or a scheduler of your own it cannot be learnt. Give a number."
            )
        optimizer.add_param_group({"params": [threshold], "lr": _THRESHOLD_LR, "weight_decay": 0.0})
        return optimizer

    def to_metadata(self) -> dict[str, Any]:
        """Return the entries of `reward.json` about the loss; `raw_tie_threshold` is for `restore`, which is exact."""
        threshold = self.threshold()
        if threshold is None:
            return {"loss_type": self.args.loss_type}
        learnt = {} if self.raw_threshold is None else {"raw_tie_threshold": self.raw_threshold.item()}
        return {"loss_type": self.args.loss_type, "tie_threshold": threshold.item()} | learnt

    def restore(self, metadata: dict[str, Any]) -> None:
        """Set the threshold to that of a checkpoint's `reward.json`, if it was learnt there and is learnt here."""
        if self.raw_threshold is not None and "raw_tie_threshold" in metadata:
            with torch.no_grad():
                self.raw_threshold.fill_(metadata["raw_tie_threshold"])

    def forward(self, rewards: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each comparison [C] from rewards [N], before it is multiplied by any weight."""
        first, second = rewards[batch.comparisons].unbind(-1)  # [C] each
        options: dict[str, Any] = {
            "margin": batch.margin, "label": batch.label, "label_smoothing": self.args.label_smoothing,
        }  # fmt: skip
        threshold = self.threshold()
        if self.args.loss_type == "hinge":
            losses = hinge(first, second, **options)
        elif threshold is not None:
            tie = torch.zeros_like(first, dtype=torch.bool) if batch.tie is None else batch.tie
            losses = rao_kupper(first, second, tie, threshold, **options)
        elif self.args.loss_type == "plackett_luce" and batch.sequence_rank is not None:
            losses = _ranking_losses(rewards, batch, options)
        else:  # also Plackett-Luce on pairs from a collator of the user, which are rankings of two
            losses = bradley_terry(first, second, **options)
        if self.args.center_rewards_coefficient is not None:
            losses = losses + self.args.center_rewards_coefficient * centering(first, second)
        return losses

    def of_members(self, members: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean over K members of the loss of each comparison [C], from their rewards [N, K].

        Each member's loss is multiplied by the weight of the row for this member.
        """
        losses = torch.stack([self(rewards, batch) for rewards in members.unbind(-1)], dim=-1)  # [C, K]
        if batch.member_weight is not None:
            losses = losses * batch.member_weight[batch.comparison_row]
        return losses.mean(-1)


def _ranking_losses(rewards: torch.Tensor, batch: Batch, options: dict[str, Any]) -> torch.Tensor:
    """Return for each comparison [C] the mean over the places of the ranking of its row.

    The losses of a row's comparisons, each in units of one over their number, thus sum up to the loss of the ranking.
    """
    assert batch.sequence_rank is not None
    places, row = plackett_luce(rewards, batch.sequence_row, batch.sequence_rank, **options)
    totals = places.new_zeros(len(rewards)).index_add(0, row, places)  # [N], of which the first R are used
    counts = places.new_zeros(len(rewards)).index_add(0, row, torch.ones_like(places))
    return (totals / counts.clamp(min=1))[batch.comparison_row]


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
