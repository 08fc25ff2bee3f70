"""A trial of the largest batch before the first step, so that a lack of memory shows at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plaudit.errors import ConfigError
from plaudit.training.batch import Batch
from plaudit.training.dataloaders import make_batch_sampler
from plaudit.training.distributed import is_sharded
from plaudit.training.random_state import keep_random_state

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

__all__ = ["TryLargestBatch", "explain_out_of_memory", "fitting_budget"]


class TryLargestBatch(TrainerCallback):
    """Runs the costliest batch of the first epoch forward and backward, without a step, if batches go by tokens.

    Batches are filled to at least 95% of the budget wherever that can be, so one of another epoch costs little more.

    A sharded model is left out: each of its passes is an exchange between processes, and one that fails on one process
    would leave the others waiting.

    Args:
        trainer: The trainer, with the model wrapped and the batches planned.
    """

    def __init__(self, trainer: "RewardTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Run the trial.

        Raises:
            ConfigError: The largest batch does not fit into memory; it names a budget that does, if there is one.
        """
        trainer, sampler = self.trainer, self.trainer.sampler
        budget = trainer.args.max_tokens_per_batch
        if sampler is None or budget is None or is_sharded(trainer):
            return

        def largest_batch(smaller: int) -> list[int]:
            if smaller == budget:
                return sampler.largest_batch
            return make_batch_sampler(trainer.train_dataset, trainer.args, trainer.layout, budget=smaller).largest_batch

        with keep_random_state(), trainer.objective.local_backward():
            trainer.model_wrapped.train()
            expected = self._expected_optimizer_state()
            fits = fitting_budget(self._run, largest_batch, budget, sampler.greatest_cost)
        del expected
        least = min(0 if each is None else each for each in gather_object([fits]))
        if least < budget:
            raise ConfigError(
                f"max_tokens_per_batch={budget} does not fit into memory: its largest batch was tried. "
                + (f"{least} fits. Set it, or turn on" if least else "Not even one row fits. Turn on")
                + " `gradient_checkpointing`, or lower `max_length`."
            )

    def _run(self, rows: list[int]) -> None:
        """Run some rows forward and backward without an exchange of gradients, and leave no trace."""
        trainer, model = self.trainer, self.trainer.model_wrapped
        try:
            with trainer.accelerator.no_sync(model), trainer.activation_offloading():
                batch = Batch.of(trainer.data_collator(trainer.train_dataset.select(rows).to_list())).to(
                    trainer.args.device
                )
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, batch)
                trainer.accelerator.backward(loss)
        finally:
            model.zero_grad()
            trainer.objective.zero_grad()
            trainer.reward_log.clear()

    def _expected_optimizer_state(self) -> list[torch.Tensor]:
        """Return the memory that the first step of AdamW would take on the device: two numbers a trained weight."""
        trainer = self.trainer
        if trainer.args.device.type == "cpu" or trainer.optimizer.state:
            return []
        return [torch.empty_like(p) for p in trainer.model.parameters() if p.requires_grad for _ in range(2)]


def fitting_budget(
    run: Callable[[list[int]], None], largest_batch: Callable[[int], list[int]], budget: int, least: int
) -> int | None:
    """Return the greatest of `budget`, its half, its quarter, ... whose largest batch runs; `None` if none does.

    Args:
        run: Runs some rows forward and backward; raises `torch.OutOfMemoryError` if they do not fit.
        largest_batch: Gives the rows of the costliest batch under a budget.
        budget: Tokens of a batch.
        least: Tokens of the largest row: no budget below it can be set.
    """
    while True:
        with suppress(torch.OutOfMemoryError):
            run(largest_batch(budget))
            return budget
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if budget <= least:
            return None
        budget = max(budget // 2, least)


@contextmanager
def explain_out_of_memory(args: TrainingArguments, batch: Batch) -> Iterator[None]:
    """Explain a step that runs out of memory, unless the Trainer itself looks for a smaller batch size.

    Raises:
        ConfigError: The batch does not fit. The message says what to lower.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if args.auto_find_batch_size:
            raise
        raise ConfigError(
            f"a batch of {batch.tokens.sum().item()} tokens does not fit into memory. Lower `max_tokens_per_batch` or "
            "`per_device_train_batch_size`, or turn on `gradient_checkpointing`."
        ) from error
