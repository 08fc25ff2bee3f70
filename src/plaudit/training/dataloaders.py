"""Data loaders: from tokenised rows to batches, by rows or by tokens."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers.trainer_utils import seed_worker

from plaudit.forest.sampler import TokenBudgetBatchSampler
from plaudit.forest.trie import SHARED_TOKENS, common_tokens
from plaudit.training.batch import Batch
from plaudit.training.config import RewardConfig
from plaudit.training.member_weights import WithMemberWeights

__all__ = [
    "make_batch_sampler",
    "make_eval_loader",
    "make_train_loader",
    "prepare_loader",
    "read_stream",
    "token_costs",
]

logger = logging.getLogger(__name__)

# The columns of tokenised rows that make a batch, and those that say which row it is.
_COLUMNS = (
    "chosen_ids", "rejected_ids", "sequence_ids", "ranks", "scores", "comparisons", "ties", "margin", "label", "tie",
    "weight",
)  # fmt: skip
_ROW_COLUMNS = ("row_number", "prompt_key")

AnyDataset: TypeAlias = Dataset | IterableDataset
Collator = Callable[[list[dict[str, Any]]], Batch | Mapping[str, Any]]


def make_train_loader(
    dataset: AnyDataset, collator: Collator, args: RewardConfig, *, layout: str, batch_size: int, members: int = 0
) -> tuple[DataLoader, TokenBudgetBatchSampler | None]:
    """Make the training loader, and the batch sampler if the options ask for batches by tokens or prompts.

    Without one, rows come in the order of the stock Trainer: random or sequential, or as a stream gives them.

    Args:
        dataset: Tokenised rows, map-style or streaming.
        collator: Makes a `Batch`, or a dict in TRL's shape, of a list of rows.
        args: The options of the run.
        layout: The layout of batches, by which tokens are counted.
        batch_size: Rows of a batch, where no batch sampler decides.
        members: The number of heads of an ensemble, each of which weighs the rows in its own way.

    Raises:
        ConfigError: A row exceeds `max_tokens_per_batch`, or there are fewer rows than processes.
    """
    seeding = partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
    options = _options(collator, args) | {"worker_init_fn": seeding}
    if members:
        options["collate_fn"] = WithMemberWeights(options["collate_fn"], members, args.seed)
    if isinstance(dataset, IterableDataset):
        if args.world_size > 1 or args.dataloader_num_workers > 1:
            dataset = dataset.remove_columns("row_number")  # each of several readers numbers its own rows from 0
        return DataLoader(dataset, batch_size=batch_size, **options), None
    rows = _select_columns(dataset, args)
    if args.max_tokens_per_batch is not None or args.group_by_prompt:
        batch_sampler = make_batch_sampler(dataset, args, layout, rows=batch_size)
        _log_plan(batch_sampler, args)
        return DataLoader(rows, batch_sampler=batch_sampler, **options), batch_sampler
    sampler = (SequentialSampler if args.train_sampling_strategy == "sequential" else RandomSampler)(rows)
    options["drop_last"] = args.dataloader_drop_last
    return DataLoader(rows, batch_size=batch_size, sampler=sampler, **options), None


def make_eval_loader(dataset: Dataset, collator: Collator, args: RewardConfig) -> DataLoader:
    """Make a loader of all rows in their order, the last batch as short as it comes."""
    numbers = dataset.with_format("numpy")["row_number"][:] if "row_number" in dataset.column_names else []
    if len(np.unique(numbers)) < len(dataset):  # datasets that were joined after they were tokenised
        numbered = dataset.remove_columns("row_number") if len(numbers) else dataset
        dataset = numbered.add_column("row_number", np.arange(len(dataset)))
    return DataLoader(_select_columns(dataset, args), batch_size=args.eval_batch_size, **_options(collator, args))


def prepare_loader(accelerator: Accelerator, loader: DataLoader) -> DataLoader:
    """Let accelerate deal the batches of a loader out to processes.

    A `TokenBudgetBatchSampler` gives every process as many batches. accelerate would even out the rows of batches, for
    which it needs the number of rows in a batch.
    """
    even = accelerator.even_batches
    accelerator.even_batches = even and not isinstance(loader.batch_sampler, TokenBudgetBatchSampler)
    try:
        return accelerator.prepare(loader)
    finally:
        accelerator.even_batches = even


def read_stream(stream: IterableDataset) -> Dataset:
    """Read a stream of tokenised rows to its end, and keep the columns that make a batch in memory.

    Evaluation needs rows that can be numbered and shared out to processes, and reads them many times.
    """
    wanted = {*_COLUMNS, *_ROW_COLUMNS}
    return Dataset.from_list([{name: row[name] for name in row if name in wanted} for row in stream])


def _options(collator: Collator, args: RewardConfig) -> dict[str, Any]:
    return {
        "collate_fn": _ToBatch(collator),
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "in_order": args.dataloader_in_order,
    }


@dataclass(frozen=True)
class _ToBatch:
    """The collate function of a loader: whatever a collator returns, as a `Batch` with the numbers of its rows."""

    collator: Collator

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        own = [{name: value for name, value in row.items() if name not in _ROW_COLUMNS} for row in rows]
        batch = Batch.of(self.collator(own))
        columns: dict[str, Any] = {
            name: torch.tensor([row[name] for row in rows]) for name in _ROW_COLUMNS if name in rows[0]
        }
        return replace(batch, **columns)


def _select_columns(dataset: Dataset, args: RewardConfig) -> Dataset:
    """Keep the columns that make a batch, which read faster; with `remove_unused_columns=False`, all columns."""
    if not args.remove_unused_columns:
        return dataset
    return dataset.select_columns([name for name in dataset.column_names if name in {*_COLUMNS, *_ROW_COLUMNS}])


# Batches by tokens, or with the rows of one prompt together


def make_batch_sampler(
    dataset: Dataset, args: RewardConfig, layout: str, *, rows: int = 1, budget: int | None = None
) -> TokenBudgetBatchSampler:
    """Make the sampler of the batches of all processes.

    Args:
        dataset: Tokenised rows.
        args: The options of the run.
        layout: "forest" counts a shared prefix once, "padded" every sequence as long as the longest of all.
        rows: Rows of a batch, without `max_tokens_per_batch`.
        budget: Tokens of a batch, instead of `max_tokens_per_batch`.

    Raises:
        ConfigError: A row exceeds the budget, or there are fewer rows than processes.
    """
    keys = np.asarray(dataset.with_format("numpy")["prompt_key"][:]) if args.group_by_prompt else None
    shared, capacity = None, budget or args.max_tokens_per_batch
    if capacity is None:
        costs, capacity = np.ones(len(dataset), dtype=np.int64), rows
    else:
        costs = token_costs(dataset, layout)
        if keys is not None and layout == "forest":
            shared = _shared_with_prompt(dataset, keys)
    return TokenBudgetBatchSampler(
        costs,
        capacity,
        keys=keys,
        shared=shared,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        num_processes=args.world_size,
        shuffle=args.train_sampling_strategy != "sequential",
        drop_last=args.dataloader_drop_last,
        row_numbers=dataset.with_format("numpy")["row_number"][:],
    )


def _log_plan(sampler: TokenBudgetBatchSampler, args: RewardConfig) -> None:
    if args.max_tokens_per_batch is None:
        return
    processes = args.world_size
    balance = f"; the largest of a step is {sampler.imbalance:.2f} times the mean over processes"
    logger.info(
        "%d batches an epoch on each process, filled to %.0f%% of max_tokens_per_batch=%d%s",
        len(sampler) // processes, 100 * sampler.fill, args.max_tokens_per_batch, balance if processes > 1 else "",
    )  # fmt: skip


def token_costs(dataset: Dataset, layout: str) -> NDArray[np.int64]:
    """Return the tokens that each row takes in a batch of a layout [R]."""
    if layout == "forest":
        return np.asarray(dataset.with_format("numpy")["num_tokens"][:], dtype=np.int64)
    # A batch is padded to its longest sequence. The longest sequence of all bounds the size of every batch.
    lengths = dataset["sequence_lengths"][:]
    longest = max(max(row) for row in lengths)
    return np.array([len(row) * longest for row in lengths], dtype=np.int64)


def _shared_with_prompt(dataset: Dataset, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens with which all sequences of a row begin as the first row of its prompt does [R].

    It is 0 where they are too few for the forest to share.
    """
    first: dict[int, Any] = {}
    shared = np.zeros(len(keys), dtype=np.int64)
    for number, (key, sequences) in enumerate(zip(keys.tolist(), _sequences(dataset), strict=True)):
        prompt = first.setdefault(key, sequences[0])
        common = min(common_tokens(prompt, sequence) for sequence in sequences)
        shared[number] = common if common >= SHARED_TOKENS else 0
    return shared


def _sequences(dataset: Dataset) -> Iterator[list[Any]]:
    columns = [name for name in ("sequence_ids", "chosen_ids", "rejected_ids") if name in dataset.column_names]
    for batch in dataset.select_columns(columns).with_format("numpy").iter(1000):
        if "sequence_ids" in batch:
            yield from (list(row) for row in batch["sequence_ids"])
        else:
            yield from (list(row) for row in zip(batch["chosen_ids"], batch["rejected_ids"], strict=True))
