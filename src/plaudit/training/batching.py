"""Batches by tokens, or with the rows of one prompt together: the sampler that the Trainer's options ask for."""

from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers.trainer_pt_utils import BatchRebalanceSampler

from plaudit.forest.sampler import TokenBudgetBatchSampler
from plaudit.forest.trie import SHARED_TOKENS, TokenForest, common_tokens
from plaudit.training.config import RewardConfig

__all__ = ["BudgetBatchSampler", "make_sampler", "wants_sampler"]


class BudgetBatchSampler(BatchRebalanceSampler):
    """The batches of one process. The `Trainer` takes its base class for a batch sampler that shards by itself."""

    def __init__(self, plan: TokenBudgetBatchSampler, sizes: NDArray[np.int64], rank: int, world_size: int) -> None:
        self.plan, self.planner = plan, SimpleNamespace(sizes=sizes)
        self.rank, self.world_size, self.drop_last = rank, world_size, False

    @property
    def dearest(self) -> list[int]:
        """Row indices of the costliest batch of all processes."""
        return self.plan.largest_batch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields."""
        self.plan.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.plan, self.rank, None, self.world_size)

    def __len__(self) -> int:
        return len(self.plan) // self.world_size


def wants_sampler(args: RewardConfig) -> bool:
    """Whether the options ask for more than a number of rows in each batch."""
    return args.max_tokens_per_batch is not None or args.group_by_prompt


def make_sampler(dataset: Dataset, args: RewardConfig, layout: str, budget: int | None = None) -> BudgetBatchSampler:
    """The batches of one process over all epochs.

    Args:
        dataset: Tokenised rows; with `prompt_key` if rows of a prompt go together.
        args: The run's options.
        layout: "forest" counts a shared prefix once, "padded" every sequence as long as the longest of all.
        budget: Instead of `max_tokens_per_batch`.

    Raises:
        ConfigError: A row exceeds the budget, or there are fewer rows than processes.
    """
    keys = np.asarray(dataset.with_format("numpy")["prompt_key"]) if args.group_by_prompt else None
    shared, capacity = None, budget or args.max_tokens_per_batch
    if capacity is None:
        sizes, capacity = np.ones(len(dataset), dtype=np.int64), args.train_batch_size
    else:
        sizes = _sizes(dataset, layout)
        if keys is not None and layout == "forest":
            shared = _shared(dataset, keys)
    processes = max(1, args.world_size)
    plan = TokenBudgetBatchSampler(
        sizes,
        capacity,
        keys=keys,
        shared=shared,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        num_processes=processes,
        shuffle=args.train_sampling_strategy != "sequential",
        drop_last=args.dataloader_drop_last,
    )
    return BudgetBatchSampler(plan, sizes, args.process_index, processes)


def _sequences(dataset: Dataset) -> Iterator[list[Any]]:
    """Each row's sequences."""
    columns = [name for name in ("sequence_ids", "chosen_ids", "rejected_ids") if name in dataset.column_names]
    for batch in dataset.select_columns(columns).with_format("numpy").iter(1000):
        if "sequence_ids" in batch:
            yield from (list(row) for row in batch["sequence_ids"])
        else:
            yield from (list(row) for row in zip(batch["chosen_ids"], batch["rejected_ids"], strict=True))


def _sizes(dataset: Dataset, layout: str) -> NDArray[np.int64]:
    """Tokens that each row takes [R]."""
    if layout == "forest":
        return np.array([_distinct(sequences) for sequences in _sequences(dataset)], dtype=np.int64)
    # A batch is padded to its longest sequence, whichever rows meet there: none is larger than with the longest of all.
    shapes = [(len(sequences), max(map(len, sequences))) for sequences in _sequences(dataset)]
    longest = max((length for _, length in shapes), default=1)
    return np.array([count * longest for count, _ in shapes], dtype=np.int64)


def _distinct(sequences: list[Any]) -> int:
    if len(sequences) == 2:
        return len(sequences[0]) + len(sequences[1]) - common_tokens(*sequences)
    return len(TokenForest.from_sequences(sequences))


def _shared(dataset: Dataset, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens that all of a row's sequences begin as the first row of its prompt [R], if it is enough to be shared."""
    first: dict[int, Any] = {}
    shared = np.zeros(len(keys), dtype=np.int64)
    for number, (key, sequences) in enumerate(zip(keys.tolist(), _sequences(dataset), strict=True)):
        prompt = first.setdefault(key, sequences[0])
        common = min(common_tokens(prompt, sequence) for sequence in sequences)
        shared[number] = common if common >= SHARED_TOKENS else 0
    return shared
