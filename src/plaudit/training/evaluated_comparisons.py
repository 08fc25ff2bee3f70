"""The table of evaluated comparisons: each counted exactly once, on any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_utils import denumpify_detensorize

from plaudit.errors import ConfigError, DataError
from plaudit.metrics import preference_metrics
from plaudit.training.batch import Batch
from plaudit.uncertainty import MemberUncertainty

__all__ = ["EvaluatedComparisons"]

_UNDECIDED = -100  # the label that transformers' metrics take for "none"


@dataclass(frozen=True)
class EvaluatedComparisons:
    """C comparisons with their rewards: one of each pair, some of each ranked group.

    A distributed loader fills up its last batch with rows that were there before. Each comparison therefore carries the
    number of its row and its place in it, by which duplicates are left out after all processes have shared theirs.

    Attributes:
        numbers: The number of the row and the place of the comparison in it, shape [C, 2].
        first: Rewards of the sequences named first (the chosen ones), float32, shape [C].
        second: Rewards of the others, float32, shape [C].
        preferences: Probability that the first is preferred, shape [C].
        losses: The loss of each, shape [C].
        loss_weights: The factor of each loss in the sum of the losses, shape [C].
        units: The contribution of each to the divisor of that sum, shape [C].
        shares: The weight of each in all other figures, shape [C].
        prompts: A number that comparisons of the same prompt share, shape [C].
        tokens: Real tokens of the sequences of the row, at its first comparison, shape [C].
        predictions: What `compute_metrics` is given: [C, 2], or what `preprocess_logits_for_metrics` made of it.
        members: Rewards of both sequences by each member of an ensemble, float32, shape [C, 2, K]; K is 0 for a single
            model.
    """

    numbers: NDArray[np.int64]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    preferences: NDArray[np.float32]
    losses: NDArray[np.float32]
    loss_weights: NDArray[np.float32]
    units: NDArray[np.float32]
    shares: NDArray[np.float32]
    prompts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    predictions: NDArray[Any]
    members: NDArray[np.float32]

    @staticmethod
    def columns_of(
        batch: Batch,
        rewards: torch.Tensor,
        losses: torch.Tensor,
        preprocess: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        *,
        members: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return the columns of one batch for `gather`, on its device, where they wait for the end of the evaluation.

        Args:
            batch: The batch.
            rewards: Rewards of its sequences, shape [N].
            losses: Losses of its comparisons, shape [C].
            preprocess: Maps rewards [C, 2] and labels [C] to the column `predictions`.
            members: Rewards by each member of an ensemble, shape [N, K].
        """
        if batch.row_number is None or batch.prompt_key is None:
            raise ConfigError("the batches of an evaluation loader of your own lack `row_number` and `prompt_key`.")
        row = batch.comparison_row
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)  # a row's stand together
        pairs = rewards[batch.comparisons]  # [C, 2]
        ones = torch.ones_like(losses)
        tokens = torch.zeros(len(batch.row_number), dtype=torch.long, device=row.device)
        tokens = tokens.index_add(0, batch.sequence_row, batch.tokens)[row] * (place == 0)
        columns = (
            torch.stack([batch.row_number[row], place], -1), *pairs.unbind(-1), batch.preference, losses,
            ones if batch.loss_weight is None else batch.loss_weight, ones if batch.unit is None else batch.unit,
            batch.share, batch.prompt_key[row], tokens,
            pairs if preprocess is None else preprocess(pairs, _labels(batch.preference)),
            (rewards.new_zeros(len(rewards), 0) if members is None else members)[batch.comparisons],
        )  # fmt: skip
        return tuple(column.detach() for column in columns)

    @classmethod
    def gather(cls, batches: list[tuple[torch.Tensor, ...]]) -> "EvaluatedComparisons":
        """Gather the comparisons of all processes, in the order of the dataset. Every process must call this.

        Args:
            batches: The columns of each batch of this process, from `columns_of`.

        Objects are gathered rather than tensors: processes may have unequal numbers of rows, which gloo cannot gather.

        Raises:
            DataError: No process has a comparison.
        """
        own = [torch.cat(column).cpu().numpy() for column in zip(*batches, strict=True)]
        everything = gather_object([own] if own else [])
        if not everything:
            raise DataError("no row is left to evaluate: every pair was dropped.")
        columns = [np.concatenate(column) for column in zip(*everything, strict=True)]
        _, once = np.unique(columns[0], axis=0, return_index=True)
        return cls(*(column[once] for column in columns))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The better column of the predictions: 0, or 1 where a soft label prefers the second, or -100 for a tie."""
        return _labels(torch.from_numpy(self.preferences)).numpy()

    def metrics(
        self, prefix: str, compute_metrics: Callable[..., dict[str, Any]] | None, args: TrainingArguments
    ) -> dict[str, float]:
        """Return the mean loss, the tokens, `preference_metrics` and the user's own figures, with a prefix."""
        loss = (self.losses.astype(np.float64) * self.loss_weights).sum() / self.units.astype(np.float64).sum()
        figures = {"loss": float(loss), "num_tokens": float(self.tokens.sum())}
        figures |= preference_metrics(self.first, self.second, self.preferences, self.shares, self.prompts)
        if compute_metrics is not None:
            figures |= denumpify_detensorize(self._compute(compute_metrics, args))
        return {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": each for name, each in figures.items()}

    def rows_not_finite(self) -> list[int]:
        """Return the numbers of the rows with a reward or a loss that is not finite."""
        finite = np.isfinite(self.first) & np.isfinite(self.second) & np.isfinite(self.losses)
        return np.unique(self.numbers[~finite, 0]).tolist()

    def scale(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of all rewards."""
        rewards = np.concatenate([self.first, self.second]).astype(np.float64)
        return float(rewards.mean()), float(rewards.std())

    def member_constants(self) -> MemberUncertainty | None:
        """Return centre and scale of each member over all rewards; `None` for a single model."""
        if not self.members.shape[-1]:
            return None
        sides = self.members.transpose(1, 0, 2).reshape(-1, self.members.shape[-1])
        return MemberUncertainty.measure(sides, np.concatenate([self.first, self.second]))

    def _compute(self, compute_metrics: Callable[..., dict[str, Any]], args: TrainingArguments) -> dict[str, Any]:
        """Call the user's `compute_metrics` once or, with `batch_eval_metrics`, for each batch."""
        with_losses = "loss" in args.include_for_metrics
        if not args.batch_eval_metrics:
            return compute_metrics(self._prediction(slice(None), with_losses))
        result: dict[str, Any] = {}
        for start in range(0, len(self), args.eval_batch_size):
            part = self._prediction(slice(start, start + args.eval_batch_size), with_losses)
            result = compute_metrics(part, compute_result=start + args.eval_batch_size >= len(self))
        return result

    def _prediction(self, rows: slice, with_losses: bool) -> EvalPrediction:
        losses = {"losses": self.losses[rows]} if with_losses else {}
        return EvalPrediction(predictions=self.predictions[rows], label_ids=self.labels[rows], **losses)


def _labels(preferences: torch.Tensor) -> torch.Tensor:
    return (preferences < 0.5).long().masked_fill(preferences == 0.5, _UNDECIDED)
