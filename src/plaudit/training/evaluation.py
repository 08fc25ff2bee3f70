"""Evaluation that counts each row exactly once, on any number of processes and with a short last batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from plaudit.errors import DataError, TrainingError
from plaudit.metrics import preference_metrics
from plaudit.training.collator import comparisons_of, rows_apart, tokens_of, verdicts_of
from plaudit.training.devices import ManyDevicesTrainer
from plaudit.training.finite import rows_in_words
from plaudit.training.rows import ROW_NUMBER, NumberedRows, NumberingCollator, number_rows, number_stream

__all__ = ["EvaluatedRows", "RowwiseEvaluationTrainer"]


_UNDECIDED = -100  # the label that transformers' metrics take for "none"


@dataclass(frozen=True)
class EvaluatedRows:
    """The outcome of C comparisons: one of each pair, some of each ranked group.

    Attributes:
        numbers: The rows' numbers in the dataset, and which of its row's comparisons it is, shape [C, 2].
        first: Rewards of the sequences named first (the chosen ones), float32, shape [C].
        second: Rewards of the others, float32, shape [C].
        verdicts: 1 where the first is better, -1 where the second is, 0 where neither, shape [C].
        losses: The loss of each, shape [C].
        weights: What it counts in the mean loss, shape [C].
        units: What it counts in the mean's divisor, shape [C].
        tokens: Real tokens of the row's sequences, with its first comparison, shape [C].
        predictions: What `compute_metrics` shall see: [C, 2], or what `preprocess_logits_for_metrics` made of it.
    """

    numbers: NDArray[np.int64]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    verdicts: NDArray[np.float32]
    losses: NDArray[np.float32]
    weights: NDArray[np.float32]
    units: NDArray[np.float32]
    tokens: NDArray[np.int64]
    predictions: NDArray[Any]

    @classmethod
    def of_batch(
        cls,
        numbers: torch.Tensor,
        rewards: torch.Tensor,
        losses: torch.Tensor,
        batch: dict[str, Any],
        preprocess: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
    ) -> "EvaluatedRows":
        """The comparisons of one batch: `rewards` [C, 2] of its first and second sequences, `numbers` of its rows."""
        row = batch.get("comparison_row", torch.arange(len(rewards), device=rewards.device)).cpu()
        place = torch.arange(len(row)) - torch.searchsorted(row, row)  # a row's comparisons stand together
        ones = torch.ones_like(losses)
        verdicts = verdicts_of(batch)
        verdicts = ones if verdicts is None else verdicts
        predictions = preprocess(rewards, _labels(verdicts)) if preprocess is not None else rewards
        tokens = _tokens_of_rows(batch, row) * (place == 0)
        units = batch.get("unit", ones)
        numbers = torch.stack([numbers[row], place], -1)
        columns = (
            numbers, *rewards.unbind(-1), verdicts, losses, batch.get("weight", units), units, tokens, predictions,
        )  # fmt: skip
        return cls(*(column.detach().cpu().numpy() for column in columns))

    @classmethod
    def gather(cls, batches: list["EvaluatedRows"]) -> "EvaluatedRows":
        """All comparisons of all processes, in the order of the dataset, each once. Every process must call this.

        Objects are gathered rather than tensors: processes may have rows of unequal number, which gloo cannot gather.

        Raises:
            DataError: No process has any.
        """
        everything = gather_object(batches)
        if not everything:
            raise DataError("no row is left to evaluate: the stream had none, or every pair was dropped.")
        columns = [np.concatenate(column) for column in zip(*(vars(rows).values() for rows in everything), strict=True)]
        _, once = np.unique(columns[0], axis=0, return_index=True)
        return cls(*(column[once] for column in columns))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The better column of the predictions: 0, or 1 where a soft label says so, or -100 for a tie."""
        return _labels(torch.from_numpy(self.verdicts)).numpy()

    def metrics(self) -> dict[str, float]:
        """The mean loss, the tokens, and `plaudit.metrics.preference_metrics` of all that are no ties."""
        loss = float((self.losses.astype(np.float64) * self.weights).sum() / self.units.astype(np.float64).sum())
        figures = {"loss": loss, "num_tokens": float(self.tokens.sum())}
        decided, turned = self.verdicts != 0, self.verdicts < 0
        if not decided.any():
            return figures
        winner, loser = np.where(turned, self.second, self.first), np.where(turned, self.first, self.second)
        return figures | preference_metrics(winner[decided], loser[decided])

    def not_finite(self) -> list[int]:
        """Numbers of the rows with a reward or a loss that is not finite."""
        fine = np.isfinite(self.first) & np.isfinite(self.second) & np.isfinite(self.losses)
        return np.unique(self.numbers[~fine, 0]).tolist()

    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of all rewards."""
        rewards = np.concatenate([self.first, self.second]).astype(np.float64)
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


def _labels(verdicts: torch.Tensor) -> torch.Tensor:
    labels = (verdicts < 0).long()
    return labels.masked_fill(verdicts == 0, _UNDECIDED)


def _tokens_of_rows(batch: dict[str, Any], row: torch.Tensor) -> torch.Tensor:
    """Real tokens of the row of each comparison [C], each of its sequences once."""
    tokens = tokens_of(batch).cpu()
    if "sequence_row" not in batch:
        return tokens[comparisons_of(batch).cpu()].sum(-1)
    owners = batch["sequence_row"].cpu()
    return torch.zeros(int(owners.max()) + 1, dtype=tokens.dtype).index_add(0, owners, tokens)[row]


class RowwiseEvaluationTrainer(ManyDevicesTrainer):
    """Runs the stock loop over numbered rows and makes every figure from rows, not from batches.

    Attributes:
        reward_scale: Mean and standard deviation of the rewards in the last evaluation; `None` before.
    """

    reward_scale: tuple[float, float] | None = None
    _evaluated: list[EvaluatedRows]
    _signature_columns: list[str] | None
    data_collator: Callable[..., Any]
    processing_class: PreTrainedTokenizerBase

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        **kwargs: Any,
    ) -> Any:
        # Numbered: in evaluation each row counts once, in training one can be named.
        self._set_signature_columns_if_needed()
        if isinstance(dataset, Dataset):
            sampler = None if sampler_fn is None else sampler_fn(dataset)
            sampler_fn = lambda _: sampler  # noqa: E731  # the rows themselves tell it more than numbered ones do
            dataset = self._remove_unused_columns(dataset, description=description)  # here, where it reads less
        numbered = self._numbered(dataset, is_training)
        columns, collator, drop_last = self._signature_columns or [], self.data_collator, self.args.dataloader_drop_last
        self._signature_columns = [*columns, *({ROW_NUMBER} - set(columns))]
        if numbered is not dataset:
            self.data_collator = NumberingCollator(collator)
        self.args.dataloader_drop_last = is_training and drop_last  # evaluation sees the last batch, however short
        try:
            return super()._get_dataloader(numbered, description, batch_size, sampler_fn, is_training, **kwargs)
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last
            self._signature_columns = columns

    def _numbered(self, dataset: Any, is_training: bool) -> Any:
        if not (is_training and isinstance(dataset, IterableDataset)):
            return number_rows(dataset)
        # Dealt out by shards, no reader knows how many rows come before its own.
        is_dealt_out = self.args.world_size > 1 or self.args.dataloader_num_workers > 1
        return dataset if is_dealt_out else number_stream(dataset)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[None, None, None]:
        """Keep a batch's rows for `evaluation_loop`; the stock loop gets nothing to gather and miscount."""
        numbers = inputs.pop(ROW_NUMBER)
        inputs = self._prepare_inputs(inputs)
        comparisons = comparisons_of(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            if not (self._is_spread or outputs.logits.isfinite().all()):
                # In a forest what is not finite spreads from row to row, and the error shall name those it comes from.
                inputs = rows_apart(inputs, self.processing_class.pad_token_id)
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        rewards = outputs.logits.float().squeeze(-1)[comparisons]
        # A subclass's own loss says no loss for each row: then each row has its batch's mean.
        losses = outputs["losses"] if "losses" in outputs else loss.expand(len(comparisons))
        self._evaluated.append(
            EvaluatedRows.of_batch(numbers, rewards, losses, inputs, self.preprocess_logits_for_metrics)
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
        self._check_finite(rows, dataloader.dataset, metric_key_prefix)
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

    def _check_finite(self, evaluated: EvaluatedRows, dataset: Any, split: str) -> None:
        bad = evaluated.not_finite()
        if not bad:
            return
        texts = [""] * len(bad)
        if isinstance(dataset, NumberedRows):  # of a stream they have gone by
            rows = [dataset.rows[number] for number in bad]
            texts = [self.processing_class.decode((row.get("sequence_ids") or [row["chosen_ids"]])[0]) for row in rows]
        lines = rows_in_words(list(zip(bad, texts, strict=True)))
        raise TrainingError(
            "\n  ".join(
                [f"{split}: a loss or a reward is not finite. It comes from (numbers count the rows kept):", *lines]
            )
            + "\nNo figure of this evaluation would mean anything. Look at these rows, and at the weights; use bf16 or "
            "float32 rather than fp16."
        )
