"""Conversion of whole datasets from a published layout: ties are dropped, and a malformed row is named."""

from __future__ import annotations

import difflib
import logging
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from plaudit.data.published_layouts import CONVERTERS, Row
from plaudit.data.source_hash import source_hash
from plaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset, DatasetDict, IterableDatasetDict)

__all__ = ["convert"]

logger = logging.getLogger(__name__)

_KEPT_COLUMNS = ("subset",)
_LAYOUTS_WITH_TIES = frozenset(CONVERTERS) - {"hh"}


def convert(dataset: AnyDataset, name: str, *, keep_ties: bool = False) -> AnyDataset:
    """Convert every row of a dataset, or of each of its splits.

    The published columns are dropped, except `subset`. Ties are dropped, and their number is logged (not of a stream).

    Args:
        dataset: A dataset or a dictionary of datasets, map-style or streaming.
        name: A key of `CONVERTERS`.
        keep_ties: Keep tied rows and the column `tie` that marks them; in ranked groups, equal ranks do.

    Returns:
        The converted dataset, of the same type.

    Raises:
        ConfigError: No converter has this name.
        DataError: A row is not of the layout, and is named by its index; or no row is left.
    """
    if name not in CONVERTERS:
        near = difflib.get_close_matches(str(name).lower(), CONVERTERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown dataset format {name!r}: expected one of {', '.join(sorted(CONVERTERS))}{hint}")
    if isinstance(dataset, dict):
        splits = {split: _convert_split(part, name, keep_ties, str(split)) for split, part in dataset.items()}
        return type(dataset)(splits)
    return _convert_split(dataset, name, keep_ties, str(dataset.split or "dataset"))


def _convert_split(dataset: Any, name: str, keep_ties: bool, split: str) -> Any:
    streaming = not hasattr(dataset, "num_rows")
    columns = list(dataset.column_names or next(iter(dataset), {}))
    if not columns or not (streaming or dataset.num_rows):
        raise DataError(f"{split}: expected rows in the {name!r} format, but there are none")
    dropped = [column for column in columns if column not in _KEPT_COLUMNS]
    converted = dataset.map(_RowConverter(name, source_hash()), with_indices=True, remove_columns=dropped)
    if keep_ties and name == "ranked":
        return converted.remove_columns("tie")  # equal ranks mark ties
    if keep_ties or name not in _LAYOUTS_WITH_TIES:
        return converted
    kept = converted.filter(operator.not_, input_columns="tie").remove_columns("tie")
    if streaming:
        logger.info("%s: ties are dropped as they come", split)
        return kept
    logger.info("%s: dropped %d ties of %d rows", split, converted.num_rows - kept.num_rows, converted.num_rows)
    if not kept.num_rows:
        raise DataError(
            f"{split}: all {converted.num_rows} rows are ties, nothing is left; pass rows with a preference"
        )
    return kept


@dataclass(frozen=True)
class _RowConverter:
    """A converter that names a row of another layout. `source` stands for its code: see `source_hash`."""

    name: str
    source: str

    def __call__(self, row: Row, index: int) -> dict[str, Any]:
        try:
            return CONVERTERS[self.name](row)
        except DataError as error:
            raise DataError(f"row {index}, read as {self.name!r}: {error}") from None
