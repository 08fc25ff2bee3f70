"""`RewardTrainer`: transformers' `Trainer` for comparisons of token sequences, over its public hooks."""

import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from plaudit.checkpoint.card import TAGS
from plaudit.checkpoint.verify import Verification
from plaudit.data.tokenize import TokenizationReport
from plaudit.errors import ConfigError
from plaudit.forest.sampler import TokenBudgetBatchSampler
from plaudit.models.adapters import base_model
from plaudit.models.cpu_allocator import keep_freed_memory
from plaudit.models.member_heads import mean_head_is_saved, num_members, write_mean_head
from plaudit.training.activation_offloading import offload_activations
from plaudit.training.batch import Batch
from plaudit.training.callbacks.finite import FiniteGuard, check_rewards_are_finite
from plaudit.training.callbacks.flow import FinishCheckpoint, TrainingFlow, mean_logged_loss
from plaudit.training.callbacks.largest_batch import TryLargestBatch, explain_out_of_memory
from plaudit.training.callbacks.signals import StopOnSignal, finish_early
from plaudit.training.collator import make_collator
from plaudit.training.config import RewardConfig
from plaudit.training.dataloaders import AnyDataset, make_eval_loader, make_train_loader, prepare_loader
from plaudit.training.distributed import (
    check_can_evaluate,
    check_can_train,
    check_devices,
    is_sharded,
    leave_process_group,
)
from plaudit.training.evaluated_comparisons import EvaluatedComparisons
from plaudit.training.layout_choice import ConfirmLayout, choose_layout, confirm_layout
from plaudit.training.objective import Objective
from plaudit.training.preparation import (
    check_arguments,
    check_split,
    is_conversational,
    name_of,
    prepare_model,
    quiet_all_but_the_first,
    tokenization_rules,
    tokenize_split,
)
from plaudit.training.resumption import (
    begin_checkpoint,
    final_folder,
    position_in_stream,
    prepare_resumption,
    without_incomplete_checkpoints,
)
from plaudit.training.reward_log import RewardLog
from plaudit.training.reward_metadata import RewardMetadata

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, DataCollator

__all__ = ["RewardTrainer"]

logger = logging.getLogger(__name__)


