"""A `Trainer` that runs batches as forests: which rows make a batch, whether the layout holds, whether memory does."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel

from plaudit.errors import ConfigError
from plaudit.forest.batching import BudgetBatchSampler
from plaudit.models.adapters import base_model
from plaudit.models.equivalence import layouts_differ, probe_size
from plaudit.models.precision import compute_dtype
from plaudit.training.batching import make_sampler, wants_sampler
from plaudit.training.collator import PreferenceCollator, tokens_of
from plaudit.training.config import RewardConfig
from plaudit.training.devices import ManyDevicesTrainer
from plaudit.training.finite import FiniteWatch
from plaudit.training.memory import AccumulationStep, fitting_budget, free_memory, keep_random_state
from plaudit.training.meter import RewardMeter
from plaudit.training.objective import Objective
from plaudit.training.offload import offload_activations

__all__ = ["ForestTrainer"]

logger = logging.getLogger(__name__)

_PROBED_ROWS = 4


class ForestTrainer(ManyDevicesTrainer):
    """Knows layouts, batches and memory; a subclass knows the loss, and counts its figures in `meter` and `watch`."""

    args: RewardConfig
    meter: RewardMeter
    objective: Objective
    watch: FiniteWatch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler: BudgetBatchSampler | None = None
        self._layout_is_compared = False
        self._step = AccumulationStep()

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
            balance = f"; the largest of a step is {plan.imbalance:.2f} times the mean over processes"
            logger.info(
                "%d batches an epoch on each process, filled to %.0f%% of max_tokens_per_batch=%d%s",
                len(self.sampler), 100 * plan.fill, self.args.max_tokens_per_batch,
                balance if self.args.world_size > 1 else "",
            )  # fmt: skip
        return self.sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self.sampler is not None:
            # After a resume the loader is wrapped once more, and what the Trainer tells it does not reach the sampler.
            self.sampler.set_epoch(kwargs["epoch"])
        return super()._run_epoch(*args, **kwargs)

    # Before the first step

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_spread:
            self._compare_layouts(self.model)  # before batches are planned, which counts tokens by layout
        return super()._inner_training_loop(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loop; where it comes before any training, the layouts are compared first."""
        if not (self._is_spread or self.args.fp16_full_eval or self.args.bf16_full_eval):
            self._compare_layouts(self.model)
        return super().evaluation_loop(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self._is_spread:  # weights are on the devices by now, and not before
            planned = self.layout
            self._compare_layouts(prepared[0])
            if self.layout != planned and self.args.max_tokens_per_batch is not None:
                raise ConfigError(
                    "max_tokens_per_batch: the batches are planned for the forest, which this model cannot run (see "
                    "the warning above). Set batch_layout='padded'."
                )
        budget = self.args.max_tokens_per_batch
        # Spread, each pass is an exchange between processes, and one that fails alone would leave the others waiting.
        if self.sampler is not None and budget is not None and not self._is_spread:
            self._try_largest_batch(prepared[0], self.sampler, budget)
        return prepared

    def _compare_layouts(self, model: nn.Module) -> None:
        """Score a few rows in both layouts on every process; the first one decides for all."""
        if self.layout != "forest" or self._layout_is_compared:
            return
        self._layout_is_compared = True
        (reason,) = broadcast_object_list([self._difference(model)])
        if reason is None:
            return
        if self.args.batch_layout == "forest":
            raise ConfigError(f"batch_layout='forest' is not possible: {reason}. Use 'auto' or 'padded'.")
        logger.warning("batch layout: padded from here on, since %s", reason)
        self.data_collator.layout = "padded"

    def _difference(self, model: nn.Module) -> str | None:
        """Return what speaks against the forest on the first rows."""
        base = base_model(self.model)

        def score(layout: str, float32: bool) -> torch.Tensor:
            batch = replace(self.data_collator, layout=layout).lay_out(sequences, owners)
            # An evaluation before has wrapped the forward in autocast.
            forward = vars(model).get("_original_forward", model) if float32 else model
            with nullcontext() if float32 else self.accelerator.autocast():
                return forward(**self._prepare_inputs(batch)).logits.float().squeeze(-1)

        was_training = model.training
        with torch.no_grad(), keep_random_state():
            rows = self._first_rows()
            if not rows:
                return None
            sequences, owners = self.data_collator.sequences_and_rows(rows)
            size = probe_size([len(ids) for ids in sequences])
            sequences, owners = sequences[:size], owners[:size]
            model.eval()
            try:
                return layouts_differ(base, score, dtype=self._precision(base), can_use_float32=not self._is_spread)
            finally:
                model.train(was_training)

    def _precision(self, base: PreTrainedModel) -> torch.dtype:
        if self.args.bf16 or self.args.fp16:
            return torch.bfloat16 if self.args.bf16 else torch.float16
        return compute_dtype(base)

    def _first_rows(self) -> list[dict[str, Any]]:
        if isinstance(self.train_dataset, Dataset):
            return self.train_dataset.select(range(min(_PROBED_ROWS, len(self.train_dataset)))).to_list()
        stream: IterableDataset = self.train_dataset
        return list(islice(iter(stream), _PROBED_ROWS))

    def _try_largest_batch(self, model: nn.Module, sampler: BudgetBatchSampler, budget: int) -> None:
        """Run the costliest batch forward and backward, and forget it; if memory fails, say what would fit.

        Raises:
            ConfigError: It does not fit.
        """
        mark = self.meter.mark()

        def dearest(less: int) -> list[int]:
            if less == budget:
                return sampler.dearest
            return make_sampler(self.train_dataset, self.args, self.layout, less).dearest

        def run(rows: list[int]) -> None:
            try:
                # Processes need not agree on gradients that nobody wants.
                with self.accelerator.no_sync(model), self._offload():
                    batch = self.data_collator(self.train_dataset.select(rows).to_list())
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(model, self._prepare_inputs(batch))
                    self.accelerator.backward(loss)
            finally:
                self._forget_gradients(model)
                self.meter.rewind(mark)

        with keep_random_state(), self.objective.alone():
            model.train()
            expected = self._expected_optimizer_state()
            fits = fitting_budget(run, dearest, budget, int(sampler.planner.sizes.max()))
        del expected
        least = min(0 if each is None else each for each in gather_object([fits]))
        if least < budget:
            raise ConfigError(
                f"max_tokens_per_batch={budget} does not fit into memory: its largest batch was tried. "
                + (f"{least} fits. Set it, or turn on" if least else "Not even one row fits. Turn on")
                + " `gradient_checkpointing`, or lower `max_length`."
            )

    def _expected_optimizer_state(self) -> list[torch.Tensor]:
        """Room on the device for two numbers a trained weight, AdamW's, which the first step would take."""
        if self.args.device.type == "cpu" or self.optimizer.state:
            return []
        return [torch.empty_like(p) for p in self.model.parameters() if p.requires_grad for _ in range(2)]

    # Out of memory at a step

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one accumulation step; kept, to run the step again if it runs out of memory."""
        self.objective.zero_grad()  # the Trainer does it for the model
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._step = AccumulationStep(batches, self.meter.mark())
        return batches, count

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward; what does not fit into memory is run again in smaller pieces."""
        place = self._step.place_of(inputs)
        # Elsewhere the processes would lose their step, and a loss that is a mean over its batch changes in pieces.
        if place == 0 and self.args.world_size == 1:
            self._step.keep_random_state()
        try:
            return self._micro_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            can_be_cut = isinstance(self.data_collator, PreferenceCollator) and num_items_in_batch is not None
            if place is None or not can_be_cut or self.args.world_size > 1:
                if self.args.auto_find_batch_size:  # the Trainer starts again with smaller ones
                    raise
                raise ConfigError(
                    f"a batch of {tokens_of(inputs).sum().item()} tokens does not fit into memory. Lower "
                    "`max_tokens_per_batch` or `per_device_train_batch_size`, or turn on `gradient_checkpointing`."
                ) from error
        return self._step_in_pieces(model, place, num_items_in_batch)

    def _micro_step(self, model: nn.Module, inputs: Any, count: Any) -> torch.Tensor:
        with self._offload():
            return super().training_step(model, inputs, count)

    def _offload(self) -> AbstractContextManager[None]:
        return offload_activations(self.model, self.args.activation_offloading)

    def _forget_gradients(self, model: nn.Module) -> None:
        model.zero_grad()
        self.objective.zero_grad()

    def _step_in_pieces(self, model: nn.Module, place: int, count: Any) -> torch.Tensor:
        """Run the whole accumulation step again up to a micro-batch, what fails in halves, quarters, ..."""
        step, running = self._step, place
        while True:
            step.split(running, self.data_collator)
            logger.warning("out of memory: the step is run again, its batch in %d pieces", len(step.pieces[running]))
            free_memory()
            self._forget_gradients(model)
            step.restore_random_state()
            self.meter.rewind(step.mark)
            self.watch.start()
            try:
                for running in range(place + 1):
                    losses = [self._micro_step(model, piece, count) for piece in step.pieces[running]]
                return torch.stack(losses).sum()
            except torch.OutOfMemoryError:
                continue
