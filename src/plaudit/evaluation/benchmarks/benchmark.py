"""The common part of all benchmarks: their rows, the conversations that a model scores, and checked figures."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from plaudit.data.annotations import shorten
from plaudit.errors import DataError
from plaudit.evaluation.benchmarks.published_files import HubDataset, files_of, is_hub_id, read_file, read_hub

__all__ = ["Benchmark", "Figures", "Message", "Row", "mean", "means", "need"]

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Message = dict[str, str]
T = TypeVar("T")


class Figures(NamedTuple):
    """The official figures of a benchmark, as shares from 0 to 1, and the subsets that have no row."""

    overall: float
    parts: dict[str, float]
    missing: list[str]


class Benchmark:
    """A published benchmark, and the rule by which its own code turns rewards into figures.

    Rows are dicts of the published layout. The rewards of a row stand in the order of `sequences(row)`.

    Attributes:
        name: The name on the command line.
        title: The name in text.
        rule: The official rule in a line, printed beside the number.
        published: Hub ids, or a repository and its files.
        fields: Columns that the rule reads beside the rewards, where a row has them; figures need no others.
        hub: The splits of hub datasets that make the benchmark; none where it is published in a repository only.
        files: Patterns of the paths that make a local copy. The first that finds any counts; without one, all files do.
            Named groups are columns that only the path tells.
        names: The published names of the subsets.
        optional: Names that may be missing without a warning.
        count: The number of rewards of a row.
        others_column: The column of all responses but the first, where rows have different numbers of them.
        subset_columns: Columns that may hold the subset; the first that has a value counts.
        gold_column: The column of the scores of all responses, greater is better, if the benchmark has one.
    """

    name: str
    title: str
    rule: str
    published: str
    fields: tuple[str, ...]
    hub: tuple[HubDataset, ...] = ()
    files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    count: int = 2
    others_column: str | None = None
    gold_column: str | None = None
    prompt_column: str = "prompt"
    id_column: str | None = "id"
    subset_columns: tuple[str, ...] = ("subset",)

    def load(self, data: str | Path | None = None) -> list[dict[str, Any]]:
        """Load all rows from a file or folder in the published layout, a hub id, or by default the published hub ids.

        Raises:
            DataError: The rows are not there (the message says where they are published), or a row cannot be read.
        """
        rows = self.arrange(self._read(data))
        self.each(rows, lambda row: (self.sequences(row), self.comparisons(row), self.cluster(row)))
        if not rows:
            raise self._unavailable("there are no rows")
        return rows

    def sequences(self, row: Row) -> list[list[Message]]:
        """Return the conversations to score, K lists of messages, in the order of the rewards."""
        prompt = self.prompt(row)
        return [[*prompt, *_messages(each, "assistant")] for each in self.responses(row)]

    def prompt(self, row: Row) -> list[Message]:
        """Return the messages before the responses."""
        return _messages(need(row, self.prompt_column), "user")

    def responses(self, row: Row) -> list[Any]:
        """Return the K responses of a row, in the order of the rewards."""
        return [need(row, "chosen"), need(row, "rejected")]

    def comparisons(self, row: Row) -> list[tuple[int, int]]:
        """Return (better, worse) as indices into the rewards of a row, for Plaudit's own accuracy."""
        return [(0, other) for other in range(1, len(self.responses(row)))]

    def subset(self, row: Row) -> str | None:
        """Return the subset of a row, if it tells one."""
        return _first(row, self.subset_columns)

    def row_id(self, row: Row) -> str | None:
        """Return the id of a row, if the published layout has one."""
        value = row.get(self.id_column) if self.id_column and isinstance(row, Mapping) else None
        return None if value is None else str(value)

    def cluster(self, row: Row) -> str | None:  # noqa: ARG002  # read by benchmarks that have such rows
        """Return a key shared by rows of different prompts that a bootstrap must draw together, if there are such."""
        return None

    def figures(self, rows: Iterable[Row], rewards: Iterable[Sequence[float]]) -> dict[str, Any]:
        """Compute the official figures. The order of the rows changes nothing.

        Args:
            rows: R dicts that have the columns `fields`.
            rewards: For each row, its K rewards.

        Returns:
            `overall` (a share from 0 to 1, or NaN where the rule does not define it), `parts` (shares by published
            name) and `missing` (names of subsets without rows; no part that needs them is given).

        Raises:
            DataError: A row cannot be read, or its rewards are missing, too many or not finite; the message names it.
        """
        rows, rewards = list(rows), list(rewards)
        if not rows or len(rows) != len(rewards):
            raise DataError(f"{self.name}: expected rewards for each row, got {len(rewards)} for {len(rows)} rows")
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                self.refuse(index, row, f"expected a dict of the published layout, got {shorten(row)}")
        expected = self.each(rows, self.expected_rewards)
        checked = [self._floats(n, row, expected[n], rewards[n]) for n, row in enumerate(rows)]
        figures = self.measure(rows, checked)
        if set(figures.missing) - set(self.optional):
            logger.warning("%s: no rows of %s; figures that need them are left out", self.name, figures.missing)
        return {"overall": figures.overall, "parts": figures.parts, "missing": figures.missing}

    def measure(self, rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> Figures:
        """Apply the rule to rows whose rewards have been checked."""
        raise NotImplementedError

    def expected_rewards(self, row: Row) -> int | None:
        """Return the number of rewards of a row; `None` (two or more) if the row has no `others_column`."""
        if self.others_column is None:
            return self.count
        others = row.get(self.others_column)
        return None if others is None or not len(others) else 1 + len(others)

    def arrange(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Turn published records into rows that have one list of rewards each."""
        return rows

    def read_copy(self, file: Path) -> list[dict[str, Any]]:
        """Read the rows of a file in the published layout."""
        return read_file(file)

    def each(self, rows: Sequence[Row], read: Callable[[Row], T]) -> list[T]:
        """Return what a function reads from each row; an error names the row."""
        found = []
        for index, row in enumerate(rows):
            try:
                found.append(read(row))
            except DataError as error:
                self.refuse(index, row, str(error))
        return found

    def subsets(self, rows: Sequence[Row], allowed: Collection[str] | None = None) -> list[str]:
        """Return the subset of each row, one of those allowed."""
        return self.each(rows, lambda row: str(need(row, *self.subset_columns, allowed=allowed)))

    def by_subset(self, rows: Sequence[Row], right: Sequence[float], *, pooled: bool = False) -> Figures:
        """Give the mean of each subset; the overall figure is their plain mean, or the mean over all rows if pooled.

        A plain mean of fewer or more subsets than are published is NaN. Rows of which none tells its subset, as in a
        copy where only the name of the file does, are one set.
        """
        if rows and all(self.subset(row) is None for row in rows):
            return Figures(mean(right), {}, [])
        parts = means(self.subsets(rows), right)
        missing = [name for name in self.names if name not in parts]
        overall = mean(right if pooled else parts.values())
        return Figures(overall if pooled or len(parts) == len(self.names) else math.nan, parts, missing)

    def refuse(self, index: int, row: Any, reason: str) -> NoReturn:
        """Raise a `DataError` that names a row by its number and id."""
        row_id = self.row_id(row)
        raise DataError(f"{self.name}, row {index}{f' (id {row_id!r})' if row_id is not None else ''}: {reason}")

    def _floats(self, index: int, row: Row, expected: int | None, values: Any) -> list[float]:
        """Return the rewards of a row, checked, as floats of Python: the sum of two NumPy booleans is no number."""
        try:
            count, finite = len(values), all(map(math.isfinite, values))
        except TypeError:  # None, or something else than a number
            self.refuse(index, row, f"expected a list of numbers as rewards, got {shorten(values)}")
        if count != expected and (expected is not None or count < 2):
            self.refuse(index, row, f"expected {expected or 'two or more'} rewards, got {count}")
        if not finite:
            self.refuse(index, row, f"expected finite rewards, got {shorten(list(values))}; no score is imputed")
        return list(map(float, values))

    def _read(self, data: str | Path | None) -> list[dict[str, Any]]:
        datasets = list(self.hub)
        if data is not None:
            path = Path(data).expanduser()
            if path.exists():
                return self._read_files(files_of(path.resolve()))
            if not is_hub_id(str(data)):
                raise self._unavailable(f"there is no file or folder {path}")
            datasets = self._mirrored(str(data))
        if not datasets:
            raise self._unavailable("no hub dataset has it")
        try:
            return list(read_hub(datasets))
        except DataError as error:
            raise self._unavailable(str(error.__cause__ or error)[:300]) from error

    def _mirrored(self, hub_id: str) -> list[HubDataset]:
        """Return the parts of a published dataset, or of a mirror of the only one; else a dataset as it is."""
        named = [part for part in self.hub if part.id == hub_id]
        if not named and len({part.id for part in self.hub}) == 1:
            named = [part._replace(id=hub_id) for part in self.hub]
        return named or [HubDataset(hub_id)]

    def _read_files(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        rows = []
        for pattern in (*self.files, ""):
            for file in files:
                if found := re.search(pattern, file.as_posix()):
                    told = {name: value for name, value in found.groupdict().items() if value is not None}
                    rows += [row | told for row in self.read_copy(file)]
            if rows:
                break
        return rows

    def _unavailable(self, reason: str) -> DataError:
        return DataError(
            f"cannot load {self.title}: {' '.join(reason.split())}. The benchmark is published at {self.published}. "
            f"Download it and pass the copy: `--benchmark {self.name} --data FOLDER`, in Python `load('FOLDER')`"
        )


def need(row: Row, *columns: str, allowed: Collection[Any] | None = None) -> Any:
    """Return the value, one of those allowed, of the first of some columns that has one, or raise a `DataError`."""
    value = _first(row, columns)
    if value is not None and (allowed is None or value in allowed):
        return value
    name = " or ".join(f'"{column}"' for column in columns)
    if value is None or allowed is None:
        raise DataError(f"expected a value in the column {name}; the row has {', '.join(map(str, row))}")
    raise DataError(f"expected one of {', '.join(map(repr, allowed))} in the column {name}, got {shorten(value)}")


def _first(row: Row, columns: Iterable[str]) -> Any:
    return next((row[column] for column in columns if row.get(column) is not None), None)


def mean(values: Iterable[float]) -> float:
    """Return the mean of some values, the same in any order; NaN of none."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def means(keys: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    """Return the mean of the values of each key, by sorted key.

    >>> means(["b", "a", "b"], [1.0, 0.5, 0.0])
    {'a': 0.5, 'b': 0.5}
    """
    groups = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        groups[key].append(value)
    return {key: mean(group) for key, group in sorted(groups.items())}


def _messages(value: Any, role: str) -> list[Message]:
    """Return a text as one message, and a list of messages with their roles and contents only."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        messages = [{"role": message.get("role"), "content": message.get("content")} for message in value]
        if all(isinstance(part, str) for message in messages for part in message.values()):
            return messages
    raise DataError(f"expected a text or a list of messages, got {shorten(value)}")
