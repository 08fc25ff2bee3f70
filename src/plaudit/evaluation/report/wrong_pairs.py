"""The most confidently wrong comparisons of a score file, with their texts and the words in which they differ."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.data.formats import parse_row
from plaudit.data.prompts import prompt_key, prompt_of, without_none
from plaudit.errors import DataError
from plaudit.evaluation.benchmark_scores import find_benchmark
from plaudit.evaluation.evaluate import load_rows
from plaudit.evaluation.scores import ScoredRow, Scores

__all__ = ["Passage", "WrongPair", "load_texts", "most_confidently_wrong", "set_side_by_side"]

Passage = list[tuple[str, bool]]  # texts, each with a flag: the other response lacks it
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]\s*|\w+\s*|[^\w\s]\s*|\s+")
_LEAST_IN_COMMON = 0.25


@dataclass(frozen=True)
class WrongPair:
    """A comparison in which the response that people like less has the greater reward."""

    row: int  # number in the dataset, from 0
    id: str | None  # the column `id` of the row
    subset: str | None
    places: tuple[int, int]  # of the better and of the other response among those of the row
    rewards: tuple[float, float]
    confidence: float  # the probability that the rewards give to the wrong response


def most_confidently_wrong(scores: Scores, most: int = 20) -> list[WrongPair]:
    """Return the wrong comparisons with the greatest differences of rewards, at most one of each row."""
    compared, rewards = scores.comparisons, scores.rewards
    margins = scores.margins
    wrong = np.flatnonzero((margins < 0) & (compared.labels > 0.5))
    first: dict[int, int] = {}  # the comparison of each row, the most confident row first
    for place in wrong[np.argsort(margins[wrong], kind="stable")].tolist():
        first.setdefault(int(compared.rows[place]), place)
    starts = np.cumsum([0, *(len(row.rewards) for row in scores.rows)]).tolist()
    pairs = []
    for index, place in list(first.items())[:most]:
        row, better, worse = scores.rows[index], int(compared.better[place]), int(compared.worse[place])
        places, confidence = (better - starts[index], worse - starts[index]), float(1 / (1 + np.exp(margins[place])))
        both = float(rewards[better]), float(rewards[worse])
        pairs.append(WrongPair(row.row, row.id, row.subset, places, both, confidence))
    return pairs


def load_texts(
    scores: Scores, wanted: Iterable[int], rows: Sequence[Any] | None = None
) -> dict[int, tuple[str, list[str]]]:
    """Return the prompt and the responses of the rows with the wanted numbers.

    Args:
        scores: The scores.
        wanted: Numbers of rows in the dataset.
        rows: The rows of the dataset; by default, they are loaded as the header names them.

    Raises:
        DataError: The header names no dataset, it cannot be loaded, or its texts are not those that were scored.
    """
    named = scores.header.get("dataset") or {}
    if scores.header.get("benchmark"):
        benchmark = find_benchmark(scores.header["benchmark"])
        raw = benchmark.load(named.get("path"))
        if len(raw) != len(scores.rows):
            raise DataError(f"{benchmark.name} now has {len(raw):,} rows; {len(scores.rows):,} were scored")
        return {row: _texts(benchmark.prompt(raw[row]), benchmark.sequences(raw[row])) for row in wanted}
    path = named.get("path")
    if rows is None and (not path or (" " in path and not Path(path).exists())):  # a description, not a path
        raise DataError("the score file does not name a dataset that can be loaded again")
    found: Any = rows
    if rows is None:
        config, layout = named.get("config"), named.get("format")
        found, _ = load_rows(path, split=named.get("split"), dataset_config=config, dataset_format=layout)
    numbers = set(wanted)
    return {row.row: _texts_of_row(found, row, path or "the dataset") for row in scores.rows if row.row in numbers}


def _texts_of_row(rows: Any, scored: ScoredRow, name: str) -> tuple[str, list[str]]:
    """Return the texts of a row, which must be those that were scored."""
    raw = dict(rows[scored.row]) if scored.row < len(rows) else {}
    sequences = parse_row(raw, scored.row).sequences if raw else []
    if not raw or scored.row_key not in (None, prompt_key(sequences)):
        raise DataError(f"{name} has other texts, or another order, than was scored")
    return _texts(without_none(prompt_of(raw)), sequences)


def set_side_by_side(better: str, worse: str, characters: int) -> tuple[Passage, Passage]:
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
    matcher = difflib.SequenceMatcher(None, stripped[0], stripped[1])
    if matcher.ratio() < _LEAST_IN_COMMON:
        passages = [[(part, False)] for part in parts]
    else:
        codes = matcher.get_opcodes()
        spans = ([(tag, i, j) for tag, i, j, _, _ in codes], [(tag, i, j) for tag, _, _, i, j in codes])
        passages = [
            [(text, tag != "equal" and not text.isspace()) for tag, i, j in side if (text := "".join(each[i:j]))]
            for each, side in zip(words, spans, strict=True)
        ]
    left, right = (
        [*_left_out(start), *passage, *_left_out(len(text) - start - len(part))]
        for passage, start, text, part in zip(passages, starts, texts, parts, strict=True)
    )
    return left, right


def _left_out(characters: int) -> Passage:
    return [(f" [{characters:,} characters left out] ", False)] if characters else []


def _texts(prompt: Any, sequences: list[Any]) -> tuple[str, list[str]]:
    """Return the prompt and the responses of a row, of whole sequences that may begin with the prompt."""
    if not prompt or any(sequence[: len(prompt)] != prompt for sequence in sequences):
        return "", [_written(sequence) for sequence in sequences]
    return _written(prompt), [_written(sequence[len(prompt) :], response=True) for sequence in sequences]


def _written(value: Any, *, response: bool = False) -> str:
    """Return a text, or messages as text; the role of a response's only message goes without saying."""
    if isinstance(value, str):
        return value.strip()
    return "\n".join(_written_message(each, alone=response and len(value) == 1) for each in value)


def _written_message(message: Mapping[str, Any], *, alone: bool) -> str:
    others = {name: each for name, each in message.items() if name not in ("role", "content") and each}
    content = [message.get("content") or "", *([others] if others else [])]
    text = "\n".join(each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in content)
    return text.strip() if alone else f"{message.get('role')}: {text.strip()}"
