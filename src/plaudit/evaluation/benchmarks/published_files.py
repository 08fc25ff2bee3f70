"""Rows of a published benchmark, from the hub or from a local copy of its files."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from plaudit.data.file_formats import Unreadable, explain_errors, format_of, open_rows
from plaudit.errors import DataError

__all__ = ["HubDataset", "files_of", "is_hub_id", "read_file", "read_hub"]


class HubDataset(NamedTuple):
    """One split of a hub dataset; `columns` are added to its rows, where only their place tells a value."""

    id: str
    split: str | None = None  # None for all
    config: str | None = None
    columns: tuple[tuple[str, str], ...] = ()


def is_hub_id(data: str) -> bool:
    """Return whether a text can be the hub id of a dataset, such as `allenai/reward-bench`, and no path in a folder."""
    can_be_id = bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", data)) and format_of(Path(data)) is None
    return can_be_id and not Path(data).parent.is_dir()


def read_hub(datasets: Sequence[HubDataset]) -> Iterator[dict[str, Any]]:
    """Read the rows of hub datasets, one dataset after the other."""
    from plaudit.data.loading import load_source, take_split

    for part in tqdm(datasets, desc="loading", delay=3, disable=None, leave=False):
        with _without_retries_in_the_log():
            splits = load_source(part.id, config=part.config)
        for split in [part.split] if part.split else splits:
            yield from (row | dict(part.columns) for row in take_split(splits, split, part.id))


@contextmanager
def _without_retries_in_the_log() -> Iterator[None]:
    """Silence the libraries that warn of each retry: where the hub cannot be reached, one error says so at the end."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets", "fsspec")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def files_of(path: Path) -> list[Path]:
    """Return a file, or the files of rows in a folder and its subfolders, sorted, without hidden ones."""
    if path.is_file():
        return [path]
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and format_of(file))
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def read_file(file: Path) -> list[dict[str, Any]]:
    """Read all rows of a JSON, CSV or Parquet file."""
    rows = []
    with explain_errors(file):
        for row in open_rows(file).rows:
            if isinstance(row, Unreadable):
                raise DataError(f"{file}: {row.reason}; download it again")
            rows.append(row)
    return rows
