"""`RewardTrainer`: transformers' `Trainer`, specialised for comparisons through a few overridden methods."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PredictionOutput, TrainOutput

from plaudit.checkpoint.card import TAGS
from plaudit.data.tokenize import TokenizationReport, TokenizationRules, tokenize_dataset
from plaudit.errors import ConfigError
from plaudit.models.adapters import base_model
from plaudit.models.load import embedding_rows
from plaudit.training.collator import COLUMNS, PreferenceCollator, comparisons_of, model_inputs, tokens_of, verdicts_of
from plaudit.training.config import RewardConfig
from plaudit.training.description import DescribedSavingTrainer
from plaudit.training.evaluation import RowwiseEvaluationTrainer
from plaudit.training.forest import ForestTrainer
from plaudit.training.guarded import GuardedTrainer
from plaudit.training.layout import choose_layout
from plaudit.training.meter import RewardMeter
from plaudit.training.objective import Objective
from plaudit.training.setup import (
    check_arguments,
    check_split,
    check_ties,
    is_conversational,
    name_of,
    prepare_model,
    quiet_all_but_the_first,
)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, DataCollator


__all__ = ["RewardTrainer"]

# A threshold is one number of the size of a reward: at a model's learning rate it would hardly move.
_THRESHOLD_LR = 0.01


class RewardTrainer(ForestTrainer, GuardedTrainer, RowwiseEvaluationTrainer, DescribedSavingTrainer):
    """Trains a reward model from preferences. A drop-in for TRL's trainer of that name.

    Example:
        >>> trainer = RewardTrainer(
        ...     model="Qwen/Qwen3-0.6B",
        ...     train_dataset=load_dataset("trl-lib/ultrafeedback_binarized", split="train"),
        ... )
        >>> trainer.train()

    Args:
        model: A hub id or a folder (also an adapter's), or a sequence classifier with one label, PEFT or not.
        args: Options; `RewardConfig("<model name>-Reward")` if `None`.
        data_collator: Makes a batch of tokenised rows; your own in the shape of `DataCollatorForPreference` will do.
        train_dataset: Rows of any format in `plaudit.data.formats`, or tokenised ones; map-style or streaming.
        eval_dataset: The same, or a dict of them.
        processing_class: The tokenizer; that of the model if `None`.
        compute_metrics: Sees `predictions` [C, 2], the rewards of chosen and rejected of each comparison exactly once
            (a pair makes one), and `label_ids` [C]: 0, or 1 where `label` prefers the second, or -100 for a tie.
        callbacks: Further callbacks.
        optimizers: Optimiser and scheduler, instead of those that `args` names.
        optimizer_cls_and_kwargs: Optimiser class and arguments, instead of `args.optim`.
        preprocess_logits_for_metrics: Maps rewards [C, 2] and labels [C] to what `compute_metrics` sees.
        quantization_config: For loading a model given by name.
        peft_config: Train this adapter and the head instead of all weights.

    Attributes:
        layout: "forest" or "padded".
        objective: The loss, with its tie threshold if it has one.
        reports: What became of each split when it was tokenised, by name.
        dataset_name: What the model card calls the training data; set it before saving.

    Raises:
        ValueError: `train_dataset` is missing, or anything in `plaudit.errors` that is one.
        TypeError: `train_dataset` is no dataset.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: RewardConfig | None = None,
        data_collator: "DataCollator | None" = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: "Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ) -> None:
        self.base_model_name = name_of(model)
        quiet_all_but_the_first()
        self.dataset_name: str | None = None
        args = args or RewardConfig(f"{Path(self.base_model_name or 'model').resolve().name}-Reward")
        check_arguments(args, train_dataset, eval_dataset)
        model, tokenizer = prepare_model(
            model,
            args,
            tokenizer=processing_class,
            peft_config=peft_config,
            quantization_config=quantization_config,
        )
        self.reports: dict[str, TokenizationReport] = {}
        self._rules = TokenizationRules(
            args.max_length,
            args.overlong,
            args.overlong_max_fraction,
            embedding_rows(model),
            ties=args.loss_type == "ties",
        )
        self.conversational = is_conversational(train_dataset, tokenizer)
        train_dataset = self._prepare_dataset(train_dataset, tokenizer, args, "train")
        eval_dataset = self._prepare_eval(eval_dataset, tokenizer, args)
        self.meter = RewardMeter()
        self.objective = Objective(args)
        own_loss = type(self).compute_loss is not RewardTrainer.compute_loss
        own_code = "`data_collator`" if data_collator is not None else "`compute_loss`" if own_loss else None
        layout = choose_layout(model, args, own_code=own_code)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or _collator_of(args, tokenizer, layout),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # `compute_loss` divides by `num_items_in_batch` itself; the Trainer asks this flag whether it may.
        self.model_accepts_loss_kwargs = True
        base_model(self.model).add_model_tags(list(TAGS))

    # Data

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: RewardConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        with args.main_process_first(desc=f"tokenising {dataset_name}"):
            dataset, self.reports[dataset_name] = tokenize_dataset(
                dataset, processing_class, self._rules, split=dataset_name, num_proc=args.dataset_num_proc
            )
        check_ties(dataset, args.loss_type, dataset_name)
        return dataset

    def _first_rows(self) -> list[dict[str, Any]]:
        with self.reports["train"].unchanged():  # a stream is read for them, and counts what it reads
            return super()._first_rows()

    def _prepare_eval(self, eval_dataset: Any, tokenizer: PreTrainedTokenizerBase, args: RewardConfig) -> Any:
        if isinstance(eval_dataset, dict):
            return {
                name: self._prepare_dataset(split, tokenizer, args, f"eval_{name}")
                for name, split in eval_dataset.items()
            }
        return None if eval_dataset is None else self._prepare_dataset(eval_dataset, tokenizer, args, "eval")

    def _prepare_split(self, split: Any, name: str) -> Any:
        if split is None or isinstance(split, str):  # the trainer's own, prepared already
            return split
        check_split(f"{name} dataset", split)
        return self._prepare_dataset(split, self.processing_class, self.args, name)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(COLUMNS)

    # Training

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as `Trainer.train` does; then say what a stream left out."""
        report = self.reports["train"]
        with report.one_pass():
            output = super().train(*args, **kwargs)
        if report.streaming and output.global_step == 0:
            report.check()
        return output

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Comparisons in one accumulation step over all processes: what the sum of losses is divided by.

        A ranked group's count as one together, unless `group_weighting` says otherwise; a row's `weight` does not
        change it, so that a row of weight 2 pulls as two rows do, and one of weight 0 not at all.
        """
        if not batch_samples or type(self).compute_loss is not RewardTrainer.compute_loss:
            return None  # a subclass's own loss is a mean over its batch, as TRL's is
        count = torch.tensor(float(sum(_items_of(batch) for batch in batch_samples)), device=device)
        return self.accelerator.gather(count).sum() / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch, from its rewards and comparisons alone.

        Args:
            model: Called once with the batch's tensors; gives `logits` [N, 1].
            inputs: A batch as `plaudit.training.collator` describes it, or in TRL's shape.
            return_outputs: Also return the model's outputs, with `losses` [C] added.
            num_items_in_batch: Comparisons of the whole accumulation step; the mean over this batch if `None`.
        """
        outputs = model(**model_inputs(inputs))
        rewards = outputs.logits.float().squeeze(-1)  # [N]
        losses = self.objective(rewards, inputs)  # [C]
        if self.model.training:
            self.watch.note(rewards, losses)
            first, second = rewards[comparisons_of(inputs)].unbind(-1)
            self.meter.add(first, second, tokens_of(inputs).sum(), verdicts_of(inputs))
        loss = (losses * inputs["weight"] if "weight" in inputs else losses).sum()
        if num_items_in_batch is None:
            loss = loss / _items_of(inputs)
        else:
            # Processes average their gradients, so each counts its own share that many times.
            loss = loss / num_items_in_batch * (self.accelerator.num_processes // self.get_tp_size())
        if not return_outputs:
            return loss
        outputs["losses"] = losses
        return loss, outputs

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The stock optimiser, with the tie threshold if one is learnt."""
        optimizer, threshold = super().create_optimizer(model), self.objective.raw_threshold
        if threshold is None or any(threshold is each for group in optimizer.param_groups for each in group["params"]):
            return optimizer
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.lr_scheduler is not None:
            raise ConfigError(
                "tie_threshold: with FSDP, DeepSpeed or a scheduler of your own it cannot be learnt. Give a number."
            )
        optimizer.add_param_group({"params": [threshold], "lr": _THRESHOLD_LR, "weight_decay": 0.0})
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the interval's reward figures to the Trainer's own training entries."""
        if "loss" in logs or "train_runtime" in logs:
            figures = self.meter.reduce(self.accelerator)
            if figures:
                earlier = (entry["num_tokens"] for entry in reversed(self.state.log_history) if "num_tokens" in entry)
                figures["num_tokens"] += next(earlier, 0)
            logs.update(figures)
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on `eval_dataset` (raw or tokenised, one or a dict of them), or on the trainer's own."""
        if isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # which calls this again for each
        eval_dataset = self._prepare_split(eval_dataset, metric_key_prefix)
        with self._one_pass(metric_key_prefix):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Rewards [C, 2] of chosen and rejected for a raw or tokenised dataset, and its metrics.

        Each comparison counts once, in the dataset's order; pairs that are too long, or the same after tokenisation,
        are left out and counted in `reports`.
        """
        test_dataset = self._prepare_split(test_dataset, metric_key_prefix)
        with self._one_pass(metric_key_prefix):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def _one_pass(self, name: str) -> AbstractContextManager[None]:
        return self.reports[name].one_pass() if name in self.reports else nullcontext()


def _items_of(batch: dict[str, Any]) -> float | torch.Tensor:
    return batch["unit"].sum() if "unit" in batch else len(comparisons_of(batch))


def _collator_of(args: RewardConfig, tokenizer: PreTrainedTokenizerBase, layout: str) -> PreferenceCollator:
    return PreferenceCollator(
        tokenizer.pad_token_id,
        args.pad_to_multiple_of,
        layout=layout,
        group_weighting=args.group_weighting,
        with_ties=args.loss_type == "ties",
        with_rankings=args.loss_type == "plackett_luce",
        margin_from_scores=args.margin_from_scores,
    )
