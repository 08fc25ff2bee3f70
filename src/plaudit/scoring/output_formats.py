"""Where rows go: written in parts, each whole on the disk, and joined in the end. The same rows make the same bytes."""

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.errors import ConfigError, DataError

__all__ = ["check_output", "join_lines", "join_parts", "on_disk", "write_aside", "write_lines", "write_part"]

Row = dict[str, Any]

_OUTPUTS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_PARTS_PER_GROUP = 16  # Parquet: parts that make a row group of the whole


def check_output(path: Path) -> None:
    """Raise unless rows can be written under this name.

    Raises:
        ConfigError: Its suffix is none that is known, it is a folder, or nothing can be written beside it.
    """
    if not path.name.lower().endswith(_OUTPUTS):
        raise ConfigError(f"--output: expected a name that ends in {', '.join(_OUTPUTS)}, got '{path.name}'.")
    if path.is_dir():
        raise ConfigError(f"--output: '{path}' is a folder. Name a file.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output: there is no folder '{path.absolute().parent}'. Make it first.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(f"--output: nobody lets you write to '{path.absolute().parent}'. Name another folder.")


def write_lines(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSON lines.

    Raises:
        DataError: A value has no form in JSON.
    """
    with on_disk(path) as file:
        file.writelines(_as_line(row) for row in rows)


def write_aside(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSON lines for a person to look at: what has no form in JSON is shown as Python shows it."""
    with on_disk(path) as file:
        file.writelines(_as_line(row, _as_shown) for row in rows)


def write_part(rows: list[Row], path: Path, output: Path, schema: pa.Schema | None) -> None:
    """Write rows so that `join_parts` can make them a part of `output`.

    Args:
        rows: One or more.
        path: Where.
        output: What will be made of it; the suffix decides.
        schema: The types of those columns that have known ones.

    Raises:
        DataError: They have no form in that format.
    """
    if not _is_parquet(output):
        write_lines(rows, path)
        return
    types = {field.name: field.type for field in schema or ()}
    try:
        arrays = {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in _columns_of(rows)}
        with on_disk(path) as file:
            pq.write_table(pa.table(arrays), file)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise DataError(f"the rows have no form in Parquet ({error}); write .jsonl, which holds anything") from error


def join_lines(parts: Iterable[Path], path: Path) -> None:
    """Put files of lines one after the other."""
    with on_disk(path) as file:
        _copy(parts, file)


def join_parts(parts: list[Path], path: Path, output: Path) -> None:
    """Make one file of parts, in their order, in constant memory.

    Args:
        parts: What `write_part` wrote; one or more.
        path: Where to write.
        output: What it will be called; the suffix decides.

    Raises:
        DataError: The parts do not go together in that format.
    """
    name = output.name.lower()
    with on_disk(path) as file:
        if _is_parquet(output):
            _join_parquet(parts, file)
        elif name.endswith(".csv"):
            _join_csv(parts, file)
        elif name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                _copy(parts, packed)
        else:
            _copy(parts, file)


@contextmanager
def on_disk(path: Path) -> Iterator[BinaryIO]:
    """A file to write that the disk holds when it is closed: a renamed one may else be empty after a power cut."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _copy(parts: Iterable[Path], file: Any) -> None:
    for part in parts:
        with open(part, "rb") as source:
            shutil.copyfileobj(source, file)


def _join_csv(parts: list[Path], file: BinaryIO) -> None:
    columns = _columns_of(row for part in parts for row in _lines_of(part))
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    table = csv.DictWriter(_Lines(text), columns)
    table.writeheader()
    for part in parts:
        table.writerows({name: _as_cell(value) for name, value in row.items()} for row in _lines_of(part))
    text.detach()


class _Lines(NamedTuple):
    """Where a CSV writer writes, whose lines must end with a carriage return: else it quotes no cell that has one."""

    file: io.TextIOBase

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def _join_parquet(parts: list[Path], file: BinaryIO) -> None:
    try:
        schema = pa.unify_schemas([pq.read_schema(part) for part in parts], promote_options="permissive")
        with pq.ParquetWriter(file, schema) as table:
            for start in range(0, len(parts), _PARTS_PER_GROUP):
                group = [_cast(pq.ParquetFile(part).read(), schema) for part in parts[start : start + _PARTS_PER_GROUP]]
                table.write_table(pa.concat_tables(group))
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"rows far apart have columns of types with no common form in Parquet ({error}); write .jsonl"
        ) from error


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    # By way of Python, which fills in fields that only other rows have, at any depth.
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


def _as_line(row: Row, otherwise: Callable[[Any], str] | None = None) -> bytes:
    otherwise = otherwise or _as_json
    try:
        return (json.dumps(row, ensure_ascii=False, default=otherwise) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can say and UTF-8 cannot
        return (json.dumps(row, default=otherwise) + "\n").encode()


def _as_shown(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def _as_json(value: Any) -> str:
    if hasattr(value, "isoformat"):  # dates and times
        return value.isoformat()
    raise DataError(f"a value of type {type(value).__name__} has no form in JSON; write .parquet, or drop its column")
