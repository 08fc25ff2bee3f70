"""What a batch is trained for: from rewards and targets to one loss for each comparison."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plaudit.losses import bradley_terry, centering, hinge, plackett_luce, rao_kupper
from plaudit.training.collator import comparisons_of
from plaudit.training.config import RewardConfig

__all__ = ["Objective"]

_FIRST_THRESHOLD = 0.5  # of a learnt one, in reward units: two equal rewards then tie with probability 0.24


class Objective(nn.Module):
    """The loss that a run's options ask for.

    Attributes:
        raw_threshold: The tie threshold before its softplus, of shape [], where one is learnt, else `None`. It belongs
            to the optimiser and the checkpoint, never to the model.
    """

    def __init__(self, args: RewardConfig) -> None:
        super().__init__()
        self.args, self._together = args, True
        self.raw_threshold: nn.Parameter | None = None
        if args.loss_type == "ties" and args.tie_threshold is None:
            self.raw_threshold = nn.Parameter(torch.tensor(_raw(_FIRST_THRESHOLD), device=args.device))
            if args.world_size > 1:  # no wrapper of the model knows this parameter
                self.raw_threshold.register_hook(self._mean_over_processes)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A backward pass that other processes need not make."""
        self._together = False
        try:
            yield
        finally:
            self._together = True

    def _mean_over_processes(self, gradient: torch.Tensor) -> torch.Tensor:
        if not self._together:
            return gradient
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient / torch.distributed.get_world_size()

    def threshold(self) -> torch.Tensor | None:
        """The tie threshold in reward units, of shape []; `None` for a loss without one."""
        if self.raw_threshold is not None:
            return nn.functional.softplus(self.raw_threshold)
        if self.args.loss_type == "ties":
            return torch.tensor(float(self.args.tie_threshold or 0.0), device=self.args.device)
        return None

    def described(self) -> dict[str, Any]:
        """What a checkpoint says of the loss; `raw_tie_threshold` is for `restore`, which must be exact."""
        threshold = self.threshold()
        if threshold is None:
            return {"loss_type": self.args.loss_type}
        learnt = {} if self.raw_threshold is None else {"raw_tie_threshold": self.raw_threshold.item()}
        return {"loss_type": self.args.loss_type, "tie_threshold": threshold.item()} | learnt

    def restore(self, described: dict[str, Any]) -> None:
        """Go on from the threshold of a checkpoint, if one was learnt there and is learnt here."""
        if self.raw_threshold is not None and "raw_tie_threshold" in described:
            with torch.no_grad():
                self.raw_threshold.fill_(described["raw_tie_threshold"])

    def forward(self, rewards: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """One loss for each comparison [C] from rewards [N], not weighted yet."""
        first, second = rewards[comparisons_of(batch)].unbind(-1)
        options: dict[str, Any] = {name: batch.get(name) for name in ("margin", "label")}
        options["label_smoothing"] = self.args.label_smoothing
        threshold = self.threshold()
        if self.args.loss_type == "hinge":
            losses = hinge(first, second, **options)
        elif threshold is not None:
            tie = batch.get("tie", torch.zeros_like(first, dtype=torch.bool))
            losses = rao_kupper(first, second, tie, threshold, **options)
        elif self.args.loss_type == "plackett_luce" and "sequence_rank" in batch:
            losses = _of_rankings(rewards, batch, options)
        else:  # also for rankings of two, which is what a collator of one's own makes
            losses = bradley_terry(first, second, **options)
        if self.args.center_rewards_coefficient is not None:
            losses = losses + self.args.center_rewards_coefficient * centering(first, second)
        return losses


def _of_rankings(rewards: torch.Tensor, batch: dict[str, Any], options: dict[str, Any]) -> torch.Tensor:
    """Each comparison's loss is the mean over the places of its row's ranking, so that a row's sum up to it."""
    places, row = plackett_luce(rewards, batch["sequence_row"], batch["sequence_rank"], **options)
    rows = int(batch["sequence_row"].max()) + 1
    total = places.new_zeros(rows).index_add(0, row, places)
    return (total / torch.bincount(row, minlength=rows).clamp(min=1))[batch["comparison_row"]]


def _raw(threshold: float) -> float:
    """The inverse of the softplus."""
    return threshold + math.log(-math.expm1(-threshold))
