"""From a hub id, a file or a folder to its splits, with the rows as they are."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from plaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

__all__ = ["load_source", "take_split"]

logger = logging.getLogger(__name__)

_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
_FILE_KINDS = ".jsonl, .json, .csv (each also with .gz) or .parquet"
_SPLIT_WORDS = {
    "test": {"test", "testing"},
    "validation": {"validation", "valid", "val", "dev", "eval"},
    "train": {"train", "training"},
}
# `datasets` fixes a JSON file's columns and types by its first block, of 10 MB unless told, and fails at the first
# optional field, or first fraction among whole numbers, that comes later. A read in one go sees them all.
_JSON_BLOCK = 1 << 27


def load_source(
    path: str, *, config: str | None = None, split: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """Loads a dataset by hub id, or from a file or folder, with its rows as they are.

    A file is one `train` split. In a folder, file and subfolder names tell the splits (`train`, `validation`, `test`);
    without any, all is `train`. A folder written by `save_to_disk` works too.

    Args:
        path: A hub id; a .jsonl, .json or .csv file, gzipped or not; a .parquet file; or a folder.
        config: The configuration, for a hub dataset (or a copy of one in a folder) which has several.
        split: The only split wanted; a slice such as `train[:10%]` is possible if not streaming.
        streaming: Read rows as they are asked for. A broken row is then met, and raised, only on the way.

    Returns:
        The splits by name; the one asked for, if `split` is given.

    Raises:
        ConfigError: If a file is given together with a configuration, or a slice of a stream is asked for.
        DataError: If there is nothing there, or it cannot be read, is empty, or lacks the split.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        splits = _load_folder(local, config, streaming)
    elif local.is_file():
        if config is not None:
            raise ConfigError(f"{path} is a file, and a file has no configuration {config!r}; leave dataset_config out")
        splits = _load_files({"train": [local]}, streaming)
    elif _builder(local) or path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise DataError(f"expected a file or folder at {path!r}, but there is none; looked in {os.getcwd()}")
    else:
        splits = _load_hub(path, config, streaming)
    return splits if split is None else type(splits)({split: take_split(splits, split, path)})


def take_split(splits: Any, name: str, path: str) -> Any:
    """Takes one split, or a slice of one.

    Args:
        splits: The splits by name.
        name: One of these names, or a slice such as `train[:10%]`, or a sum of slices.
        path: What the splits were loaded from, for messages.

    Raises:
        ConfigError: If a slice of a stream is asked for.
        DataError: If there is no such split, or the slice cannot be read.
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


def _builder(path: Path) -> str | None:
    name = path.name.lower()
    kind = _BUILDERS.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def _load_folder(folder: Path, config: str | None, streaming: bool) -> Any:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _load_saved(folder, streaming)
    if config is not None:
        return _load_hub(str(folder), config, streaming)
    found: dict[str | None, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if file.is_file() and _builder(file) and not any(part.startswith(".") for part in inner.parts):
            found[_split_of(inner)].append(file)
    unnamed = found.pop(None, [])
    if unnamed and found:
        logger.warning("%s: left out, since their names tell no split: %s", folder, ", ".join(f.name for f in unnamed))
    files: dict[str, list[Path]] = {s: found[s] for s in ("train", "validation", "test") if s in found}
    if not files and not unnamed:
        raise DataError(
            f"expected {_FILE_KINDS} files in the folder {folder}, or what save_to_disk writes; found neither"
        )
    return _load_files(files or {"train": unnamed}, streaming)


def _split_of(path: Path) -> str | None:
    """The split that a file's name tells, or else its folder's."""
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
        return load_dataset(path, name=config, streaming=streaming)
    except Exception as error:  # a dozen kinds, from the hub's client, the network and the dataset's own files
        raise DataError(
            f"cannot load the dataset {path!r}{f' ({config})' if config else ''}: {_root_cause(error)}; expected a "
            "file, a folder or a hub id. Check the spelling and the configuration, that the hub can be reached "
            "(HF_HUB_OFFLINE), and `hf auth login` for a private or gated dataset"
        ) from error


def _load_files(files: Mapping[str, Sequence[Path]], streaming: bool) -> Any:
    from datasets import load_dataset

    every = [file for split in files.values() for file in split]
    for file in every:
        _check_readable(file)
    kinds = sorted({str(_builder(file)) for file in every})
    if len(kinds) > 1:
        raise DataError(
            f"expected files of one kind in {every[0].parent}, got {', '.join(kinds)}; load them one by one"
        )
    options: dict[str, Any] = {}
    if kinds[0] == "csv":
        options = {"keep_default_na": False, "na_values": [""]}  # "None" and "NA" are responses like any other
    elif kinds[0] == "json" and not streaming:
        options = {"chunksize": _JSON_BLOCK}
    names = {split: [str(file) for file in group] for split, group in files.items()}
    try:
        splits = load_dataset(kinds[0], data_files=names, streaming=streaming, **options)
    except Exception as error:
        raise DataError(_diagnosis(every, error)) from error
    for split, part in splits.items():
        if not streaming and not part.num_rows:
            raise DataError(f"expected rows in {', '.join(names[str(split)])}, but there are none")
    return splits


def _check_readable(file: Path) -> None:
    if _builder(file) is None:
        raise DataError(f"cannot tell what {file} is: expected a {_FILE_KINDS} file")
    if _builder(file) == "parquet":
        empty = file.stat().st_size == 0
    else:
        try:
            with _open(file) as lines:
                empty = not any(line.strip() for line in lines)
        except (OSError, EOFError) as error:
            raise DataError(f"cannot read {file}: {error}; check that it is whole") from error
    if empty:
        raise DataError(f"expected rows in {file}, but the file is empty")


def _open(file: Path) -> TextIO:
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    return opener(file, "rt", encoding="utf-8", errors="replace")


def _diagnosis(files: Sequence[Path], error: Exception) -> str:
    """What is wrong with the files: the first broken JSON line, or else what the reader said."""
    for file in files:
        if _builder(file) == "json" and (broken := _broken_json(file)):
            return f"{file}, {broken}; expected one JSON object a line, or one list of them; mend or remove it"
    names = ", ".join(str(file) for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return (
        f"cannot read {names}: {_root_cause(error)}; expected at least one row, and the same columns of the same types "
        "in every file"
    )


def _broken_json(file: Path) -> str | None:
    with _open(file) as lines:
        if (start := lines.read(64).lstrip()).startswith("["):
            try:
                json.loads(start + lines.read())
            except json.JSONDecodeError as error:
                return f"line {error.lineno}: not valid JSON ({error.msg})"
            return None
        lines.seek(0)
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line or "null")
            except json.JSONDecodeError as error:
                if line.strip():
                    return f"line {number}: not valid JSON ({error.msg}): {line.strip()[:60]}"
    return None


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
