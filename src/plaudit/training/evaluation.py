"""What an evaluation keeps of each row, shared among processes, each row once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from transformers import EvalPrediction

from plaudit.errors import DataError
from plaudit.metrics import preference_metrics

__all__ = ["EvaluatedRows"]


@dataclass(frozen=True)
class EvaluatedRows:
    """The outcome of R rows, one comparison each.

    Attributes:
        numbers: The rows' numbers in the dataset, shape [R].
        winner: Rewards of the chosen sequences, float32, shape [R].
        loser: Rewards of the rejected ones, float32, shape [R].
        losses: The loss of each, shape [R].
        tokens: Real tokens of both sequences, shape [R].
        predictions: What `compute_metrics` shall see: [R, 2], or what `preprocess_logits_for_metrics` made of it.
    """

    numbers: NDArray[np.int64]
    winner: NDArray[np.float32]
    loser: NDArray[np.float32]
    losses: NDArray[np.float32]
    tokens: NDArray[np.int64]
    predictions: NDArray[Any]

    @classmethod
    def of_batch(
        cls,
        numbers: torch.Tensor,
        rewards: torch.Tensor,
        losses: torch.Tensor,
        tokens: torch.Tensor,
        preprocess: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
    ) -> "EvaluatedRows":
        """The rows of one batch: `rewards` [rows, 2] of chosen and rejected."""
        labels = torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)
        predictions = preprocess(rewards, labels) if preprocess is not None else rewards
        winner, loser = rewards.unbind(-1)
        columns = (numbers, winner, loser, losses, tokens, predictions)
        return cls(*(column.detach().cpu().numpy() for column in columns))

    @classmethod
    def gather(cls, batches: list["EvaluatedRows"]) -> "EvaluatedRows":
        """All rows of all processes, in the order of the dataset, each once. Every process must call this.

        Objects are gathered rather than tensors: processes may have rows of unequal number, which gloo cannot gather.

        Raises:
            DataError: No process has any.
        """
        everything = gather_object(batches)
        if not everything:
            raise DataError("no row is left to evaluate: the stream had none, or every pair was dropped.")
        columns = [np.concatenate(column) for column in zip(*(vars(rows).values() for rows in everything), strict=True)]
        _, first = np.unique(columns[0], return_index=True)
        return cls(*(column[first] for column in columns))

    def __len__(self) -> int:
        return len(self.numbers)

    def metrics(self) -> dict[str, float]:
        """The mean loss, the tokens, and `plaudit.metrics.preference_metrics`."""
        means = {"loss": float(self.losses.astype(np.float64).mean()), "num_tokens": float(self.tokens.sum())}
        return means | preference_metrics(self.winner, self.loser)

    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of all rewards."""
        rewards = np.concatenate([self.winner, self.loser]).astype(np.float64)
        return float(rewards.mean()), float(rewards.std())

    def compute(
        self, compute_metrics: Callable[..., dict[str, Any]], *, batch_size: int | None, with_losses: bool
    ) -> dict[str, Any]:
        """Call the user's `compute_metrics`: once, or (`batch_eval_metrics`) for each `batch_size` rows in turn.

        The label of every row is 0: the chosen response is column 0 of the predictions.
        """
        labels = np.zeros(len(self), dtype=np.int64)
        if batch_size is None:
            return compute_metrics(self._prediction(labels, slice(None), with_losses))
        result: dict[str, Any] = {}
        for start in range(0, len(self), batch_size):
            part = self._prediction(labels, slice(start, start + batch_size), with_losses)
            result = compute_metrics(part, compute_result=start + batch_size >= len(self))
        return result

    def _prediction(self, labels: NDArray[np.int64], rows: slice, with_losses: bool) -> EvalPrediction:
        losses = {"losses": self.losses[rows]} if with_losses else {}
        return EvalPrediction(predictions=self.predictions[rows], label_ids=labels[rows], **losses)
