"""Rows of JSON, CSV and Parquet files, read one after the other with the values that the file holds.

In CSV a cell is text, and an empty cell is no value (`None`), as if the row did not have the column.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.errors import DataError

__all__ = ["FILE_SUFFIXES", "Row", "RowFile", "Unreadable", "explain_errors", "format_of", "open_rows"]

Row = dict[str, Any]

FILE_SUFFIXES = ".jsonl, .json, .csv (each also with .gz) or .parquet"
_FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}
_PARQUET_BUFFER = 1 << 20  # bytes of a column


class Unreadable(NamedTuple):
    """A record of a file that is no row."""

    reason: str  # with the place in the file
    content: str  # the text of the record


class RowFile(NamedTuple):
    """An open file of rows."""

    columns: list[str]  # where the file declares them before its rows, else none
    rows: Iterator[Row | Unreadable]  # in order, read as they are taken
    progress: Callable[[], float | None]  # returns the fraction of the file that has been read, if that is known


def format_of(file: Path) -> str | None:
    """Return "json", "csv" or "parquet" by the suffix of a file, gzipped or not, and `None` for any other."""
    name = file.name.lower()
    found = _FORMATS.get(Path(name.removesuffix(".gz")).suffix)
    return None if found == "parquet" and name.endswith(".gz") else found


@contextmanager
def explain_errors(path: str | Path) -> Iterator[None]:
    """Raise what goes wrong while a file is opened or read as a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    # UnicodeError is a ValueError.
    except (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"cannot read {path}: {reason}; check that it is whole, and in UTF-8") from error


def open_rows(file: Path) -> RowFile:
    """Open a file of rows, to be read in constant memory unless it is one JSON list.

    Opening and reading a broken file raise errors of many types, which `explain_errors` turns into one.

    Raises:
        DataError: A CSV file has a column twice.
    """
    if format_of(file) == "parquet":
        return _open_parquet(file)
    raw = open(file, "rb")  # noqa: SIM115  # open as long as rows are read
    stream: BinaryIO = gzip.GzipFile(fileobj=raw) if file.name.lower().endswith(".gz") else raw  # type: ignore[assignment]
    columns, rows = ([], _json_rows(stream)) if format_of(file) == "json" else _csv_header_and_rows(stream, file)
    size = max(file.stat().st_size, 1)
    return RowFile(columns, rows, lambda: 1.0 if raw.closed else raw.tell() / size)


def _json_rows(stream: BinaryIO) -> Iterator[Row | Unreadable]:
    filled = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    for number, line in filled:
        if line.lstrip().startswith(b"["):
            yield from _rows_of_list(b"\n" * (number - 1) + line + stream.read())
            return
        for each in chain([(number, line)], filled):
            yield _parse_line(*each)


def _rows_of_list(text: bytes) -> Iterator[Row | Unreadable]:
    try:
        items = json.loads(text, object_pairs_hook=_with_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} is not valid JSON ({error.msg})") from error
    for number, item in enumerate(items):
        yield _row_or_unreadable(f"item {number}", item)


def _parse_line(number: int, line: bytes) -> Row | Unreadable:
    try:
        row = json.loads(line, object_pairs_hook=_with_unique_keys)
    except ValueError as error:  # JSON or UTF-8
        return Unreadable(f"line {number} is not valid JSON ({error})", line.decode(errors="replace").rstrip("\r\n"))
    return _row_or_unreadable(f"line {number}", row)


def _row_or_unreadable(place: str, row: Any) -> Row | Unreadable:
    if isinstance(row, dict):
        return row
    content = json.dumps(row, ensure_ascii=False)
    return Unreadable(f"{place}: expected a JSON object, got {type(row).__name__} {content:.60}", content)


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key '{next(name for name in names if names.count(name) > 1)}' twice")
    return row


def _csv_header_and_rows(stream: BinaryIO, file: Path) -> tuple[list[str], Iterator[Row | Unreadable]]:
    lines = _csv_lines(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    columns = next(lines, [])
    if len(set(columns)) != len(columns):
        raise DataError(f"{file}: expected each column once, got {', '.join(columns)}")

    def parse(cells: list[str]) -> Row | Unreadable:
        if len(cells) == len(columns):
            return {name: cell or None for name, cell in zip(columns, cells, strict=True)}
        return Unreadable(f"expected {len(columns)} fields, as the header has, got {len(cells)}", ",".join(cells))

    return columns, map(parse, lines)


def _csv_lines(text: Iterator[str]) -> Iterator[list[str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB is less than some conversations
    # An empty line at the end makes an empty list, unless a quote is still open and has swallowed the lines before.
    cells: list[str] = []
    for cells in csv.reader(chain(text, ["\n"])):
        if cells:
            yield cells
    if cells:
        raise csv.Error(f"a quote is opened and never closed, before {cells[-1]!r:.60}")


def _open_parquet(file: Path) -> RowFile:
    # By default pyarrow holds a whole row group in memory, which may be the whole file.
    table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
    passed = 0

    def rows() -> Iterator[Row]:
        nonlocal passed
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                passed += 1
                yield row

    return RowFile(table.schema_arrow.names, rows(), lambda: passed / max(table.metadata.num_rows, 1))
