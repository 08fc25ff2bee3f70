"""Score files: the rewards of a dataset's rows with everything that figures are made from, and without their texts.

A score file is JSON lines. The first line is the header: `format` ("plaudit-scores"), `version`, and the properties of
the model and the dataset. Each further line is a row; docs/scores.md lists its keys. The module imports neither torch
nor datasets, so that figures of a score file are there at once.
"""

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.data.file_formats import explain_errors
from plaudit.data.prompts import prompt_key
from plaudit.errors import DataError
from plaudit.evaluation.preference_data import Comparisons, PreferenceData
from plaudit.scoring.completions import count_characters

__all__ = ["ScoredRow", "Scores", "join_scores", "read_scores", "scored_rows", "write_scores"]

_FORMAT, _VERSION = "plaudit-scores", 1
_EXAMPLE = '{"row": 0, "rewards": [1.5, -0.2]}'


@dataclass(frozen=True)
class ScoredRow:
    """One row of a dataset with its K rewards.

    Attributes:
        row: Number of the row in its dataset, from 0.
        rewards: K rewards, finite; of a pair, that of the chosen response first.
        id: The column `id` of the row, if it has one.
        prompt_key: A number that rows of one prompt share; `None` for a prompt that no other row has.
        row_key: A number that rows of the same texts share, by which a row is found again in other data.
        subset: The column `subset` of the row, if it has one.
        comparisons: Pairs (better, worse) of indices among the K responses.
        label: Probability that people prefer the better response of a comparison, from 1/2 to 1.
        weight: How many times the row counts; its comparisons share the weight equally.
        ties: Number of tied pairs, which make no comparison.
        identical: Number of pairs of equal responses, which make no comparison either.
        characters: K lengths in characters, prompt included.
        tokens: K lengths in tokens, as they were scored.
        truncated: K flags: the sequence had more tokens than the model takes, and was cut.
        gold: K values of the dataset's column `scores`, which annotators gave and not the model; greater is better.
        fields: The columns of a benchmark's row that its rule reads.
    """

    row: int
    rewards: list[float]
    id: str | None = None
    prompt_key: int | None = None
    row_key: int | None = None
    subset: str | None = None
    comparisons: list[tuple[int, int]] = field(default_factory=lambda: [(0, 1)])
    label: float = 1.0
    weight: float = 1.0
    ties: int = 0
    identical: int = 0
    characters: list[int] | None = None
    tokens: list[int] | None = None
    truncated: list[bool] | None = None
    gold: list[float] | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> int:
        """The key of the prompt, also of one that no other row has."""
        return -1 - self.row if self.prompt_key is None else self.prompt_key  # keys are never negative


@dataclass(frozen=True)
class Scores:
    """The rewards of one model on one dataset.

    Attributes:
        header: `model`, `fingerprint`, `dtype`, `attention`, `layout`, `quantization`, `chat_template`, `bos`, `eos`,
            `max_length`, `versions`, `dataset` (`path`, `split`, `config`, `format`, `rows`, `hash`) and `benchmark`;
            a property that is not known is `None` or not there.
        rows: The rows in the order of the dataset, R.
    """

    header: dict[str, Any]
    rows: list[ScoredRow]

    @property
    def name(self) -> str:
        """The model and the dataset, for a table."""
        dataset = self.header.get("benchmark") or (self.header.get("dataset") or {}).get("path")
        return " on ".join(str(part) for part in (self.header.get("model"), dataset) if part) or "scores"

    @cached_property
    def rewards(self) -> NDArray[np.float64]:
        """All rewards, row after row, shape [N]."""
        return np.array([reward for row in self.rows for reward in row.rewards], dtype=np.float64)

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """All lengths in characters, shape [N]; NaN where they are not known."""
        lengths: list[float] = []
        for row in self.rows:
            lengths += [math.nan] * len(row.rewards) if row.characters is None else row.characters
        return np.array(lengths, dtype=np.float64)

    @cached_property
    def margins(self) -> NDArray[np.float64]:
        """The better response's reward minus the other's, shape [C]."""
        return self.rewards[self.comparisons.better] - self.rewards[self.comparisons.worse]

    @cached_property
    def comparisons(self) -> Comparisons:
        """The comparisons of all rows; `better` and `worse` are indices into `rewards`.

        Raises:
            DataError: No row makes a comparison.
        """
        columns: list[tuple[int, int, float, float, int, int]] = []
        start = 0
        for index, row in enumerate(self.rows):
            if row.weight > 0:
                share = row.weight / max(len(row.comparisons), 1)
                columns += [(start + a, start + b, row.label, share, row.prompt, index) for a, b in row.comparisons]
            start += len(row.rewards)
        if not columns:
            raise DataError(f"expected rows with a preference to evaluate on, got none in {len(self.rows)} rows")
        better, worse, labels, weights, prompts, rows_of = (np.array(column) for column in zip(*columns, strict=True))
        return Comparisons(
            better, worse, labels, weights, prompts, rows_of,
            subsets=[row.subset for row in self.rows],
            ties=np.array([row.ties for row in self.rows]),
            identical=np.array([row.identical for row in self.rows]),
        )  # fmt: skip


def scored_rows(
    data: PreferenceData,
    rewards: Sequence[float] | NDArray[np.float64],
    tokens: Sequence[int] | None = None,
    truncated: Sequence[bool] | None = None,
) -> list[ScoredRow]:
    """Return the rows of read preferences with the rewards of their responses.

    Args:
        data: The preferences of R rows, with N responses.
        rewards: N rewards.
        tokens: N lengths in tokens, if they are known.
        truncated: N flags for sequences that were cut, if they are known.
    """
    local: list[list[tuple[int, int]]] = [[] for _ in data.subsets]
    labels, weights = [1.0] * len(local), [0.0] * len(local)
    columns = (data.rows, data.better, data.worse, data.labels, data.weights)
    for row, better, worse, label, weight in zip(*(column.tolist() for column in columns), strict=True):
        start = int(data.first_responses[row])
        local[row].append((better - start, worse - start))
        labels[row], weights[row] = label, weights[row] + weight
    bounds = data.first_responses.tolist()
    slices = [slice(start, end) for start, end in pairwise(bounds)]

    def part(values: Any, at: slice) -> Any:
        return None if values is None else np.asarray(values[at]).tolist()

    return [
        ScoredRow(
            row=number,
            rewards=np.asarray(rewards[at], dtype=np.float64).tolist(),
            id=data.ids[number],
            prompt_key=data.prompt_keys[number],
            row_key=prompt_key(data.sequences[at]),
            subset=data.subsets[number],
            comparisons=local[number],
            label=labels[number],
            weight=weights[number] if local[number] else 1.0,
            ties=int(data.ties[number]),
            identical=int(data.identical[number]),
            characters=[count_characters(each) for each in data.sequences[at]],
            tokens=part(tokens, at),
            truncated=part(truncated, at),
            gold=data.scores[number],
        )
        for number, at in enumerate(slices)
    ]


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
    for name in ("characters", "tokens", "truncated", "gold"):
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
        raise DataError(f"{place}: expected a list of finite numbers in `rewards`, got {rewards!r:.80}.")
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


def _check_unique(rows: Iterable[int], path: str) -> None:
    seen: set[int] = set()
    for row in rows:
        if row in seen:
            raise DataError(f"{path}: row {row} occurs twice. Keep one of its lines.")
        seen.add(row)
