"""Numbered rows: how evaluation counts each row exactly once, and how training names one.

A distributed loader fills up its last batch with rows that were there before, so that all processes run as many
batches. Each row therefore carries its number, and duplicates fall away by it after all processes have shared what they
computed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import IterableDataset as HubStream
from torch.utils.data import Dataset, IterableDataset, get_worker_info

__all__ = ["NumberedRows", "NumberingCollator", "ROW_NUMBER", "number_rows", "number_stream"]

ROW_NUMBER = "row_number"


def number_rows(dataset: Any) -> Dataset | IterableDataset:
    """The same rows, each with its number in the dataset."""
    return NumberedRows(dataset) if hasattr(dataset, "__len__") else _NumberedStream(dataset)


def number_stream(stream: HubStream) -> HubStream:
    """The same stream, of the same kind, each row with its number in it; only right where one reader reads it all."""
    return stream.map(lambda _, number: {ROW_NUMBER: number}, with_indices=True)


class NumberedRows(Dataset):
    """Rows that can be looked up, each with its number under `row_number`.

    Attributes:
        rows: The rows without it.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.rows[number], ROW_NUMBER: number}

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Torch's hook for fetching a batch at once, which an Arrow dataset does much faster."""
        fetch = getattr(self.rows, "__getitems__", None)
        rows = fetch(numbers) if fetch else [self.rows[number] for number in numbers]
        return [{**row, ROW_NUMBER: number} for row, number in zip(rows, numbers, strict=True)]


class _NumberedStream(IterableDataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Each loader worker reads its own part of a stream, so workers take turns in the numbers.
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for count, row in enumerate(self.rows):
            yield {**row, ROW_NUMBER: first + count * step}


class NumberingCollator:
    """Any collator, with the rows' numbers added to its batch under `row_number`, shape [rows]."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch of rows."""
        numbers = torch.tensor([row[ROW_NUMBER] for row in examples])
        batch = self.collator([{name: value for name, value in row.items() if name != ROW_NUMBER} for row in examples])
        batch[ROW_NUMBER] = numbers  # into whatever kind of mapping it made
        return batch
