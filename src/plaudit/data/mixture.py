"""A mixture: rows drawn from several datasets by weight, brought to one type for each column, and concatenated.

`datasets.interleave_datasets` is not used, because its probabilities hold only on average over a random number of rows,
taken from the head of each dataset. Here the weights are exact shares of as many rows as the scarcest dataset allows,
and the rows of each dataset are a random sample in their order.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from plaudit.data.annotations import annotation_features
from plaudit.data.dataset_conversion import convert
from plaudit.data.loading import load_source, take_split
from plaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_mixture"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """One dataset of a mixture, as the YAML file names it."""

    path: str
    name: str | None = None
    split: str = "train"
    format: str | None = None
    columns: Sequence[str] | None = None
    weight: float | None = None

    @classmethod
    def parse(cls, entry: Any, position: int) -> _Entry:
        where, known = f"`datasets` entry {position}", [option.name for option in fields(cls)]
        if not isinstance(entry, Mapping) or not entry.get("path"):
            raise ConfigError(f"{where}: expected a mapping with a `path`, got {entry!r}")
        options = dict(entry)
        if {"fraction", "weight"} <= set(options):
            raise ConfigError(f"{where}: `weight` and `fraction` are two names of one option; give one of them")
        if "fraction" in options:
            options["weight"] = options.pop("fraction")
        for key in set(options) - set(known):
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ConfigError(f"{where}: unknown key {key!r}: expected some of {', '.join(known)}{hint}")
        weight = options.get("weight")
        if weight is not None and not (isinstance(weight, int | float) and weight > 0):
            raise ConfigError(
                f"{where}: expected a `weight` above 0, got {weight!r}; leave out a dataset without share"
            )
        return cls(**{**options, "path": str(options["path"])})

    def load(self, default_format: str | None) -> Dataset:
        part = take_split(load_source(self.path, config=self.name), self.split, self.path)
        if self.columns is not None:
            if unknown := sorted(set(self.columns) - set(part.column_names)):
                raise DataError(f"{self.path} has no column {unknown}: it has {', '.join(part.column_names)}")
            part = part.select_columns(list(self.columns))
        published = self.format or default_format
        return part if published is None else convert(part, published)


def load_mixture(described: Sequence[Any], default_format: str | None, seed: int) -> Dataset:
    """Load the mixture that the entries of a YAML file describe, one entry after the other.

    `default_format` is the published layout of entries that name none (`None` for Plaudit's own formats); the seed
    decides which rows are drawn.

    Raises:
        ConfigError: An entry or the weights are malformed.
        DataError: A dataset cannot be loaded, a row is malformed, or the datasets have no common columns and types.
    """
    import numpy as np
    from datasets import concatenate_datasets

    entries = [_Entry.parse(entry, position) for position, entry in enumerate(described)]
    parts = [entry.load(default_format) for entry in entries]
    sizes = _rows_to_draw([part.num_rows for part in parts], [entry.weight for entry in entries])
    for position, (entry, size) in enumerate(zip(entries, sizes, strict=True)):
        rows = parts[position].num_rows
        logger.info("mixture: %d of %d rows from %s", size, rows, entry.path)
        if size < rows:
            drawn = np.random.default_rng([seed, position]).choice(rows, size, replace=False)
            parts[position] = parts[position].select(np.sort(drawn))
    return concatenate_datasets(_with_common_types(parts, [entry.path for entry in entries]))


def _rows_to_draw(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """Return how many rows to draw of each dataset: all without weights, else as many as the shares allow."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(sizes)
    if len(given) < len(weights):
        raise ConfigError(f"expected a `weight` in every entry of `datasets` or in none, got {list(weights)}")
    scale = min(size / weight for size, weight in zip(sizes, given, strict=True))
    shares = [round(scale * weight) for weight in given]
    if not all(shares):
        raise ConfigError(f"weights {given} over {list(sizes)} rows leave an entry without a row; raise its weight")
    return shares


def _with_common_types(parts: Sequence[Any], paths: Sequence[str]) -> list[Any]:
    """Cast the columns that all datasets have to the types of the first, and annotations to their own types."""
    common = set.intersection(*(set(part.column_names) for part in parts))
    ordered = all({"ranks", "scores"} & set(part.column_names) for part in parts)
    if not ({"chosen", "rejected"} <= common or ("completions" in common and ordered)):
        listed = "; ".join(
            f"{path} has {', '.join(part.column_names)}" for path, part in zip(paths, parts, strict=True)
        )
        raise DataError(f"expected the datasets of a mixture to be all pairs or all ranked groups, but {listed}")
    # `concatenate_datasets` fills a column that only some datasets have with nulls in the rows of the others.
    wanted = {column: kind for column, kind in parts[0].features.items() if column in common}
    return [
        _cast(part, wanted | annotation_features(part.column_names), path)
        for part, path in zip(parts, paths, strict=True)
    ]


def _cast(part: Any, wanted: Mapping[str, Any], path: str) -> Any:
    for column, kind in wanted.items():
        if part.features[column] == kind:
            continue
        try:
            part = part.cast_column(column, kind)
        except Exception as error:  # Arrow raises another one for each kind of mismatch
            raise DataError(
                f"expected the column {column!r} of {path} to be {kind} as in the rest of the mixture, got "
                f"{part.features[column]}; give the dataset a `format`, or leave the column out with `columns`"
            ) from error
    return part
