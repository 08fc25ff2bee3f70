"""Where rows come from: read piece by piece, in constant memory, without changing a value.

JSON lines, CSV and Parquet are read here and not by `datasets`, which would guess types from the first rows, turn
strings that look like dates into dates, and give every row the keys of all others.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.data.loading import load_source, take_split
from plaudit.errors import ConfigError, DataError

__all__ = ["Chunk", "Row", "Source", "Unreadable"]

Row = dict[str, Any]
_FILES = {".jsonl": "lines", ".ndjson": "lines", ".csv": "csv", ".parquet": "parquet"}
_READ_AT_ONCE = 1 << 20  # bytes of a Parquet column


class Unreadable(NamedTuple):
    """A row that is none.

    Attributes:
        reason: Why.
        content: What stands in its place.
    """

    reason: str
    content: str


class Chunk(NamedTuple):
    """Consecutive rows of a source.

    Attributes:
        number: Which block it is, from 0.
        first: The number of its first row, from 0.
        rows: Its rows.
        share: How much of the source has been read at its end, from 0 to 1; `None` where nobody knows.
    """

    number: int
    first: int
    rows: list[Row | Unreadable]
    share: float | None


class _Reading(NamedTuple):
    """A source that is open: its rows as they lie there, what makes rows of them, and how far it has been read."""

    raw: Iterator[Any]
    parse: Callable[[list[Any]], list[Row | Unreadable]]
    share: Callable[[], float | None]


@dataclass(frozen=True)
class Source:
    """Rows in a file, a folder or a dataset of the hub.

    Attributes:
        path: The file or folder, or the hub id.
        config: The configuration of a hub dataset that has several.
        split: The split to read; a file has only "train".

    Raises:
        ConfigError: A file is given together with a configuration or another split.
    """

    path: str
    config: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        if self._kind() and (self.config is not None or self.split != "train"):
            raise ConfigError(
                f"{self.path} is a file: it has no --dataset_config and no --split but 'train'; leave them out."
            )

    def chunks(self, size: int, done: Container[int] = ()) -> Iterator[Chunk]:
        """The rows in order, `size` to a block (the last one may have fewer), in constant memory.

        Args:
            size: Rows of a block.
            done: Numbers of blocks to pass over; their rows are not parsed.

        Raises:
            DataError: There is nothing to read, or what is there cannot be read on. A row that cannot be parsed is no
                error here but `Unreadable`.
        """
        with self._named():
            reading = self._open()
        number = 0
        while piece := self._next(reading.raw, size):
            if number not in done:
                yield Chunk(number, number * size, reading.parse(piece), reading.share())
            number += 1
        if not number:
            raise DataError(f"expected rows in {self.path}, but there are none")

    def schema(self) -> pa.Schema | None:
        """The types of the columns, where the source says them."""
        if self._kind() == "parquet":
            with self._named():
                return pq.read_schema(Path(self.path).expanduser())
        features = None if self._kind() else getattr(self._dataset(), "features", None)
        return features.arrow_schema if features else None

    def holds(self, path: Path) -> bool:
        """Whether a file is what is read, or lies in the folder that is."""
        own, place = Path(self.path).expanduser().resolve(), path.resolve()
        return own.exists() and (own == place or own in place.parents)

    def _kind(self) -> str | None:
        """How the file is read here; `None` for all else, which `datasets` reads."""
        file = Path(self.path).expanduser()
        kind = _FILES.get(Path(file.name.lower().removesuffix(".gz")).suffix)
        packed = file.name.lower().endswith(".gz")
        return kind if file.is_file() and not (packed and kind == "parquet") else None

    def _open(self) -> _Reading:
        kind, file = self._kind(), Path(self.path).expanduser()
        if kind is None:
            return _Reading(iter(self._dataset()), lambda rows: rows, lambda: None)
        if kind == "parquet":
            return _read_parquet(file)
        raw = open(file, "rb")  # noqa: SIM115  # open as long as rows come
        size = max(file.stat().st_size, 1)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if file.name.lower().endswith(".gz") else raw  # type: ignore[assignment]
        opened = _read_lines(stream) if kind == "lines" else _read_csv(stream, self.path)
        return opened._replace(share=lambda: 1.0 if raw.closed else raw.tell() / size)

    def _dataset(self) -> Any:
        splits = load_source(self.path, config=self.config, streaming=True)
        return take_split(splits, self.split, self.path)

    def _next(self, raw: Iterator[Any], size: int) -> list[Any]:
        with self._named():
            return list(islice(raw, size))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say of what readers raise what was being read."""
        try:
            yield
        except DataError:
            raise
        # UnicodeError is a ValueError.
        except (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"cannot read on in {self.path}: {reason}; check that it is whole, and in UTF-8") from error


def _read_lines(stream: BinaryIO) -> _Reading:
    lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    return _Reading(lines, lambda pieces: [_parse_line(*piece) for piece in pieces], lambda: None)


def _parse_line(number: int, line: bytes) -> Row | Unreadable:
    try:
        row = json.loads(line, object_pairs_hook=_with_each_key_once)
    except ValueError as error:  # JSON or UTF-8
        return Unreadable(f"line {number} is not valid JSON ({error})", line.decode(errors="replace").rstrip("\r\n"))
    if not isinstance(row, dict):
        content = line.decode(errors="replace").strip()
        return Unreadable(f"line {number}: expected a JSON object, got {type(row).__name__} {content:.60}", content)
    return row


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key '{next(name for name in names if names.count(name) > 1)}' twice")
    return row


def _read_csv(stream: BinaryIO, path: str) -> _Reading:
    rows = _rows_of_csv(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    header = next(rows, [])
    if len(set(header)) != len(header):
        raise DataError(f"{path}: expected each column once, got {', '.join(header)}")

    def parse(cells: list[str]) -> Row | Unreadable:
        if len(cells) == len(header):
            return dict(zip(header, cells, strict=True))
        return Unreadable(f"expected {len(header)} fields, as the header has, got {len(cells)}", ",".join(cells))

    return _Reading(rows, lambda pieces: [parse(cells) for cells in pieces], lambda: None)


def _rows_of_csv(lines: Iterator[str]) -> Iterator[list[str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # 128 KiB unless told: less than some conversations
    # One empty line more makes an empty row, unless a quote is open still: that has swallowed all lines since.
    row: list[str] = []
    for row in csv.reader(chain(lines, ["\n"])):
        if row:
            yield row
    if row:
        raise csv.Error(f"a quote is opened and never closed, before {row[-1]!r:.60}")


def _read_parquet(file: Path) -> _Reading:
    # Unless told so, it holds the whole of a row group, which may be the whole of a file.
    table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_AT_ONCE)
    passed = 0

    def raw() -> Iterator[pa.RecordBatch]:
        nonlocal passed
        for batch in table.iter_batches(batch_size=1024):
            for place in range(batch.num_rows):
                passed += 1
                yield batch.slice(place, 1)

    def parse(rows: list[pa.RecordBatch]) -> list[Row | Unreadable]:
        return pa.Table.from_batches(rows).to_pylist()

    return _Reading(raw(), parse, lambda: passed / max(table.metadata.num_rows, 1))
