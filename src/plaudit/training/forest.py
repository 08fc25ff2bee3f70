"""A `Trainer` that runs batches as forests: which rows make a batch, whether the layout holds, whether memory does."""

import logging
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import Trainer

from plaudit.errors import ConfigError
from plaudit.forest.batching import BudgetBatchSampler
from plaudit.training.batching import make_sampler, wants_sampler
from plaudit.training.collator import PreferenceCollator
from plaudit.training.config import RewardConfig
from plaudit.training.layout import compare_layouts, in_float32, routes_experts
from plaudit.training.memory import fitting_budget, free_memory, halves, keep_random_state
from plaudit.training.meter import RewardMeter
from plaudit.training.objective import Objective

__all__ = ["ForestTrainer"]

logger = logging.getLogger(__name__)

_PROBED_ROWS = 4


class ForestTrainer(Trainer):
    """Knows layouts, batches and memory; a subclass knows the loss, and counts its figures in `meter`."""

    args: RewardConfig
    meter: RewardMeter
    objective: Objective

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler: BudgetBatchSampler | None = None
        self._layout_is_compared = False
        self._step: tuple[list[Any], Any, int] = ([], None, 0)

    @property
    def layout(self) -> str:
        """How batches are laid out: "forest" or "padded"."""
        return getattr(self.data_collator, "layout", "padded")

    # Batches

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not wants_sampler(self.args):
            return super()._get_train_sampler(train_dataset)
        self.sampler = make_sampler(self.train_dataset, self.args, self.layout)
        if self.args.max_tokens_per_batch is not None:
            plan = self.sampler.plan
            logger.info(
                "%d batches an epoch on each process, filled to %.0f%% of max_tokens_per_batch=%d; between processes, "
                "the largest of a step is %.2f times the mean",
                len(self.sampler), 100 * plan.fill, self.args.max_tokens_per_batch, plan.imbalance,
            )  # fmt: skip
        return self.sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self.sampler is not None:
            # After a resume the loader is wrapped once more, and what the Trainer tells it does not reach the sampler.
            self.sampler.set_epoch(kwargs["epoch"])
        return super()._run_epoch(*args, **kwargs)

    # Before the first step

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        # Sharded weights cannot be widened in place; those are compared in the run's own precision.
        wide = routes_experts(base) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if wide:
            with in_float32(self.model):
                self._compare_layouts(self.model, torch.float32)
        prepared = super()._prepare_for_training(*args, **kwargs)
        if not wide:
            self._compare_layouts(prepared[0], self._precision(base))
        if self.args.max_tokens_per_batch is not None and not self.is_deepspeed_enabled:
            self._try_largest_batch(prepared[0])
        return prepared

    def _precision(self, base: nn.Module) -> torch.dtype:
        if self.args.bf16 or self.args.fp16:
            return torch.bfloat16 if self.args.bf16 else torch.float16
        return next(p.dtype for p in base.base_model.parameters() if p.is_floating_point())

    def _compare_layouts(self, model: nn.Module, precision: torch.dtype) -> None:
        """Score a few rows in both layouts on every process; the first one decides for all."""
        if self.layout != "forest" or self._layout_is_compared:
            return
        self._layout_is_compared = True
        rows = self._first_rows()
        if not rows:
            return
        sequences, owners = self.data_collator.sequences_and_rows(rows)

        def score(layout: str) -> torch.Tensor:
            batch = replace(self.data_collator, layout=layout).lay_out(sequences, owners)
            return model(**self._prepare_inputs(batch)).logits.float().squeeze(-1)

        was_training = model.training
        with torch.no_grad(), keep_random_state():
            model.eval()
            decision = [compare_layouts(score, precision)]
            model.train(was_training)
        (reason,) = broadcast_object_list(decision)
        if reason is None:
            return
        if self.args.batch_layout == "forest":
            raise ConfigError(f"batch_layout='forest' is not possible: {reason}. Use 'auto' or 'padded'.")
        logger.warning("batch layout: padded from here on, since %s", reason)
        self.data_collator.layout = "padded"

    def _first_rows(self) -> list[dict[str, Any]]:
        if isinstance(self.train_dataset, Dataset):
            return self.train_dataset.select(range(min(_PROBED_ROWS, len(self.train_dataset)))).to_list()
        stream: IterableDataset = self.train_dataset
        return list(islice(iter(stream), _PROBED_ROWS))

    def _try_largest_batch(self, model: nn.Module) -> None:
        """Run the costliest batch forward and backward, and forget it; if memory fails, say what would fit.

        Raises:
            ConfigError: It does not fit.
        """
        sampler, budget, mark = self.sampler, self.args.max_tokens_per_batch, self.meter.mark()

        def run(rows: list[int]) -> None:
            try:
                with self.accelerator.no_sync(model):  # processes need not agree on gradients that nobody wants
                    batch = self.data_collator(self.train_dataset.select(rows).to_list())
                    loss = self.compute_loss(model, self._prepare_inputs(batch))
                    self.accelerator.backward(loss)
            finally:
                self._forget_gradients(model)
                self.meter.rewind(mark)

        with keep_random_state():
            model.train()
            fits = fitting_budget(run, sampler.dearest, sampler.planner.sizes[sampler.dearest].tolist(), budget)
        least = min(0 if each is None else each for each in gather_object([fits]))
        if least < budget:
            raise ConfigError(
                f"max_tokens_per_batch={budget} does not fit into memory: its largest batch was tried. "
                + (f"{least} fits. Set it, or turn on" if least else "Not even one row fits. Turn on")
                + " `gradient_checkpointing`, or lower `max_length`."
            )

    # Out of memory at a step

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one accumulation step; kept, to run the step again if it runs out of memory."""
        self.objective.zero_grad()  # the Trainer does it for the model
        batches, count = super().get_batch_samples(*args, **kwargs)
        state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._step = batches, state, self.meter.mark()
        return batches, count

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward; what does not fit into memory is run again in smaller pieces."""
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            # Elsewhere the processes would lose their step, and a loss that is a mean over its batch changes in pieces.
            if self.args.world_size > 1 or num_items_in_batch is None or not self._lays_out:
                raise ConfigError(
                    f"a batch of {inputs['input_ids'].numel()} tokens does not fit into memory. Lower "
                    "`max_tokens_per_batch` or `per_device_train_batch_size`, or turn on `gradient_checkpointing`."
                ) from error
        return self._step_in_pieces(model, inputs, num_items_in_batch)

    def _forget_gradients(self, model: nn.Module) -> None:
        model.zero_grad()
        self.objective.zero_grad()

    @property
    def _lays_out(self) -> bool:
        return isinstance(self.data_collator, PreferenceCollator)

    def _step_in_pieces(self, model: nn.Module, inputs: Any, count: Any) -> torch.Tensor:
        """Run the whole accumulation step again up to `inputs`, these in halves, quarters, ... until they fit."""
        batches, (state, device_states), mark = self._step
        pieces = [inputs]
        while True:
            pieces = [half for piece in pieces for half in halves(piece, self.data_collator)]
            logger.warning("out of memory: the step is run again, its batch in %d pieces", len(pieces))
            free_memory()
            self._forget_gradients(model)
            torch.set_rng_state(state)
            for number, device_state in enumerate(device_states):
                torch.cuda.set_rng_state(device_state, number)
            self.meter.rewind(mark)
            try:
                for batch in batches:
                    if batch is inputs:
                        break
                    super().training_step(model, batch, count)
                return torch.stack([super(ForestTrainer, self).training_step(model, p, count) for p in pieces]).sum()
            except torch.OutOfMemoryError:
                continue
