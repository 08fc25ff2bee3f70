"""Score files: the rewards of a dataset in JSON lines, written, read, and joined to the data they belong to.

A score file is JSON lines. The first line is the header: `format` ("plaudit-scores"), `version`, and the properties of
the model and the dataset. Each further line is a row; docs/scores.md lists its keys. The module imports neither torch
nor datasets, so that figures of a score file are there at once.
"""

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.data.file_formats import explain_errors
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.preference_data import PreferenceData
from plaudit.evaluation.scores import ScoredRow, Scores, scored_rows
from plaudit.uncertainty import uncertainty_from_dict

__all__ = ["join_scores", "read_scores", "write_scores"]

_FORMAT, _VERSION = "plaudit-scores", 1
_EXAMPLE = '{"row": 0, "rewards": [1.5, -0.2]}'


def write_scores(path: str | Path, scores: Scores) -> None:
    """Write a score file, complete or not at all; with `.gz` at the end of its name, compressed."""
    from plaudit.checkpoint.atomic import write_atomically

    header = {"format": _FORMAT, "version": _VERSION} | scores.header
    records = [header, *(_without_defaults(row) for row in scores.rows)]
    lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    content = lines.encode()
    write_atomically(Path(path), gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)


def read_scores(path: str | Path) -> Scores:
    """Read a score file.

    A file without a header is read if each of its lines has `row` and two rewards, that of the chosen response first.
    `join_scores` reads any other foreign file together with its dataset.

    Raises:
        DataError: There is no such file, a line is malformed (the message names it), or a row occurs twice.
    """
    header: dict[str, Any] = {}
    rows: list[ScoredRow] = []
    for number, record in _records(path):
        if number == 1 and "format" in record:
            header = _read_header(record, path)
        else:
            rows.append(_read_row(record, f"{path}, line {number}", bool(header), len(rows)))
    _check_unique((row.row for row in rows), str(path))
    if not rows:
        raise DataError(f"{path}: expected scored rows, got none. Write the file again with `plaudit eval --scores`.")
    _check_members(header, rows, str(path))
    _check_complete(header, [row.row for row in rows], str(path))
    return Scores(header or {"model": str(path)}, rows)


def join_scores(path: str | Path, data: PreferenceData, header: Mapping[str, Any] | None = None) -> Scores:
    """Join the rewards of a foreign file, lines of `id` or `row` with `rewards`, to the dataset they belong to.

    Args:
        path: The file; the order of its lines does not matter.
        data: The preferences of the dataset, as `read_preferences` returns them.
        header: Properties of the dataset and the model, for the header of the result; those of the file's own header,
            if it has one, win.

    Raises:
        DataError: A line is malformed, a row is missing, unknown or there twice, or has another number of rewards.
    """
    by_id = {each: number for number, each in enumerate(data.ids) if each is not None}
    is_ambiguous = len(by_id) < sum(each is not None for each in data.ids)
    found: dict[int, list[float]] = {}
    properties = dict(header or {})
    for number, record in _records(path):
        place = f"{path}, line {number}"
        if number == 1 and "format" in record:
            own = _read_header(record, path)
            hashes = [(each.get("dataset") or {}).get("hash") for each in (own, properties)]
            if None not in hashes and hashes[0] != hashes[1]:
                other = (own.get("dataset") or {}).get("path")
                raise DataError(f"{path} holds the rewards of other data ({other}). Name the data that it belongs to.")
            properties |= own
            continue
        if "id" in record and is_ambiguous:
            raise DataError(f"{place}: two rows of the dataset have one `id`. Join by the number of the row, `row`.")
        row = record.get("row") if "id" not in record else by_id.get(str(record["id"]))
        if not isinstance(row, int) or not 0 <= row < len(data.ids):
            hint = "" if by_id or "id" not in record else " The dataset has no column `id`."
            raise DataError(
                f"{place}: expected the `row` or the `id` of a row of the dataset, got {record!r:.80}.{hint}"
            )
        if row in found:
            raise DataError(f"{place}: row {row} occurs twice. Keep one of its lines.")
        found[row] = _read_rewards(record, place)
    sizes = np.diff(data.first_responses).tolist()
    for row, size in enumerate(sizes):
        got = found.get(row)
        if got is None or len(got) != size:
            what = "is missing" if got is None else f"has {len(got)} rewards"
            raise DataError(f"{path}: row {row} {what}; expected {size} rewards for each of {len(sizes)} rows.")
    return Scores(properties, scored_rows(data, [reward for row in range(len(sizes)) for reward in found[row]]))


_DEFAULTS = {each.name: each.default for each in fields(ScoredRow)} | {"comparisons": [(0, 1)], "fields": {}}


def _without_defaults(row: ScoredRow) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if value != _DEFAULTS[name]}


def _records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a file of JSON objects with their numbers, from 1."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"{path} is a folder: name one of the score files in it.")
    if not file.is_file():
        raise DataError(f"expected a score file at {path}, but there is none. `plaudit eval --scores` writes one.")
    opener: Callable[..., Any] = gzip.open if file.name.endswith(".gz") else open
    with explain_errors(path), opener(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: expected a JSON object ({error}).") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object such as {_EXAMPLE}, got {line:.80}")
            yield number, record