class RewardTrainer(Trainer):
    """Trains a reward model from preferences. A drop-in for TRL's trainer of that name.

    Example:
        >>> trainer = RewardTrainer(  # doctest: +SKIP
        ...     model="Qwen/Qwen3-0.6B",
        ...     train_dataset=load_dataset("trl-lib/ultrafeedback_binarized", split="train"),
        ... )
        >>> trainer.train()  # doctest: +SKIP

    Args:
        model: A hub id or a folder (also an adapter's), or a sequence classifier with one label, PEFT or not.
        args: Options; `RewardConfig("<model name>-Reward")` if `None`.
        data_collator: Makes a batch of tokenised rows, as a dict in the shape of `DataCollatorForPreference`.
        train_dataset: Rows of any format in `plaudit.data.formats`, or tokenised ones; map-style or streaming.
        eval_dataset: The same, or a dict of them. A stream is read once, and its token ids are kept in memory.
        processing_class: The tokenizer; that of the model if `None`.
        compute_metrics: Is given `predictions` [C, 2], the rewards of chosen and rejected of each comparison exactly
            once (a pair makes one), and `label_ids` [C]: 0, or 1 where `label` prefers the second, or -100 for a tie.
        callbacks: Further callbacks.
        optimizers: Optimiser and scheduler, instead of those that `args` names.
        optimizer_cls_and_kwargs: Optimiser class and arguments, instead of `args.optim`.
        preprocess_logits_for_metrics: Maps rewards [C, 2] and labels [C] to the `predictions` for `compute_metrics`.
        quantization_config: For loading a model given by name.
        peft_config: Train this adapter and the head instead of all weights.

    Attributes:
        layout: "forest" or "padded".
        objective: The loss, with its tie threshold if it has one.
        metadata: What is saved beside the weights, with the result of the last verification.
        reports: The counts of kept and dropped rows of each split, by name.
        evaluated: The comparisons of the last evaluation or prediction, each once; `None` before.
        dataset_name: The name of the training data in the model card; set it before saving.
        stop_on: The signals that end `train` after the step, with a checkpoint and `SystemExit(128 + signal)`, unless
            they are handled already.

    Raises:
        ValueError: `train_dataset` is missing, or an error of `plaudit.errors` that is one.
        TypeError: `train_dataset` or `eval_dataset` is no dataset.
    """

    stop_on: tuple[int, ...] = (signal.SIGTERM,)

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: RewardConfig | None = None,
        data_collator: "DataCollator | None" = None,
        train_dataset: AnyDataset | None = None,
        eval_dataset: "AnyDataset | dict[str, AnyDataset] | None" = None,
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
        args = args or RewardConfig(f"{Path(self.base_model_name or 'model').resolve().name}-Reward")
        check_arguments(args, train_dataset, eval_dataset)
        if args.device.type == "cpu":
            keep_freed_memory()
        model, tokenizer = prepare_model(
            model, args, tokenizer=processing_class, peft_config=peft_config, quantization_config=quantization_config
        )
        self.dataset_name: str | None = None
        self.reports: dict[str, TokenizationReport] = {}
        self.evaluated: EvaluatedComparisons | None = None
        self.conversational = is_conversational(train_dataset, tokenizer)
        self._rules = tokenization_rules(args, model)
        train_dataset = self._prepare_dataset(train_dataset, tokenizer, args, "train")
        if isinstance(eval_dataset, dict):
            splits = eval_dataset.items()
            eval_dataset = {name: self._prepare_dataset(each, tokenizer, args, f"eval_{name}") for name, each in splits}
        elif eval_dataset is not None:
            eval_dataset = self._prepare_dataset(eval_dataset, tokenizer, args, "eval")

        self.objective, self.reward_log, self.metadata = Objective(args), RewardLog(), RewardMetadata(self)
        self.sampler: TokenBudgetBatchSampler | None = None
        self.layout_is_confirmed = False
        self._own_callbacks: list[TrainerCallback] = []
        self._eval_loaders: dict[int, tuple[Any, DataLoader]] = {}
        self._has_own_loss = type(self).compute_loss is not RewardTrainer.compute_loss
        members = num_members(base_model(model))
        if self._has_own_loss and members:
            raise ConfigError(
                f"num_heads={members}: `compute_loss` is your own, and the heads train by the trainer's. Leave "
                "one of the two out."
            )
        own_code = "`data_collator`" if data_collator is not None else "`compute_loss`" if self._has_own_loss else None
        layout = choose_layout(model, args, own_code=own_code)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or make_collator(args, tokenizer, layout),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        check_devices(self)
        # Our loss is divided by the comparisons of the whole step; a loss of a subclass is a mean over its batch.
        self.loss_is_scaled_for_ga = not self._has_own_loss
        base_model(self.model).add_model_tags(list(TAGS))
        self.guard = FiniteGuard(self)
        self.signals = StopOnSignal()
        # In this order: the trials before anything else, the guard before a step, the vote to stop after a finished
        # checkpoint, and last the decision to log, which depends on whether the others save.
        self._own_callbacks = [
            ConfirmLayout(self),
            TryLargestBatch(self),
            self.guard,
            FinishCheckpoint(),
            self.signals,
            TrainingFlow(self),
        ]
        for callback in self._own_callbacks:
            self.add_callback(callback)

    def add_callback(self, callback: Any) -> None:
        """Add a callback before the trainer's own, which decide last whether to log and save, and end a run."""
        super().add_callback(callback)
        self.callback_handler.callbacks.sort(key=lambda each: any(each is own for own in self._own_callbacks))

    @property
    def layout(self) -> str:
        """The layout of batches: "forest" or "padded"."""
        return getattr(self.data_collator, "layout", "padded")

    @property
    def bare_model(self) -> PreTrainedModel:
        """The model without an adapter and without what accelerate wraps around it."""
        return base_model(self.accelerator.unwrap_model(self.model))

    @property
    def verification(self) -> Verification | None:
        """The result of the last verification of a save; `None` before."""
        return self.metadata.verification

    # Data

    def _prepare_dataset(
        self, dataset: AnyDataset, processing_class: PreTrainedTokenizerBase, args: RewardConfig, dataset_name: str
    ) -> AnyDataset:
        dataset, report = tokenize_split(dataset, processing_class, args, self._rules, dataset_name)
        self.reports[dataset_name] = report
        return dataset

    def _prepare_split(self, split: Any, name: str) -> Any:
        if split is None or isinstance(split, str):  # the trainer's own, prepared already
            return split
        check_split(f"{name} dataset", split)
        return self._prepare_dataset(split, self.processing_class, self.args, name)

    def get_train_dataloader(self) -> DataLoader:
        """Return the training loader: by rows as the stock one, or by tokens and prompts if the options ask for it."""
        if not is_sharded(self):  # weights of a sharded model are not on their devices yet
            confirm_layout(self, self.model)
        loader, self.sampler = make_train_loader(
            self.train_dataset, self.data_collator, self.args, layout=self.layout, batch_size=self._train_batch_size,
            members=num_members(self.bare_model),
        )  # fmt: skip
        return prepare_loader(self.accelerator, loader)

    def get_eval_dataloader(self, eval_dataset: "str | Dataset | None" = None) -> DataLoader:
        """Return the loader of an evaluation set: one of the trainer's own by name, or tokenised rows."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ConfigError("there is no `eval_dataset` to evaluate on. Pass one to `evaluate`, or to the trainer.")
        own = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        if not self.args.dataloader_persistent_workers or not any(dataset is each for each in own):
            return self.get_test_dataloader(dataset)
        if id(dataset) not in self._eval_loaders:  # which keeps the dataset, so that its id stays its own
            self._eval_loaders[id(dataset)] = dataset, self.get_test_dataloader(dataset)
        return self._eval_loaders[id(dataset)][1]

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return a loader of tokenised rows in their order, with a short last batch."""
        return prepare_loader(self.accelerator, make_eval_loader(test_dataset, self.data_collator, self.args))

    # Training

    def train(
        self,
        resume_from_checkpoint: "str | Path | bool | None" = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, as `Trainer.train` does; signals end it with a checkpoint.

        Raises:
            CheckpointError: The checkpoint to resume from is not complete, or the disk is full.
            ConfigError: The options cannot work together, or the largest batch does not fit into memory.
            TrainingError: A reward, a loss or the gradient is not finite; the optimiser has not taken that step.
            SystemExit: A signal has ended the run, after a checkpoint.
        """
        check_can_train(self)
        checkpoint = prepare_resumption(self, resume_from_checkpoint)
        report = self.reports["train"]
        with self.signals.listening(self.stop_on), report.one_pass(), without_incomplete_checkpoints(self):
            try:
                output = super().train(checkpoint, trial, ignore_keys_for_eval)
            except SystemExit:
                if self.signals.stop_signal:
                    finish_early(self)
                raise
        if report.streaming and output.global_step == 0:
            report.check()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self.metadata.restore(Path(self.state.best_model_checkpoint))
        write_mean_head(self.bare_model)  # also for one who saves the model alone
        return output._replace(training_loss=output.metrics["train_loss"])

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of one optimiser step, and the number that the sum of their losses is divided by.

        That is the number of their comparisons over all processes, where those of a ranked group count as one together,
        unless `group_weighting` says otherwise. A row's `weight` does not change it, so that a row of weight 2 pulls
        as two rows do, and one of weight 0 not at all. For a loss of a subclass it is `None`.
        """
        self.objective.zero_grad()  # the Trainer does it for the model
        batches = [Batch.of(each) for each in super().get_batch_samples(epoch_iterator, num_batches, device)[0]]
        if not batches or self._has_own_loss:
            return batches, None
        count = sum(batch.divisor for batch in batches)
        # `torch.full` launches a kernel, where `torch.tensor` would wait until the device has the number.
        count = count.to(device) if isinstance(count, torch.Tensor) else torch.full((), float(count), device=device)
        return batches, self.accelerator.gather(count).sum() / (
            self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        )

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one micro-batch forward and backward, and keep its loss for the guard against numbers not finite."""
        with explain_out_of_memory(self.args, inputs), self.activation_offloading():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.add(inputs, loss)
        self.metadata.member_constants = None  # those of an evaluation hold until the weights change
        return loss

    def activation_offloading(self) -> AbstractContextManager[None]:
        """Return the context of a forward and backward pass, in which `activation_offloading` is at work if set."""
        return offload_activations(self.model, self.args.activation_offloading)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: "Batch | dict[str, Any]",
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, from its rewards and comparisons alone; of K heads, the mean of their losses.

        Args:
            model: Called once with the inputs of the batch; gives `logits` [N, 1], or [N, 1 + K] with K heads.
            inputs: A `Batch`, or a dict in TRL's shape.
            return_outputs: Also return the model's outputs, with `losses` [C] added.
            num_items_in_batch: Comparisons of the whole optimiser step; the mean over this batch if `None`.
        """
        batch = Batch.of(inputs)
        outputs = model(**batch.model_inputs)
        rewards, members = outputs.logits.float().tensor_split([1], dim=-1)  # [N, 1], [N, K]
        rewards = rewards.squeeze(-1)
        trains_members = self.model.training and members.shape[-1] > 0
        losses = self.objective.of_members(members, batch) if trains_members else self.objective(rewards, batch)  # [C]
        if self.model.training:
            self.guard.note(rewards, losses)
            self.reward_log.add(batch, rewards)
        loss = (losses if batch.loss_weight is None else losses * batch.loss_weight).sum()
        if num_items_in_batch is None:
            loss = loss / batch.divisor
        else:
            # Processes average their gradients, so each counts its own share that many times.
            loss = loss / num_items_in_batch * (self.accelerator.num_processes // self.get_tp_size())
        if not return_outputs:
            return loss
        outputs["losses"] = losses
        return loss, outputs

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the stock optimiser, with the tie threshold if one is learnt."""
        stock = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.lr_scheduler is not None)
        return self.objective.add_to_optimizer(super().create_optimizer(model), can_grow=stock)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the reward figures of the interval to the entries about training.

        Raises:
            TrainingError: A reward, a loss or the gradient is not finite; the optimiser has not taken that step.
        """
        self.guard.check()
        if "loss" in logs or "train_runtime" in logs:
            logs.update(self.reward_log.reduce(self.state))
        if "train_runtime" in logs:  # the Trainer's mean loss of a resumed run covers the steps since then alone
            logs["train_loss"] = mean_logged_loss(self.state, default=logs["train_loss"])
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on `eval_dataset` (raw or tokenised, one or a dict of them), or on the trainer's own."""
        if not isinstance(eval_dataset, dict):  # of a dict the Trainer calls this again for each
            eval_dataset = self._prepare_split(eval_dataset, metric_key_prefix)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Return the rewards [C, 2] of chosen and rejected for a raw or tokenised dataset, and its metrics.

        Each comparison counts once, in the dataset's order; pairs that are too long, or the same after tokenisation,
        are left out and counted in `reports`.
        """
        return super().predict(self._prepare_split(test_dataset, metric_key_prefix), ignore_keys, metric_key_prefix)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,  # noqa: ARG002  # the signature of the hook
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, None, None]:
        """Keep the comparisons of a batch for `evaluation_loop`; the stock loop gathers nothing."""
        inputs = Batch.of(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        # A loss of a subclass gives no loss for each comparison: each then has the mean of its batch.
        losses = outputs["losses"] if "losses" in outputs else loss.expand(len(inputs.comparisons))
        rewards, members = outputs.logits.float().tensor_split([1], dim=-1)
        columns = EvaluatedComparisons.columns_of(
            inputs, rewards.squeeze(-1), losses, self.preprocess_logits_for_metrics, members=members
        )
        self._evaluated.append(columns)
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,  # noqa: ARG002  # the signature of the hook
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the stock loop over the batches, and make the figures from all comparisons, each counted once.

        Raises:
            TrainingError: A reward or a loss is not finite; it names the rows.
        """
        check_can_evaluate(self)
        self.guard.check()
        if not (is_sharded(self) or self.args.fp16_full_eval or self.args.bf16_full_eval):
            confirm_layout(self, self.model)
        self._evaluated: list[tuple[torch.Tensor, ...]] = []
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        compared = EvaluatedComparisons.gather(self._evaluated)
        self._evaluated, self.evaluated = [], compared
        check_rewards_are_finite(compared, dataloader.dataset, self.processing_class, metric_key_prefix)
        if description == "Evaluation":  # and not a prediction, which may be on any data at all
            self.metadata.reward_scale = compared.scale()
            self.metadata.member_constants = compared.member_constants()
        figures = output.metrics | compared.metrics(metric_key_prefix, self.compute_metrics, self.args)
        return EvalLoopOutput(compared.predictions, compared.labels, figures, len(compared))

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, the tokenizer, `reward.json` and the model card.

        A checkpoint is written in place, and is complete once the Trainer has put `trainer_state.json` into it. A final
        model is written beside its place, put there as a whole, and reloaded in a fresh process (`verify_on_save`).

        Raises:
            CheckpointError: A weight is not finite, the disk is full, or the reloaded model gives other rewards.
        """
        self.guard.check()
        takes_part = self.args.should_save or is_sharded(self)
        is_push = _internal_call and output_dir is None
        metadata = self.metadata.prepare() if takes_part else {}
        if _internal_call and output_dir:  # a checkpoint
            begin_checkpoint(self, Path(output_dir))
            self._write_model(Path(output_dir), metadata)
            self.metadata.copy_for_push(Path(output_dir))
            return
        final = Path(output_dir or self.args.output_dir)
        with final_folder(self, final) as folder:
            self._write_model(folder, metadata)
            if self.args.should_save:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        if self.args.verify_on_save and self.args.should_save:
            self.metadata.verify(final, again=not is_push)
        if self.args.push_to_hub and not is_push:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _write_model(self, folder: Path, metadata: dict[str, Any]) -> None:
        with mean_head_is_saved(self.bare_model):
            super().save_model(str(folder), _internal_call=True)
        if self.is_fsdp_enabled and "FULL" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            self._save(str(folder), state_dict=self.accelerator.get_state_dict(self.model))  # beside the shards
        if self.args.should_save:
            self.metadata.write(folder, metadata)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None, **_: Any
    ) -> None:
        """Write the model card into the output folder (TRL's signature; further arguments of the Trainer's pass)."""
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else tags or []
            self.dataset_name = dataset_name or self.dataset_name
            self.metadata.write_card(Path(self.args.output_dir), model_name=model_name, tags=tuple(tags))

    def end(self) -> None:
        """Finish the trackers and leave the other processes: the last line of a script that many of them run."""
        leave_process_group(self.model_wrapped)
        super().end()

    # Private hooks of the Trainer, for which it has no public one; `tests/training/test_upstream_contract.py` watches.

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # The guard needs the norm before the optimiser steps. `on_pre_optimizer_step` is not given it, and to measure
        # it again there would read all gradients a second time.
        self.guard.gradient_norm = super()._get_grad_norm(model, grad_norm)
        return self.guard.gradient_norm

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        # A run that has taken all its steps would train one step more, past the end of its schedule. And the Trainer
        # takes the first pass over a stream to last for all steps, and would resume a later one elsewhere.
        position = super()._init_training_state(max_steps, steps_per_epoch, epochs, checkpoint, trial)
        if self.state.global_step >= max_steps:
            logger.warning("step %d of %d is done: there is nothing left to train", self.state.global_step, max_steps)
            return epochs, 0
        if checkpoint is None or isinstance(self.train_dataset, Dataset) or self.args.ignore_data_skip:
            return position
        return position_in_stream(Path(checkpoint), self.args.gradient_accumulation_steps)
