"""From what a user names (a hub id, a file, a folder, a mixture) to the datasets to train and evaluate on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plaudit.data.dataset_conversion import convert
from plaudit.data.loading import load_source, take_split
from plaudit.data.mixture import load_mixture
from plaudit.data.splits import split_by_prompt
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["ScriptArguments", "load_source", "load_splits", "split_by_prompt"]

logger = logging.getLogger(__name__)


@dataclass
class ScriptArguments:
    """What to train and evaluate on; the names and defaults that TRL also has mean the same as there."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id of a dataset, or the path of a file or folder. Ignored if `datasets` is given."},
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Name of the dataset's configuration on the hub, for a dataset which has several."},
    )
    dataset_train_split: str = field(
        default="train",
        metadata={"help": "Split to train on; a slice such as `train[:1000]` is possible."},
    )
    dataset_test_split: str = field(
        default="test",
        metadata={
            "help": "Split to evaluate on. If there is no `test` split and none was named, nothing is evaluated."
        },
    )
    dataset_streaming: bool = field(
        default=False,
        metadata={"help": "Stream the dataset instead of storing it on disk first."},
    )
    ignore_bias_buffers: bool = field(
        default=False,
        metadata={"help": "Leave boolean buffers out of distributed synchronisation, for models which fail there."},
    )
    dataset_format: str | None = field(
        default=None,
        metadata={
            "help": "Published layout to convert the rows from: arena, helpsteer, hh, ranked or ultrafeedback. "
            "Leave it out for rows in one of Plaudit's own formats."
        },
    )
    eval_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the training rows to hold out for evaluation instead of a test split. "
            "Rows with the same prompt stay on the same side."
        },
    )
    datasets: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "A mixture, from a YAML file only: a list of entries with `path` and, optionally, `name`, `split`, "
            "`format`, `columns` and `weight` (or `fraction`), the entry's relative share of the rows."
        },
    )


def load_splits(args: ScriptArguments, seed: int) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """Loads what the arguments name, in one of Plaudit's native formats.

    The evaluation rows are `eval_fraction` of the training rows if that is set, and the test split otherwise. Where the
    test split was not named and is not there, there are none.

    Args:
        args: What to load.
        seed: Decides which rows a mixture draws and which are held out.

    Returns:
        The training dataset, and the evaluation dataset or None.

    Raises:
        ConfigError: If options contradict each other.
        DataError: If a source, a split or a row is not as it should be.
    """
    named_test = args.dataset_test_split not in ("", ScriptArguments.dataset_test_split)
    if args.eval_fraction is not None and named_test and not args.datasets:
        raise ConfigError(
            f"both eval_fraction={args.eval_fraction} and dataset_test_split={args.dataset_test_split!r} are set; "
            "evaluate on rows held out of the training split or on a split of their own: give one of the two"
        )
    if args.datasets:
        train, test = _load_mixture(args, seed), None
    elif args.dataset_name:
        train, test = _load_named(args, named_test)
    else:
        raise ConfigError("nothing to train on: give dataset_name (a hub id, a file or a folder) or a datasets mixture")
    return (train, test) if args.eval_fraction is None else split_by_prompt(train, args.eval_fraction, seed)


def _load_named(args: ScriptArguments, named_test: bool) -> tuple[Any, Any]:
    assert args.dataset_name is not None
    splits = load_source(args.dataset_name, config=args.dataset_config, streaming=args.dataset_streaming)
    train = take_split(splits, args.dataset_train_split, args.dataset_name)
    test = None
    if args.eval_fraction is None and (named_test or args.dataset_test_split in splits):
        test = take_split(splits, args.dataset_test_split, args.dataset_name)
    elif args.eval_fraction is None:
        logger.info(
            "There is no %r split, so nothing will be evaluated; `eval_fraction` (say 0.1) holds some rows out.",
            args.dataset_test_split,
        )
    if args.dataset_format is None:
        return train, test
    return tuple(part if part is None else convert(part, args.dataset_format) for part in (train, test))  # type: ignore[return-value]


def _load_mixture(args: ScriptArguments, seed: int) -> Dataset:
    if args.dataset_name:
        logger.warning("both datasets and dataset_name are set: dataset_name (%s) is ignored", args.dataset_name)
    if args.dataset_streaming:
        raise ConfigError("a mixture cannot be streamed; turn dataset_streaming off, or name one dataset to stream")
    return load_mixture(args.datasets or [], args.dataset_format, seed)
