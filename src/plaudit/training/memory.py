"""Batches that do not fit into memory: found before the first step, or run again in smaller pieces."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from plaudit.errors import ConfigError
from plaudit.training.collator import PER_COMPARISON, PreferenceCollator, sequences_of

__all__ = ["AccumulationStep", "fitting_budget", "free_memory", "halves", "keep_random_state"]


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Leave the random state of torch (on all devices), NumPy and Python as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def free_memory() -> None:
    """Give back what the allocator holds after a failed try."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fitting_budget(
    run: Callable[[list[int]], None], dearest: Callable[[int], list[int]], budget: int, least: int
) -> int | None:
    """The greatest of `budget`, its half, its quarter, ... of which the dearest batch runs; `None` if none does.

    Args:
        run: Forward and backward of some rows.
        dearest: The rows of the costliest batch under a budget.
        budget: Tokens of a batch.
        least: What the largest row takes: no budget below it can be set.
    """
    while not _fits(run, dearest(budget)):
        free_memory()
        if budget <= least:
            return None
        budget = max(budget // 2, least)
    return budget


def _fits(run: Callable[[list[int]], None], rows: list[int]) -> bool:
    try:
        run(rows)
    except torch.OutOfMemoryError:
        return False
    return True


@dataclass(eq=False)
class AccumulationStep:
    """The micro-batches of one accumulation step, to run it again in smaller pieces.

    Attributes:
        batches: The micro-batches.
        mark: Where the meter was before the first.
        pieces: What each micro-batch is run in: itself, or parts of it.
    """

    batches: list[Any] = field(default_factory=list)
    mark: int = 0
    pieces: list[list[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = [[batch] for batch in self.batches]
        self._random_state: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def place_of(self, batch: Any) -> int | None:
        """Which micro-batch this is; `None` if it is none of them."""
        return next((place for place, each in enumerate(self.batches) if each is batch), None)

    def keep_random_state(self) -> None:
        """Remember torch's random state as that before the first micro-batch."""
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._random_state = torch.get_rng_state(), devices

    def restore_random_state(self) -> None:
        """Set torch's random state to the one remembered."""
        if self._random_state is not None:
            state, devices = self._random_state
            torch.set_rng_state(state)
            if devices:
                torch.cuda.set_rng_state_all(devices)

    def split(self, place: int, collator: PreferenceCollator) -> None:
        """Cut each piece of a micro-batch in two.

        Raises:
            ConfigError: Each is one row.
        """
        pieces = [half for piece in self.pieces[place] for half in halves(piece, collator)]
        if len(pieces) == len(self.pieces[place]):
            raise ConfigError(
                "one row alone does not fit into memory. Lower `max_length`, turn on `gradient_checkpointing`, or use "
                "a smaller model."
            )
        self.pieces[place] = pieces


def halves(batch: dict[str, Any], collator: PreferenceCollator) -> list[dict[str, Any]]:
    """A batch of the collator as two, each with half of its rows; as it is if it is one row."""
    owner = batch["comparison_row"]
    rows = owner.unique().tolist()
    if len(rows) < 2:
        return [batch]
    middle = rows[len(rows) // 2]
    return [_part(batch, collator, owner < middle), _part(batch, collator, owner >= middle)]


def _part(batch: dict[str, Any], collator: PreferenceCollator, chosen: torch.Tensor) -> dict[str, Any]:
    """The comparisons chosen [C], with the sequences of their rows and no others."""
    comparisons, owner = batch["comparisons"][chosen], batch["comparison_row"][chosen]
    used = torch.isin(batch["sequence_row"], owner).nonzero().squeeze(-1)
    rows, sequence_row = batch["sequence_row"][used].unique(return_inverse=True)
    sequences = sequences_of(batch)
    part = collator.lay_out([sequences[n] for n in used.tolist()], sequence_row.tolist())
    part = {name: tensor.to(comparisons.device) for name, tensor in part.items()}
    part["comparisons"] = torch.searchsorted(used, comparisons)
    part["comparison_row"] = torch.searchsorted(rows, owner)
    part["sequence_row"] = sequence_row
    for name in PER_COMPARISON:
        if name in batch:
            part[name] = batch[name][chosen]
    if "sequence_rank" in batch:
        part["sequence_rank"] = batch["sequence_rank"][used]
    return part
