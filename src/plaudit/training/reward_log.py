"""The reward figures of the training log, from the comparisons of a logging interval."""

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerState

from plaudit.metrics import preference_metrics
from plaudit.training.batch import Batch

__all__ = ["RewardLog"]


class RewardLog:
    """Collects the rewards of micro-batches on their device, and makes figures of them at each log.

    The figures are those of `plaudit.metrics.preference_metrics` over all comparisons of the interval on all processes:
    the same function as for `RewardTrainer.evaluate` and `plaudit eval`.
    """

    def __init__(self) -> None:
        self._columns: list[torch.Tensor] = []  # of each micro-batch [4, C]
        self._tokens: list[torch.Tensor] = []  # of each micro-batch []

    @torch.no_grad()
    def add(self, batch: Batch, rewards: torch.Tensor) -> None:
        """Count one micro-batch with its rewards [N]."""
        first, second = rewards.detach().float()[batch.comparisons].unbind(-1)
        self._columns.append(torch.stack([first, second, batch.preference, batch.share]))
        self._tokens.append(batch.tokens.sum())

    def clear(self) -> None:
        """Forget what was counted since the last log."""
        self._columns, self._tokens = [], []

    def reduce(self, state: TrainerState) -> dict[str, float]:
        """Return the figures of the interval over all processes, and begin a new one. Every process must call this.

        Args:
            state: The log so far, to which `num_tokens` adds up.
        """
        columns = torch.cat(self._columns, dim=1).cpu().numpy() if self._columns else np.zeros((4, 0), dtype=np.float32)
        tokens = int(torch.stack(self._tokens).sum()) if self._tokens else 0
        self.clear()
        gathered: list[Any] = gather_object([(columns, tokens)])
        first, second, preference, share = np.concatenate([each for each, _ in gathered], axis=1)
        if not len(first):
            return {}
        earlier = next((each["num_tokens"] for each in reversed(state.log_history) if "num_tokens" in each), 0)
        figures = preference_metrics(first, second, preference, share)
        return figures | {"num_tokens": earlier + float(sum(count for _, count in gathered))}
