"""A source of rows, read as a stream of chunks in constant memory and without changing a value.

Files are read by `plaudit.data.file_formats`, folders and hub datasets by `datasets`. Training loads files by
`datasets` too, since it needs columns of one type; for scoring, `datasets` would guess types from the first rows, turn
strings that look like dates into dates, and give every row the keys of all others.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.data.file_formats import Row, RowFile, Unreadable, explain_errors, format_of, open_rows
from plaudit.data.loading import load_source, take_split
from plaudit.errors import ConfigError, DataError

__all__ = ["Chunk", "Row", "Source", "Unreadable"]


class Chunk(NamedTuple):
    """Consecutive rows of a source."""

    number: int  # the index of the chunk, from 0
    first: int  # the index of the first row in the source, from 0
    rows: list[Row | Unreadable]
    fraction_read: float | None  # of the source, at the end of the chunk; `None` if it is unknown


@dataclass(frozen=True)
class Source:
    """Rows in a file, a folder or a dataset of the hub.

    Raises:
        ConfigError: A file is given together with a configuration or another split.
    """

    path: str  # a file, a folder or a hub id
    config: str | None = None  # of a hub dataset that has several
    split: str = "train"  # the only one of a file

    def __post_init__(self) -> None:
        if self._file and (self.config is not None or self.split != "train"):
            raise ConfigError(
                f"{self.path} is a file: it has no --dataset_config and no --split but 'train'; leave them out."
            )

    def chunks(self, size: int, done: Container[int] = ()) -> Iterator[Chunk]:
        """Read the rows in order, in constant memory.

        Args:
            size: Rows of a chunk; the last one may have fewer.
            done: Indices of chunks to leave out.

        Raises:
            DataError: There are no rows, or the file is broken. A row that cannot be parsed is `Unreadable` instead.
        """
        with explain_errors(self.path):
            file = open_rows(self._file) if self._file else RowFile([], iter(self._dataset()), lambda: None)
            for number in count():
                rows = list(islice(file.rows, size))
                if not rows and not number:
                    raise DataError(f"expected rows in {self.path}, but there are none")
                if not rows:
                    return
                if number not in done:
                    yield Chunk(number, number * size, rows, file.progress())

    def schema(self) -> pa.Schema | None:
        """Return the types of the columns, if the source declares them."""
        if self._file:
            with explain_errors(self.path):
                return pq.read_schema(self._file) if format_of(self._file) == "parquet" else None
        features = getattr(self._dataset(), "features", None)
        return features.arrow_schema if features else None

    def holds(self, path: Path) -> bool:
        """Return whether a file is the source itself, or lies in its folder."""
        own, place = Path(self.path).expanduser().resolve(), path.resolve()
        return own.exists() and (own == place or own in place.parents)

    @property
    def _file(self) -> Path | None:
        """The source as a file of rows; `None` for a folder, a hub id or any other file."""
        file = Path(self.path).expanduser()
        return file if format_of(file) and file.is_file() else None

    def _dataset(self) -> Any:
        return take_split(load_source(self.path, config=self.config, streaming=True), self.split, self.path)
