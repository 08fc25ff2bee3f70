"""Datasets loaded by hub id, file or folder, with their splits; the rows keep their format."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.data.annotations import PAIR_ANNOTATIONS, annotation_features
from plaudit.data.file_formats import FILE_SUFFIXES, Unreadable, explain_errors, format_of, open_rows
from plaudit.errors import ConfigError, DataError
from plaudit.hub import hub_or_cache

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

__all__ = ["load_source", "take_split"]

logger = logging.getLogger(__name__)

_SPLIT_WORDS = {
    "test": {"test", "testing"},
    "validation": {"validation", "valid", "val", "dev", "eval"},
    "train": {"train", "training"},
}
# `datasets` takes the columns and types of a JSON file from its first block, of 10 MB by default, and fails at an
# optional field, or a fraction among whole numbers, that first comes later.
_JSON_BLOCK = 1 << 27


def load_source(path: str, *, config: str | None = None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Load a dataset by hub id, or from a file or folder.

    A file is one `train` split. In a folder, the names of files and subfolders decide the splits (`train`,
    `validation`, `test`); without such names, all is `train`. A folder written by `save_to_disk` is loaded too.

    Args:
        path: A hub id; a .jsonl, .json or .csv file, gzipped or not; a .parquet file; or a folder.
        config: The configuration of a hub dataset (or a copy of one in a folder) that has several.
        streaming: Read rows when they are needed. A broken row is then an error only when it is reached.

    Returns:
        The splits by name.

    Raises:
        ConfigError: A file is given together with a configuration.
        DataError: There is no such dataset, or it cannot be read, or it is empty.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _load_folder(local, config, streaming)
    if local.is_file():
        if config is not None:
            raise ConfigError(f"{path} is a file, and a file has no configuration {config!r}; leave dataset_config out")
        return _load_files({"train": [local]}, streaming)
    if format_of(local) or path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise DataError(f"expected a file or folder at {path!r}, but there is none; looked in {os.getcwd()}")
    return _load_hub(path, config, streaming)


def take_split(splits: Any, name: str, path: str) -> Any:
    """Return the split `name` of the splits of `path`, or a slice such as `train[:10%]`, or a sum of slices.

    Raises:
        ConfigError: A slice of a stream is asked for.
        DataError: There is no such split, or the slice is malformed.
    """
    if name in splits:
        return splits[name]
    there = f"{path} has the splits {', '.join(map(str, splits))}"
    if re.split(r"[\[+]", name)[0] not in splits:
        raise DataError(f"expected a split {name!r}, but {there}; name one of them, or name your files by split")
    from datasets import ReadInstruction, concatenate_datasets

    if not all(hasattr(part, "num_rows") for part in splits.values()):
        raise ConfigError(f"a stream cannot be sliced as {name!r}; take the whole split or turn dataset_streaming off")
    try:
        slices = ReadInstruction.from_spec(name).to_absolute({s: part.num_rows for s, part in splits.items()})
    except (AssertionError, ValueError) as error:
        raise DataError(
            f"cannot read {name!r} as a split or a slice such as 'train[:10%]' ({error}); {there}"
        ) from None
    parts = [(splits[piece.splitname], slice(piece.from_, piece.to)) for piece in slices]
    return concatenate_datasets([part.select(range(part.num_rows)[rows]) for part, rows in parts])


def _load_folder(folder: Path, config: str | None, streaming: bool) -> Any:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _load_saved(folder, streaming)
    if config is not None:
        return _load_hub(str(folder), config, streaming)
    found: dict[str | None, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if file.is_file() and format_of(file) and not any(part.startswith(".") for part in inner.parts):
            found[_split_of(inner)].append(file)
    if not found:
        raise DataError(
            f"expected {FILE_SUFFIXES} files in the folder {folder}, or what save_to_disk writes; found neither"
        )
    unnamed = found.pop(None, [])
    if unnamed and found:
        names = ", ".join(file.name for file in unnamed)
        logger.warning("%s: files whose names contain no split are left out: %s", folder, names)
    # `datasets` takes the columns of a stream from the first split.
    files: dict[str, list[Path]] = {split: found[split] for split in ("train", "validation", "test") if split in found}
    return _load_files(files or {"train": unnamed}, streaming)


def _split_of(path: Path) -> str | None:
    """Return the split that the name of a file contains, or else that of its folder."""
    for part in reversed(path.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, names in _SPLIT_WORDS.items():
            if words & names:
                return split
    return None


def _load_saved(folder: Path, streaming: bool) -> Any:
    from datasets import DatasetDict, IterableDatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"cannot read {folder} as save_to_disk writes it: {_root_cause(error)}; save it again"
        ) from error
    splits = saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
    return IterableDatasetDict({s: p.to_iterable_dataset() for s, p in splits.items()}) if streaming else splits


def _load_hub(path: str, config: str | None, streaming: bool) -> Any:
    from datasets import load_dataset

    try:
        with hub_or_cache(path):
            return load_dataset(path, name=config, streaming=streaming)
    except Exception as error:  # of many types, from the hub's client, the network and the dataset's own files
        raise DataError(
            f"cannot load the dataset {path!r}{f' ({config})' if config else ''}: {_root_cause(error)}; expected a "
            "file, a folder or a hub id. Check the spelling and the configuration, that the hub can be reached "
            "(HF_HUB_OFFLINE), and `hf auth login` for a private or gated dataset"
        ) from error


def _load_files(files: Mapping[str, Sequence[Path]], streaming: bool) -> Any:
    from datasets import load_dataset

    every = [file for split in files.values() for file in split]
    kind = _common_format(every)
    options = _csv_options(every[0]) if kind == "csv" else {}
    if kind == "json" and not streaming:
        options = {"chunksize": _JSON_BLOCK}
    names = {split: [str(file) for file in group] for split, group in files.items()}
    listed = ", ".join(map(str, every[:3])) + (f" and {len(every) - 3} more" if len(every) > 3 else "")
    try:
        splits = load_dataset(kind, data_files=names, streaming=streaming, **options)
    except Exception as error:
        _check_rows(every)
        raise DataError(
            f"cannot read {listed}: {_root_cause(error)}; expected the same columns of the same types in every file"
        ) from error
    for split, part in splits.items():
        if streaming or not part.num_rows:
            _check_rows(files[str(split)], most=1)
    return _with_annotation_types(splits, options["features"], listed) if kind == "csv" else splits


def _common_format(files: Sequence[Path]) -> str:
    for file in files:
        if format_of(file) is None:
            raise DataError(f"cannot tell what {file} is: expected a {FILE_SUFFIXES} file")
    first, *others = sorted({str(format_of(file)) for file in files})
    if others:
        kinds = ", ".join([first, *others])
        raise DataError(f"expected files of one kind in {files[0].parent}, got {kinds}; load them one by one")
    return first


def _csv_options(file: Path) -> dict[str, Any]:
    """Return the options by which `datasets` reads every cell as text, and an empty cell as no value."""
    from datasets import Features, Value

    with explain_errors(file):
        columns = open_rows(file).columns
    return {"features": Features(dict.fromkeys(columns, Value("string"))), "keep_default_na": False, "na_values": [""]}


def _with_annotation_types(splits: Any, columns: Iterable[str], files: str) -> Any:
    """Turn the text of the cells that annotate pairs into numbers, or true and false."""
    for column, kind in annotation_features(set(columns) & set(PAIR_ANNOTATIONS)).items():
        try:
            splits = splits.cast_column(column, kind)
        except ValueError as error:  # Arrow's, with the cell
            expected = "true or false" if column == "tie" else "a number"
            raise DataError(f"{files}, column '{column}': expected {expected} or an empty cell: {error}") from error
    return splits


def _check_rows(files: Sequence[Path], most: int | None = None) -> None:
    """Raise if a file has no rows, or a broken one among the first `most`: the errors of `datasets` name neither."""
    for file in files:
        with explain_errors(file):
            row = None
            for row in islice(open_rows(file).rows, most):
                if isinstance(row, Unreadable):
                    raise DataError(f"{file}: {row.reason}; mend or remove it")
            if row is None:
                raise DataError(f"expected rows in {file}, but there are none")


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
