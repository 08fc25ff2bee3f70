"""The most confidently wrong comparisons of a score file, with their texts and the words in which they differ."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from plaudit.data.prompts import prompt_of, without_none
from plaudit.errors import DataError
from plaudit.evaluation.benchmarks import BENCHMARKS
from plaudit.evaluation.evaluate import describe_dataset, load_rows
from plaudit.evaluation.preference_data import read_preferences
from plaudit.evaluation.score_files import Scores

__all__ = ["Passage", "Sides", "Texts", "WrongPair", "load_texts", "most_confidently_wrong", "set_side_by_side"]

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]\s*|\w+\s*|[^\w\s]\s*|\s+")
_LEAST_IN_COMMON = 0.25


@dataclass(frozen=True)
class WrongPair:
    """A comparison in which the response that people like less has the greater reward."""

    row: int  # number in the dataset, from 0
    id: str | None  # the column `id` of the row
    subset: str | None
    better: int  # index of the better response among those of the row
    worse: int
    better_reward: float
    worse_reward: float
    confidence: float  # the probability that the rewards give to the worse response


class Texts(NamedTuple):
    """The texts of a row."""

    prompt: str
    responses: list[str]


class Passage(NamedTuple):
    """A part of a response."""

    pieces: list[tuple[str, bool]]  # texts, each with a flag: the other response lacks it
    before: int  # characters that are left out before the passage
    after: int  # characters that are left out after it


class Sides(NamedTuple):
    """Two responses, side by side."""

    better: Passage
    worse: Passage


def most_confidently_wrong(scores: Scores, most: int = 20) -> list[WrongPair]:
    """Return the wrong comparisons with the greatest differences of rewards, at most one of each row."""
    compared, rewards = scores.comparisons, scores.rewards
    margins = rewards[compared.better] - rewards[compared.worse]
    wrong = np.flatnonzero((margins < 0) & (compared.labels > 0.5))
    first: dict[int, int] = {}  # the comparison of each row, the most confident row first
    for place in wrong[np.argsort(margins[wrong], kind="stable")].tolist():
        first.setdefault(int(compared.rows[place]), place)
    starts = np.cumsum([0, *(len(row.rewards) for row in scores.rows)])
    pairs = []
    for index, place in list(first.items())[:most]:
        row, better, worse = scores.rows[index], int(compared.better[place]), int(compared.worse[place])
        confidence = 1 / (1 + np.exp(margins[place]))
        pairs.append(WrongPair(
            row.row, row.id, row.subset, better - int(starts[index]), worse - int(starts[index]),
            float(rewards[better]), float(rewards[worse]), float(confidence),
        ))  # fmt: skip
    return pairs


def load_texts(scores: Scores, wanted: Iterable[int], rows: Sequence[Any] | None = None) -> dict[int, Texts]:
    """Return the texts of the rows with the wanted numbers.

    Args:
        scores: The scores.
        wanted: Numbers of rows in the dataset.
        rows: The rows of the dataset; by default, they are loaded as the header names them.

    Raises:
        DataError: The header names no dataset, it cannot be loaded, or its texts are not those that were scored.
    """
    named, benchmark = scores.header.get("dataset") or {}, scores.header.get("benchmark")
    if benchmark:
        return _load_benchmark(benchmark, named, wanted)
    options = {"dataset_config": named.get("config"), "dataset_format": named.get("format")}
    if rows is None and not named.get("path"):
        raise DataError("the score file does not name a dataset that can be loaded again")
    raw = list(load_rows(named["path"], split=named.get("split"), **options)[0] if rows is None else rows)
    data = read_preferences(raw)
    if named.get("hash") not in (None, describe_dataset(data, None, None, None, None)["hash"]):
        where = named.get("path") or "the dataset"
        raise DataError(f"{where} has changed since it was scored: it has other texts, or another order of rows")
    starts = data.first_responses.tolist()
    return {
        row: _texts(without_none(prompt_of(raw[row])), data.sequences[starts[row] : starts[row + 1]]) for row in wanted
    }


def _load_benchmark(name: str, named: Mapping[str, Any], wanted: Iterable[int]) -> dict[int, Texts]:
    benchmark = BENCHMARKS[name]
    rows = benchmark.load(named.get("path"))
    if len(rows) != named.get("rows", len(rows)):
        raise DataError(f"{name} has changed since it was scored: it has {len(rows):,} rows, not {named['rows']:,}")
    return {row: _texts(benchmark.prompt(rows[row]), benchmark.sequences(rows[row])) for row in wanted}


def set_side_by_side(better: str, worse: str, characters: int) -> Sides:
    """Return a passage of each of two responses, from before their first difference, with the words that differ.

    Words are compared by `difflib.SequenceMatcher`. Nothing is marked where the passages have little in common, since
    all would be.

    Args:
        better: The response that people prefer.
        worse: The other response.
        characters: The most characters of a passage.
    """
    texts = (better, worse)
    shared = next((place for place, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    starts = [max(0, min(shared - characters // 3, len(text) - characters)) for text in texts]
    parts = [text[start : start + characters] for text, start in zip(texts, starts, strict=True)]
    words = [_WORDS.findall(part) for part in parts]
    stripped = [[word.strip() for word in each] for each in words]
    matcher = difflib.SequenceMatcher(None, stripped[0], stripped[1])  # quick for endless repetitions too
    marked = [[(part, False)] for part in parts]
    if matcher.ratio() >= _LEAST_IN_COMMON:
        spans = [((tag, i, j), (tag, k, m)) for tag, i, j, k, m in matcher.get_opcodes()]
        marked = [
            [(text, tag != "equal" and not text.isspace()) for tag, i, j in side if (text := "".join(each[i:j]))]
            for each, side in zip(words, zip(*spans, strict=True), strict=True)
        ]
    left, right = (
        Passage(pieces, start, len(text) - start - len(part))
        for pieces, start, text, part in zip(marked, starts, texts, parts, strict=True)
    )
    return Sides(left, right)


def _texts(prompt: Any, sequences: list[Any]) -> Texts:
    """Return the prompt and the responses of a row, of whole sequences that begin with the prompt."""
    shown = [
        sequence[len(prompt) :] if prompt and sequence[: len(prompt)] == prompt else sequence for sequence in sequences
    ]
    return Texts("" if shown == sequences else _written(prompt), [_written(each, response=True) for each in shown])


def _written(value: Any, *, response: bool = False) -> str:
    """Return a text, or messages as text; the role of a response's only message goes without saying."""
    if isinstance(value, str):
        return value.strip()
    alone = response and len(value) == 1
    return "\n".join(_written_message(message, alone) for message in value)


def _written_message(message: Mapping[str, Any], alone: bool) -> str:
    others = {name: each for name, each in message.items() if name not in ("role", "content") and each}
    content = message.get("content") or ""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    text += f"\n{json.dumps(others, ensure_ascii=False)}" if others else ""
    return text.strip() if alone else f"{message.get('role')}: {text.strip()}"
