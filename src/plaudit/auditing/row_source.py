"""Sources of rows that an audit reads several times: lists, datasets, and files that are never whole in memory."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from plaudit.data.file_formats import Unreadable, explain_errors, format_of, open_rows
from plaudit.data.loading import load_source, take_split
from plaudit.data.published_layouts import CONVERTERS
from plaudit.errors import DataError
from plaudit.evaluation.evaluate import load_rows

__all__ = ["JsonRows", "open_source", "pick_rows", "with_progress"]


@dataclass(frozen=True)
class JsonRows:
    """The rows of a JSON or JSON-lines file, read anew by each iteration.

    Attributes:
        path: The file.
        dataset_format: The published layout to convert rows from.
    """

    path: Path
    dataset_format: str | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows.

        Raises:
            DataError: The file or one of its lines is broken, or a row is not of the published layout.
        """
        with explain_errors(self.path):
            for number, row in enumerate(open_rows(self.path).rows):
                if isinstance(row, Unreadable):
                    raise DataError(f"{self.path}: {row.reason}; mend or remove it")
                yield self._converted(row, number) if self.dataset_format else row

    def _converted(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        name = str(self.dataset_format)
        try:
            converted = CONVERTERS[name](row)
        except DataError as error:
            raise DataError(f"row {number}, read as {name!r}: {error}") from None
        if "completions" in converted:
            converted.pop("tie", None)  # equal ranks mark ties
        return converted


def open_source(
    source: Any, *, split: str | None, config: str | None, dataset_format: str | None, defaults: tuple[str, ...]
) -> Iterable[Any]:
    """Return rows that can be read several times; of a source with several splits, the first of `defaults`.

    Raises:
        ConfigError: A split or a configuration is given with loaded rows, or there is no such layout.
        DataError: The source cannot be read, or its split is not clear.
    """
    is_path = isinstance(source, str | Path)
    if is_path and split is None and config is None and (dataset_format is None or dataset_format in CONVERTERS):
        path = Path(source).expanduser()
        if path.is_file() and format_of(path) == "json":
            return JsonRows(path, dataset_format)
    if is_path:
        splits = load_source(str(source), config=config)
        names = [str(name) for name in splits]
        split = split or next((name for name in defaults if name in names), names[0] if len(names) == 1 else None)
        if split is None:
            raise DataError(f"{source} has the splits {', '.join(names)}; name one of them with `split`.")
        source, split, config = take_split(splits, split, str(source)), None, None
    rows, _ = load_rows(source, split=split, dataset_config=config, dataset_format=dataset_format)
    return rows if isinstance(rows, Sequence) or hasattr(rows, "num_rows") else list(rows)


def with_progress(rows: Iterable[Any], title: str) -> Iterator[Any]:
    """Yield plain rows under a progress bar; those of a `datasets.Dataset` in batches, several times as fast."""
    total = len(rows) if isinstance(rows, Sized) else None
    return iter(tqdm(_plain(rows), title, total=total, unit=" rows", delay=3, disable=None, leave=False))


def _plain(rows: Any) -> Iterator[Any]:
    if not hasattr(rows, "num_rows"):
        yield from rows
        return
    for batch in rows.with_format(None).iter(512):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def pick_rows(rows: Any, numbers: Iterable[int]) -> dict[int, Any]:
    """Return some rows by their numbers; a file is read up to the last of them."""
    wanted = set(numbers)
    if not isinstance(rows, JsonRows):
        return {number: rows[number] for number in wanted}
    found = {}
    for number, row in enumerate(rows):
        if number in wanted:
            found[number] = row
        if len(found) == len(wanted):
            break
    return found
