"""The formats of output files: rows are written in chunks and joined at the end. The same rows make the same bytes."""

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.data.file_formats import Row
from plaudit.errors import ConfigError, DataError

__all__ = ["check_output", "join_chunks", "join_files", "write_chunk", "write_rejected"]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_CHUNKS_PER_ROW_GROUP = 16  # of Parquet


def check_output(path: Path) -> None:
    """Check that rows can be written to a file of this name.

    Raises:
        ConfigError: The suffix is unknown, the name is that of a folder, or nothing can be written beside it.
    """
    folder = path.absolute().parent
    if not path.name.lower().endswith(_SUFFIXES):
        raise ConfigError(f"--output: expected a name that ends in {', '.join(_SUFFIXES)}, got '{path.name}'.")
    if path.is_dir():
        raise ConfigError(f"--output: '{path}' is a folder. Name a file.")
    if not folder.is_dir():
        raise ConfigError(f"--output: there is no folder '{folder}'. Make it first.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output: the folder '{folder}' is not writable. Name another one.")


def write_chunk(rows: list[Row], file: BinaryIO, output: Path, schema: pa.Schema | None) -> None:
    """Write one or more rows in the form in which `join_chunks` reads them for this output.

    In Parquet, columns in `schema` keep its types; those of other columns follow from the rows.

    Raises:
        DataError: A value cannot be written in that format.
    """
    if not _is_parquet(output):
        file.writelines(_as_line(row, _as_json) for row in rows)
        return
    types = {field.name: field.type for field in schema or ()}
    try:
        arrays = {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in _columns_of(rows)}
        pq.write_table(pa.table(arrays), file)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise DataError(f"the rows have no form in Parquet ({error}); write .jsonl, which holds anything") from error


def write_rejected(rows: Iterable[Row], file: BinaryIO) -> None:
    """Write rows as JSON lines; a value that JSON does not have is written as its `repr`."""
    file.writelines(_as_line(row, _as_shown) for row in rows)


def join_files(parts: Iterable[Path], file: Any) -> None:
    """Write the content of files one after the other."""
    for part in parts:
        with open(part, "rb") as source:
            shutil.copyfileobj(source, file)


def join_chunks(parts: list[Path], file: BinaryIO, output: Path) -> None:
    """Join the files of one or more chunks that `write_chunk` wrote for this output, in constant memory.

    Raises:
        DataError: The types of the chunks' columns have no common type in that format.
    """
    name = output.name.lower()
    if _is_parquet(output):
        _join_parquet(parts, file)
    elif name.endswith(".csv"):
        _join_csv(parts, file)
    elif name.endswith(".gz"):
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
            join_files(parts, compressed)
    else:
        join_files(parts, file)


def _join_csv(parts: list[Path], file: BinaryIO) -> None:
    columns = _columns_of(row for part in parts for row in _lines_of(part))
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    table = csv.DictWriter(_WithoutCarriageReturns(text), columns)
    table.writeheader()
    for part in parts:
        table.writerows({name: _as_cell(value) for name, value in row.items()} for row in _lines_of(part))
    text.detach()


class _WithoutCarriageReturns(NamedTuple):
    """A text file of lines that end with a line feed alone, for the CSV writer.

    The writer itself ends lines with a carriage return too, or it would not quote a cell that has one.
    """

    file: io.TextIOBase

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def _join_parquet(parts: list[Path], file: BinaryIO) -> None:
    try:
        schema = pa.unify_schemas([pq.read_schema(part) for part in parts], promote_options="permissive")
        with pq.ParquetWriter(file, schema) as table:
            for start in range(0, len(parts), _CHUNKS_PER_ROW_GROUP):
                group = parts[start : start + _CHUNKS_PER_ROW_GROUP]
                table.write_table(pa.concat_tables(_cast(pq.ParquetFile(part).read(), schema) for part in group))
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"a column has types in different chunks that have no common form in Parquet ({error}); write .jsonl"
        ) from error


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    # Through Python, which fills in the fields that only other rows have, at any depth.
    return table if table.schema == schema else pa.Table.from_pylist(table.to_pylist(), schema=schema)


def _columns_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _lines_of(part: Path) -> Iterator[Row]:
    with open(part, "rb") as lines:
        yield from map(json.loads, lines)


def _is_parquet(output: Path) -> bool:
    return output.name.lower().endswith(".parquet")


def _as_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _as_line(row: Row, default: Callable[[Any], str]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, default=default) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape and UTF-8 cannot encode
        return (json.dumps(row, default=default) + "\n").encode()


def _as_shown(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def _as_json(value: Any) -> str:
    if hasattr(value, "isoformat"):  # dates and times
        return value.isoformat()
    raise DataError(f"a value of type {type(value).__name__} has no form in JSON; write .parquet, or drop its column")
