"""The batches of one rank, handed to transformers' `Trainer`."""

import math
from collections.abc import Iterator

from transformers.trainer_pt_utils import BatchRebalanceSampler

from plaudit.errors import ConfigError
from plaudit.forest.planning import BatchPlanner, EpochPlan

__all__ = ["BudgetBatchSampler"]


class BudgetBatchSampler(BatchRebalanceSampler):
    """This rank's batches, for transformers' `Trainer`.

    The `Trainer` takes this base class for a batch sampler that shards by itself; nothing else of it is used. It also
    takes for granted that all epochs have the same number of batches: its schedule and where it resumes depend on it.
    So the epochs that will run are packed here once, and each is given as many batches as the one that needs most. A
    resumed run thus needs the same epochs or steps to find its place.

    Args:
        planner: Packs the epochs.
        rank: Whose batches to yield.
        epochs: How many epochs will run.
        max_steps: How many optimiser steps will run, instead of `epochs`, if above 0.
        accumulation: How many batches of a rank make an optimiser step.

    Attributes:
        epoch: The epoch that the next iteration yields.
        dearest: Rows of the costliest batch of all epochs that will run: whether memory suffices is tried on these.

    Raises:
        ConfigError: `drop_last` leaves no batch, or an option is out of range.
    """

    def __init__(
        self,
        planner: BatchPlanner,
        *,
        rank: int = 0,
        epochs: float = 1.0,
        max_steps: int = -1,
        accumulation: int = 1,
    ) -> None:
        # The base's constructor would plan by rows and lengths: not called, as nothing reads what it sets.
        if not 0 <= rank < planner.world_size:
            raise ConfigError(f"rank: expected 0 to {planner.world_size - 1}, got {rank!r}.")
        if accumulation < 1 or (max_steps < 1 and not epochs > 0):
            raise ConfigError(
                "expected `accumulation` and one of `epochs` and `max_steps` above 0, got "
                f"accumulation={accumulation!r}, epochs={epochs!r}, max_steps={max_steps!r}."
            )
        self.planner, self.rank, self.drop_last = planner, rank, planner.drop_last
        self.epoch = 0
        self._batches_per_rank, self.dearest = self._look_ahead(epochs, max_steps, accumulation)
        self._planned: tuple[int, EpochPlan] | None = None

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch, over all ranks. Only the last one asked for is kept."""
        if self._planned is None or self._planned[0] != self.epoch:
            batches = self._batches_per_rank * self.planner.world_size
            self._planned = self.epoch, self.planner.plan(self.epoch, batches)
        return self._planned[1]

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration yield this epoch; one that is under way stays as it is."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        return self.plan.batches(self.rank)

    def __len__(self) -> int:
        return self._batches_per_rank

    def _look_ahead(self, epochs: float, max_steps: int, accumulation: int) -> tuple[int, list[int]]:
        """Batches per rank, enough for the fullest epoch (with `drop_last`, what each can fill); and the dearest."""
        world_size, drop_last = self.planner.world_size, self.planner.drop_last
        per_rank, dearest_cost, epoch = 0, 0, 0
        dearest: list[int] = []
        while True:
            count, cost, rows = self.planner.count(epoch)
            whole = count // world_size if drop_last else math.ceil(count / world_size)
            per_rank = whole if epoch == 0 else min(per_rank, whole) if drop_last else max(per_rank, whole)
            if per_rank == 0:
                raise ConfigError(
                    f"dataloader_drop_last: the rows do not fill a batch on each of {world_size} processes, so nothing "
                    "is left. Make the batches smaller, or keep the last one."
                )
            if cost > dearest_cost:
                dearest_cost, dearest = cost, rows
            epoch += 1
            steps = math.ceil(per_rank / accumulation)  # of an epoch; the Trainer counts epochs in the same way
            if epoch >= (math.ceil(max_steps / steps) if max_steps > 0 else math.ceil(epochs)) or self.planner.constant:
                return per_rank, dearest
