"""The splits to train and evaluate on: loaded as the options name them, or held out so that no prompt is in both."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from plaudit.data.dataset_conversion import convert
from plaudit.data.loading import load_source, take_split
from plaudit.data.mixture import load_mixture
from plaudit.data.prompts import prompt_of
from plaudit.data.script_arguments import ScriptArguments
from plaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["load_splits", "split_by_prompt"]

logger = logging.getLogger(__name__)


def load_splits(args: ScriptArguments, seed: int) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """Load the training and the evaluation split that the options name, in one of Plaudit's own formats.

    The evaluation split is `eval_fraction` of the training rows if that is set, else the test split. It is `None` if no
    test split was named and the dataset has no split `test`. The seed decides which rows a mixture draws and which are
    held out.

    Raises:
        ConfigError: Options contradict each other.
        DataError: A dataset or split cannot be loaded, or a row is malformed.
    """
    named_test = args.dataset_test_split not in ("", ScriptArguments.dataset_test_split)
    if args.eval_fraction is not None and named_test and not args.datasets:
        raise ConfigError(
            f"both eval_fraction={args.eval_fraction} and dataset_test_split={args.dataset_test_split!r} are set; "
            "evaluate on rows held out of the training split or on a split of their own: give one of the two"
        )
    if args.datasets and args.dataset_streaming:
        raise ConfigError("a mixture cannot be streamed; turn dataset_streaming off, or name one dataset to stream")
    if args.datasets:
        if args.dataset_name:
            logger.warning("both datasets and dataset_name are set: dataset_name (%s) is ignored", args.dataset_name)
        train, test = load_mixture(args.datasets, args.dataset_format, seed), None
    elif args.dataset_name:
        train, test = _load_named(args, args.dataset_name, named_test)
    else:
        raise ConfigError("nothing to train on: give dataset_name (a hub id, a file or a folder) or a datasets mixture")
    return (train, test) if args.eval_fraction is None else split_by_prompt(train, args.eval_fraction, seed)


def _load_named(args: ScriptArguments, path: str, named_test: bool) -> tuple[Any, Any]:
    splits = load_source(path, config=args.dataset_config, streaming=args.dataset_streaming)
    train, test = take_split(splits, args.dataset_train_split, path), None
    if args.eval_fraction is None and (named_test or args.dataset_test_split in splits):
        test = take_split(splits, args.dataset_test_split, path)
    elif args.eval_fraction is None:
        logger.info(
            "There is no %r split, so nothing will be evaluated; `eval_fraction` (say 0.1) holds some rows out.",
            args.dataset_test_split,
        )
    if args.dataset_format is not None:
        train = convert(train, args.dataset_format)
        test = None if test is None else convert(test, args.dataset_format)
    return train, test


def split_by_prompt(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a fraction of the rows so that no prompt is in both splits.

    The implicit prompt of plain texts without a mark of the reply is a guess (see `plaudit.data.prompts.prompt_of`):
    give such rows a column `prompt`. Prompts are drawn by a hash with the seed, so that a change of few rows moves few
    others between the splits.

    Args:
        dataset: Rows in one of Plaudit's formats.
        fraction: The fraction of the rows to hold out, above 0 and below 1.
        seed: Decides which prompts are held out.

    Returns:
        The training rows and the rows held out, both in their order.

    Raises:
        ConfigError: The fraction is out of range or the dataset is a stream.
        DataError: One of the splits would be empty.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"expected eval_fraction above 0 and below 1, got {fraction}")
    if not hasattr(dataset, "num_rows"):
        raise ConfigError(
            "eval_fraction needs all rows at once, which a stream does not have; turn dataset_streaming off, "
            "or evaluate on a split of its own with dataset_test_split"
        )
    columns = [name for name in ("prompt", "chosen", "rejected", "completions") if name in dataset.column_names]
    if not ({"prompt", "completions"} & set(columns) or {"chosen", "rejected"} <= set(columns)):
        raise DataError(
            "eval_fraction keeps rows with the same prompt together, and expects a column 'prompt', both 'chosen' and "
            f"'rejected', or 'completions', but they have {', '.join(dataset.column_names)}; name their layout with "
            "dataset_format"
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
    held = set(_held_out(groups, max(1, round(fraction * dataset.num_rows))))
    train = [index for index in range(dataset.num_rows) if index not in held]
    return dataset.select(train), dataset.select(sorted(held))


def _held_out(groups: Mapping[str, list[int]], wanted: int) -> Iterator[int]:
    """Yield the row indices of whole groups in hash order, as long as they fit; of the smallest group if none fits."""
    left = wanted
    for key in sorted(groups)[1:]:  # one group is never held out
        if len(groups[key]) <= left:
            left -= len(groups[key])
            yield from groups[key]
    if left == wanted:
        yield from min(groups.values(), key=len)
