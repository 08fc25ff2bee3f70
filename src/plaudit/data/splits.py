"""Rows held out for evaluation, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from plaudit.data.prompts import prompt_of
from plaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["split_by_prompt"]


def split_by_prompt(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Holds rows out so that no prompt is on both sides.

    A row's prompt is its `prompt`. Where that is implicit, it is the common leading messages of the row's responses up
    to the last which is not the assistant's; of two texts, their common start cut back to where a reply begins, or
    to the last line, sentence or word. Without a mark of the reply that is a guess: give a `prompt` column where it
    matters. Prompts are drawn by a hash with the seed, so one more or less row moves few others across.

    Args:
        dataset: Rows in one of the native formats.
        fraction: The fraction of the rows to hold out, above 0 and below 1.
        seed: Decides which prompts are held out.

    Returns:
        The rows to train on and those held out, each in their order.

    Raises:
        ConfigError: If the fraction is out of range or the dataset is streaming.
        DataError: If either side would be empty.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"expected eval_fraction above 0 and below 1, got {fraction}")
    if not hasattr(dataset, "num_rows"):
        raise ConfigError(
            "eval_fraction needs to see all rows, and a stream does not let it; turn dataset_streaming off, "
            "or evaluate on a split of its own with dataset_test_split"
        )
    columns = [name for name in ("prompt", "chosen", "rejected", "completions") if name in dataset.column_names]
    if not ({"prompt", "completions"} & set(columns) or {"chosen", "rejected"} <= set(columns)):
        raise DataError(
            "eval_fraction keeps rows with the same prompt together, and expects a column 'prompt', both 'chosen' and "
            "'rejected', or 'completions', "
            f"but they have {', '.join(dataset.column_names)}; name their layout with dataset_format"
        )
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(dataset.select_columns(columns)):
        prompt = json.dumps(prompt_of(row), sort_keys=True)
        groups[hashlib.blake2b(f"{seed} {prompt}".encode()).hexdigest()].append(index)
    if len(groups) < 2:
        raise DataError(
            f"cannot hold out {fraction:g} of {dataset.num_rows} rows: they have {len(groups)} distinct prompts, and "
            "rows with the same prompt stay together; give rows of two prompts or more, or a test split of its own"
        )
    held = set(_draw_groups(groups, max(1, round(fraction * dataset.num_rows))))
    sides: tuple[list[int], list[int]] = ([], [])
    for index in range(dataset.num_rows):
        sides[index in held].append(index)
    return dataset.select(sides[0]), dataset.select(sides[1])


def _draw_groups(groups: Mapping[str, list[int]], wanted: int) -> Iterator[int]:
    """Row indices of whole groups, drawn in hash order while they fit; of the smallest group where none fits."""
    left = wanted
    for key in sorted(groups)[1:]:  # one group always stays
        if len(groups[key]) <= left:
            left -= len(groups[key])
            yield from groups[key]
    if left == wanted:
        yield from min(groups.values(), key=len)
