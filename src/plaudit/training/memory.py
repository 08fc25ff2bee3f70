"""Batches that do not fit into memory: found before the first step, or run again in smaller pieces."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from plaudit.errors import ConfigError
from plaudit.training.collator import PreferenceCollator, comparisons_of, sequences_of

__all__ = ["fitting_budget", "free_memory", "halves", "keep_random_state"]


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Leave torch's random state, on all devices, as it was."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        yield


def free_memory() -> None:
    """Give back what the allocator holds after a failed try."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fitting_budget(run: Callable[[list[int]], None], rows: list[int], costs: list[int], budget: int) -> int | None:
    """The greatest of `budget`, its half, its quarter, ... for which the rows run; `None` if not even one row does.

    Args:
        run: Forward and backward of some rows.
        rows: The rows of the largest batch.
        costs: What each costs, in tokens.
        budget: Tokens of a batch.
    """
    while True:
        chosen, total = [], 0
        for row, cost in sorted(zip(rows, costs, strict=True), key=lambda item: -item[1]):
            if total + cost <= budget:
                chosen.append(row)
                total += cost
        if not chosen:
            return None
        try:
            run(chosen)
        except torch.OutOfMemoryError:
            free_memory()
            budget //= 2
        else:
            return budget


def halves(batch: dict[str, Any], collator: PreferenceCollator) -> list[dict[str, Any]]:
    """A batch as two, each with half of its rows.

    Raises:
        ConfigError: It is one row.
    """
    comparisons = comparisons_of(batch)
    owner = batch.get("comparison_row", torch.arange(len(comparisons), device=comparisons.device))
    rows = owner.unique().tolist()
    if len(rows) < 2:
        raise ConfigError(
            "one row alone does not fit into memory. Lower `max_length`, turn on `gradient_checkpointing`, or use a "
            "smaller model."
        )
    middle = rows[len(rows) // 2]
    return [_part(batch, collator, owner < middle), _part(batch, collator, owner >= middle)]


def _part(batch: dict[str, Any], collator: PreferenceCollator, chosen: torch.Tensor) -> dict[str, Any]:
    """The comparisons chosen [C], with the sequences they are about and no others."""
    comparisons = comparisons_of(batch)
    owner = batch.get("comparison_row", torch.arange(len(comparisons), device=comparisons.device))[chosen]
    if "sequence_row" in batch:
        used = torch.isin(batch["sequence_row"], owner).nonzero().squeeze(-1)
        sequence_row = batch["sequence_row"][used]
    else:
        used = comparisons[chosen].unique()
        sequence_row = torch.zeros_like(used)
        sequence_row[torch.searchsorted(used, comparisons[chosen])] = owner[:, None].expand(-1, 2)
    rows, sequence_row = sequence_row.unique(return_inverse=True)
    sequences = sequences_of(batch)
    part = collator.lay_out([sequences[n] for n in used.tolist()], sequence_row.tolist())
    part = {name: tensor.to(comparisons.device) for name, tensor in part.items()}
    part["comparisons"] = torch.searchsorted(used, comparisons[chosen])
    part["comparison_row"] = torch.searchsorted(rows, owner)
    for name in ("margin", "label", "tie", "weight", "unit"):
        if name in batch:
            part[name] = batch[name][chosen]
    if "sequence_rank" in batch:
        part["sequence_row"], part["sequence_rank"] = sequence_row, batch["sequence_rank"][used]
    return part