def _read_header(record: dict[str, Any], path: str | Path) -> dict[str, Any]:
    if record["format"] != _FORMAT or record.get("version") != _VERSION:
        got = f"{record['format']!r} of version {record.get('version')!r}"
        raise DataError(f"{path}: expected the format {_FORMAT!r} of version {_VERSION}, got {got}.")
    return record


def _read_row(record: dict[str, Any], place: str, has_header: bool, position: int) -> ScoredRow:
    if not has_header:
        record = {"row": position} | record
    unknown = record.keys() - _DEFAULTS.keys()
    if has_header and unknown:
        raise DataError(f"{place}: expected the keys of a scored row, got {', '.join(sorted(unknown))}.")
    values = {name: value for name, value in record.items() if name in _DEFAULTS}
    values["rewards"] = rewards = _read_rewards(record, place)
    if not isinstance(values.get("row"), int) or isinstance(values["row"], bool) or values["row"] < 0:
        raise DataError(f"{place}: expected the number of the row in `row`, got {values.get('row')!r:.80}.")
    if "comparisons" not in values and len(rewards) != 2:
        advice = "Join it to its dataset with --data."
        raise DataError(f"{place}: expected two rewards, or `comparisons`, got {len(rewards)} rewards. {advice}")
    pairs = _read_comparisons(values.get("comparisons", [(0, 1)]), len(rewards), place)
    for name, least, most in (("label", 0.0, 1.0), ("weight", 0.0, math.inf)):
        value = values.get(name, 1.0)
        if not isinstance(value, (int, float)) or not least <= value <= most or not math.isfinite(value):
            raise DataError(f"{place}: expected a number from {least:g} to {most:g} in `{name}`, got {value!r:.80}.")
    for name in ("characters", "tokens", "truncated", "members", "stds", "gold"):
        value = values.get(name)
        if value is not None and (not isinstance(value, list) or len(value) != len(rewards)):
            raise DataError(f"{place}: expected {len(rewards)} values in `{name}`, got {value!r:.80}.")
    if values.get("id") is not None:
        values["id"] = str(values["id"])
    if values.get("label", 1.0) < 0.5:  # people prefer the response that is called the worse one
        pairs, values["label"] = [(worse, better) for better, worse in pairs], 1 - values["label"]
    return ScoredRow(**values | {"comparisons": pairs})


def _read_comparisons(value: Any, count: int, place: str) -> list[tuple[int, int]]:
    pairs: list[Any] = value if isinstance(value, list) else [None]
    for pair in pairs:
        two = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(each, int) for each in pair)
        if not two or not all(0 <= each < count for each in pair) or pair[0] == pair[1]:
            expected = f"pairs of different indices from 0 to {count - 1}, the better response first"
            raise DataError(f"{place}: expected {expected}, in `comparisons`, got {pair!r:.80}.")
    return [(better, worse) for better, worse in pairs]


def _read_rewards(record: dict[str, Any], place: str) -> list[float]:
    rewards = record.get("rewards")
    values = rewards if isinstance(rewards, list) else []
    is_number = [isinstance(each, (int, float)) and not isinstance(each, bool) for each in values]
    if not values or not all(is_number) or not all(map(math.isfinite, values)):
        raise DataError(
            f"{place}: expected a list of finite numbers in `rewards`, as in {_EXAMPLE}, got {rewards!r:.80}. `plaudit "
            "eval MODEL DATA --scores FILE` writes a score file."
        )
    return [float(each) for each in values]


def _check_complete(header: Mapping[str, Any], rows: list[int], path: str) -> None:
    """Refuse a file that has not the number of rows that its header declares, such as one that was cut."""
    declared = (header.get("dataset") or {}).get("rows")
    if declared is None or sorted(rows) == list(range(declared)):
        return
    missing = min(set(range(declared)) - set(rows), default=None)
    what = f"row {missing} is missing" if missing is not None else f"it has row {max(rows)}"
    raise DataError(
        f"{path}: the header declares {declared:,} rows, but {what}. The file may have been cut: write it again with "
        "`plaudit eval --scores`, or correct `rows` in its header and number the rows from 0."
    )


def _check_members(header: Mapping[str, Any], rows: list[ScoredRow], path: str) -> None:
    """Refuse members without their constants, and those that are not one finite number for each set of constants."""
    given = [(row.row, each) for row in rows for each in row.members or ()]
    if not given:
        return
    try:
        uncertainty = uncertainty_from_dict(header.get("uncertainty") or {})
    except (ConfigError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected the constants of the `members` in the header ({error}).") from error
    count = uncertainty.members(np.zeros((0, uncertainty.num_columns))).shape[1]
    if uncertainty.num_columns > 1 + count:  # a posterior has a standard deviation beside the rewards of its samples
        for row in rows:
            if not row.stds or not all(isinstance(value, (int, float)) and 0 <= value < math.inf for value in row.stds):
                raise DataError(f"{path}: expected a number of 0 or more for each response in `stds` of row {row.row}.")
    for number, each in given:
        values = each if isinstance(each, list) and len(each) == count else [None]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            expected = f"{count} finite numbers for each response in `members` of row {number}"
            raise DataError(f"{path}: expected {expected}, as the header has {count} members, got {each!r:.80}.")


def _check_unique(rows: Iterable[int], path: str) -> None:
    seen: set[int] = set()
    for row in rows:
        if row in seen:
            raise DataError(f"{path}: row {row} occurs twice. Keep one of its lines.")
        seen.add(row)
