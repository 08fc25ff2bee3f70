"""A mixture: rows drawn from several sources by weight, brought to the same columns, and joined."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from plaudit.data.dataset_conversion import convert
from plaudit.data.loading import load_source
from plaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_mixture"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """One entry of a mixture."""

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
        if "fraction" in options:
            if "weight" in options:
                raise ConfigError(f"{where}: `weight` and `fraction` are two names of one option; give one of them")
            options["weight"] = options.pop("fraction")
        for key in set(options) - set(known):
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ConfigError(f"{where}: unknown key {key!r}: expected some of {', '.join(known)}{hint}")
        parsed = cls(**{**options, "path": str(options["path"])})
        if parsed.weight is not None and not (isinstance(parsed.weight, int | float) and parsed.weight > 0):
            raise ConfigError(
                f"{where}: expected a `weight` above 0, got {parsed.weight!r}; leave out what has no share"
            )
        return parsed


def load_mixture(described: Sequence[Any], default_format: str | None, seed: int) -> Dataset:
    """Draws the entries' rows by their weights, brings them to the same columns, and joins them in order.

    Args:
        described: The entries as the YAML file has them: mappings with a `path`.
        default_format: The published layout of entries that name none; None for native rows.
        seed: Decides which rows are drawn.

    Raises:
        ConfigError: If an entry or the weights cannot be read.
        DataError: If a source, a split or a row is not as it should be, or the sources do not go together.
    """
    from datasets import concatenate_datasets

    entries = [_Entry.parse(entry, position) for position, entry in enumerate(described)]
    parts = [_load_entry(entry, default_format) for entry in entries]
    sizes = _shares([part.num_rows for part in parts], [entry.weight for entry in entries])
    for position, (entry, size) in enumerate(zip(entries, sizes, strict=True)):
        logger.info("mixture: %d of %d rows from %s", size, parts[position].num_rows, entry.path)
        if size < parts[position].num_rows:
            parts[position] = _sample(parts[position], size, f"{seed} {position} {entry.path}")
    return concatenate_datasets(_harmonise(parts, [entry.path for entry in entries]))


def _load_entry(entry: _Entry, default_format: str | None) -> Dataset:
    part = load_source(entry.path, config=entry.name, split=entry.split)[entry.split]
    if entry.columns is not None:
        if unknown := sorted(set(entry.columns) - set(part.column_names)):
            raise DataError(f"{entry.path} has no column {unknown}: it has {', '.join(part.column_names)}")
        part = part.select_columns(list(entry.columns))
    chosen_format = entry.format or default_format
    return part if chosen_format is None else convert(part, chosen_format)


def _shares(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """How many rows to draw of each: as many as the scarcest allows with the shares kept; all, without weights."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(sizes)
    if len(given) < len(weights):
        raise ConfigError(f"expected a `weight` in every entry of `datasets` or in none, got {list(weights)}")
    whole = min(size / weight for size, weight in zip(sizes, given, strict=True))
    shares = [round(whole * weight) for weight in given]
    if not all(shares):
        raise ConfigError(f"weights {given} over {list(sizes)} rows leave an entry without a row; raise its weight")
    return shares


def _sample(part: Dataset, size: int, salt: str) -> Dataset:
    import numpy as np

    seed = int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest())
    drawn = np.random.default_rng(seed).choice(part.num_rows, size, replace=False)
    return part.select(np.sort(drawn))


def _harmonise(parts: Sequence[Any], paths: Sequence[str]) -> list[Any]:
    """Gives the columns that all parts have the same types; what only some have is null in the others' rows."""
    common = set.intersection(*(set(part.column_names) for part in parts))
    ordered = all({"ranks", "scores"} & set(part.column_names) for part in parts)
    if not ({"chosen", "rejected"} <= common or ("completions" in common and ordered)):
        listed = "; ".join(
            f"{path} has {', '.join(part.column_names)}" for path, part in zip(paths, parts, strict=True)
        )
        raise DataError(f"expected the datasets of a mixture to be all pairs or all ranked groups, but {listed}")
    wanted = {column: kind for column, kind in parts[0].features.items() if column in common}
    return [_cast(part, wanted, path) for part, path in zip(parts, paths, strict=True)]


def _cast(part: Any, wanted: Any, path: str) -> Any:
    for column, kind in {**wanted, **_numbers(part.column_names)}.items():
        if part.features[column] == kind:
            continue
        try:
            part = part.cast_column(column, kind)
        except Exception as error:  # Arrow's, and one of its own for each kind of mismatch
            raise DataError(
                f"expected the column {column!r} of {path} to be {kind} as in the rest of the mixture, got "
                f"{part.features[column]}; give the dataset a `format`, or leave the column out with `columns`"
            ) from error
    return part


def _numbers(columns: Collection[str]) -> dict[str, Any]:
    """The types of columns that may be whole numbers in one source and fractions in another."""
    from datasets import List, Value

    number = Value("float64")
    types = {"margin": number, "weight": number, "label": number}
    if "completions" in columns:
        types |= {"ranks": List(number), "scores": List(number)}
    return {column: kind for column, kind in types.items() if column in columns}
