"""Rows that an audit reads several times: lists, datasets, and files that are never whole in memory."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from plaudit.data.file_formats import format_of
from plaudit.data.reader import Source, Unreadable
from plaudit.errors import DataError
from plaudit.evaluation.evaluate import load_rows

__all__ = ["open_source", "with_progress"]


class _FileRows(Source):
    """The rows of a file, read anew by each iteration."""

    def __iter__(self) -> Iterator[Any]:
        for row in chain.from_iterable(chunk.rows for chunk in self.chunks(256)):
            if isinstance(row, Unreadable):
                raise DataError(f"{self.path}: {row.reason}; mend or remove it")
            yield row


def open_source(
    source: Any,
    *,
    split: str | None,
    config: str | None,
    dataset_format: str | None,
    defaults: tuple[str, ...] = ("train",),
) -> Iterable[Any]:
    """Return rows that can be read several times; of a source with several splits, the first of `defaults`.

    Raises:
        ConfigError: A split or a configuration is given with loaded rows, or there is no such layout.
        DataError: The source cannot be read, or its split is not clear.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        # The cells of CSV files have no types of their own.
        if path.is_file() and format_of(path) in ("json", "parquet") and not any((split, config, dataset_format)):
            return _FileRows(str(path))
    rows, _ = load_rows(source, split=split, dataset_config=config, dataset_format=dataset_format, defaults=defaults)
    return list(rows) if isinstance(rows, Iterator) else rows


def with_progress(rows: Iterable[Any], title: str) -> Iterable[Any]:
    """Show a progress bar while rows are read."""
    return tqdm(rows, title, unit=" rows", delay=3, disable=None, leave=False)
