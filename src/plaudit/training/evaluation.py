"""Evaluation that counts each row exactly once, on any number of processes and with a short last batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from plaudit.errors import DataError
from plaudit.metrics import preference_metrics
from plaudit.training.collator import comparisons_of, tokens_of
from plaudit.training.rows import ROW_NUMBER, NumberingCollator, number_rows

__all__ = ["EvaluatedRows", "RowwiseEvaluationTrainer"]


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

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of every row is 0: the chosen response is column 0 of the predictions."""
        return np.zeros(len(self), dtype=np.int64)

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
        """Call the user's `compute_metrics`: once, or (`batch_eval_metrics`) for each `batch_size` rows in turn."""
        if batch_size is None:
            return compute_metrics(self._prediction(slice(None), with_losses))
        result: dict[str, Any] = {}
        for start in range(0, len(self), batch_size):
            part = self._prediction(slice(start, start + batch_size), with_losses)
            result = compute_metrics(part, compute_result=start + batch_size >= len(self))
        return result

    def _prediction(self, rows: slice, with_losses: bool) -> EvalPrediction:
        losses = {"losses": self.losses[rows]} if with_losses else {}
        return EvalPrediction(predictions=self.predictions[rows], label_ids=self.labels[rows], **losses)


class RowwiseEvaluationTrainer(Trainer):
    """Runs the stock loop over numbered rows and makes every figure from rows, not from batches.

    Attributes:
        reward_scale: Mean and standard deviation of the rewards in the last evaluation; 0 and 1 before.
    """

    reward_scale = (0.0, 1.0)
    _evaluated: list[EvaluatedRows]
    _signature_columns: list[str] | None
    data_collator: Callable[..., Any]

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        if is_training:
            return super()._get_dataloader(dataset, *args, is_training=True, **kwargs)
        # Evaluation sees every row: numbered, so that each counts once, and with the last batch, however short.
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = NumberingCollator(collator), False
        self._set_signature_columns_if_needed()
        columns = self._signature_columns or []
        self._signature_columns = [*columns, *({ROW_NUMBER} - set(columns))]
        try:
            return super()._get_dataloader(number_rows(dataset), *args, **kwargs)
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[None, None, None]:
        """Keep a batch's rows for `evaluation_loop`; the stock loop gets nothing to gather and miscount."""
        numbers = inputs.pop(ROW_NUMBER)
        inputs = self._prepare_inputs(inputs)
        comparisons = comparisons_of(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        rewards = outputs.logits.float().squeeze(-1)[comparisons]
        # A subclass's own loss says no loss for each row: then each row has its batch's mean.
        losses = outputs["losses"] if "losses" in outputs else loss.expand(len(comparisons))
        tokens = tokens_of(inputs)[comparisons].sum(-1)
        self._evaluated.append(
            EvaluatedRows.of_batch(numbers, rewards, losses, tokens, self.preprocess_logits_for_metrics)
        )
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The stock loop for running the batches; the figures are our own, from all rows, each counted once."""
        self._evaluated = []
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        rows = EvaluatedRows.gather(self._evaluated)
        self._evaluated = []
        if description == "Evaluation":  # and not when it predicts, on any data at all
            self.reward_scale = rows.scale()
        metrics = rows.metrics()
        if self.compute_metrics is not None:
            batch_size = self.args.eval_batch_size if self.args.batch_eval_metrics else None
            with_losses = "loss" in self.args.include_for_metrics
            metrics |= rows.compute(self.compute_metrics, batch_size=batch_size, with_losses=with_losses)
        prefixed = {
            name if name.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{name}": value
            for name, value in denumpify_detensorize(metrics).items()
        }
        return EvalLoopOutput(rows.predictions, rows.labels, output.metrics | prefixed, len(rows))
