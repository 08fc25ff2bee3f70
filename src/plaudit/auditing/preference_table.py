"""The columns that an audit computes from: one pass over the rows keeps numbers, hashes and words, and no text."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.agreement import votes_of
from plaudit.auditing.lenient_rows import AuditRow, read_row
from plaudit.evaluation.baselines import STYLE, style_counts
from plaudit.evaluation.word_counts import WordStore

__all__ = ["FORMATS", "PreferenceTable", "key_of", "prompt_keys", "read_table"]

# The features whose odds an audit compares, beside those of `plaudit.evaluation.baselines.STYLE`.
FORMATS = {
    "code block": re.compile("```"),
    "link": re.compile(r"https?://|\]\(www\."),
    "emoji": re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]"),
    '"Sure" as opener': re.compile(r"\W*(?:sure|certainly|absolutely|of course|great question|gladly)\b", re.I),
    "refusal as opener": re.compile(
        "\\W*(?:i['\u2019]?m (?:very |so |really )?(?:sorry|afraid|unable|not able|not comfortable)"
        "|i am (?:sorry|unable|not able)|sorry\\b|i (?:must )?apologi[sz]e|as an ai\\b|unfortunately,? i\\b"
        "|i (?:can(?:['\u2019]?t|not| not)|won['\u2019]?t|will not|do(?:n['\u2019]t| not) feel comfortable))",
        re.I,
    ),
}
_OPENERS = {name for name in FORMATS if name.endswith("opener")}
_OPERATIONS = re.compile(r"(?:\b\w+\s?)?[-+*/^=<>\xd7\xf7]\s?\d+")
_CHECKS = ("identical", "empty", "early_divergence", "template_tokens", "broken_roles")
# The types of the columns, as `array.array` names them.
_TYPES = {
    "prompts": "Q", "normalised": "Q", "operations": "Q", "rows": "Q", "texts": "Q", "has_prompt": "B", "labels": "d",
    "first": "q", "responses": "Q", "counts": "H", "better": "q", "worse": "q", "row_of": "q", "weights": "d",
}  # fmt: skip


@dataclass(frozen=True)
class PreferenceTable:
    """The columns of R rows with N responses and C comparisons.

    Attributes:
        prompts: Hash of the prompt, or of the responses where there is none, shape [R].
        normalised: Hash of the prompt without case, white space and punctuation, shape [R].
        operations: Hash of the arithmetic in the prompt, such as 2+2, or 0, shape [R].
        rows: Hash of prompt, responses and preference, shape [R].
        texts: Hash of prompt and responses in any order, shape [R].
        has_prompt: 1 where the row has a prompt, shape [R].
        labels: The `label` of the row, or NaN, shape [R].
        first: Index of the first response of the row, shape [R + 1].
        responses: Hash of the response, shape [N].
        counts: Counts of `STYLE`, then presence of `FORMATS`, shape [N, 11].
        better: Index of the better response of the comparison, shape [C].
        worse: Index of the other response, shape [C].
        row_of: Row of the comparison, shape [C].
        weights: Weight of the comparison, an equal share of its row's, shape [C].
        checks: Numbers of the rows with a finding that needs one row alone, such as `empty`, and what was found.
        votes: Raters for the first response, for the other one and for neither, by row number.
    """

    prompts: NDArray[np.uint64]
    normalised: NDArray[np.uint64]
    operations: NDArray[np.uint64]
    rows: NDArray[np.uint64]
    texts: NDArray[np.uint64]
    has_prompt: NDArray[np.uint8]
    labels: NDArray[np.float64]
    first: NDArray[np.int64]
    responses: NDArray[np.uint64]
    counts: NDArray[np.uint16]
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    row_of: NDArray[np.int64]
    weights: NDArray[np.float64]
    checks: dict[str, dict[int, str]]
    votes: dict[int, tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.prompts)

    def prompt_text(self, row: int) -> int:
        """Return the place of the prompt of a row in the store of `read_table`; the texts of its responses follow."""
        return int(self.first[row]) + row


def read_table(rows: Iterable[Any], *, deep: bool = True) -> tuple[PreferenceTable, WordStore]:
    """Read rows into columns; without `deep`, leave out the words and features that only the slow findings need.

    Returns:
        The columns; and the words of each row, those of its prompt and then those of each response.

    Raises:
        DataError: A row is malformed in a way that no finding describes; the message names it.
    """
    columns = {name: array(kind) for name, kind in _TYPES.items()}
    checks: dict[str, dict[int, str]] = {name: {} for name in _CHECKS}
    votes, words = {}, WordStore()
    for index, raw in enumerate(rows):
        row = read_row(raw, index)
        row.prompt, row.responses = row.prompt.strip(), [response.strip() for response in row.responses]
        _add_keys(columns, row)
        _add_comparisons(columns, row, index)
        for name, detail in _check(row):
            checks[name][index] = detail
        if deep:
            words.append(row.prompt)
            for response in row.responses:
                words.append(response)
                columns["counts"].extend(_features(response))
            if (vote := votes_of(raw)) is not None:
                votes[index] = vote
    columns["first"].append(len(columns["responses"]))
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    arrays["counts"] = arrays["counts"].reshape(-1, len(STYLE) + len(FORMATS))
    return PreferenceTable(**arrays, checks=checks, votes=votes), words


def prompt_keys(prompt: str) -> tuple[int, int]:
    """Return the hash of a prompt without case, white space and punctuation, and that of its arithmetic, or 0.

    Two prompts are the same if the first are equal and the second too, unless one of them has no arithmetic any more.

    Example:
        >>> prompt_keys("What's 2 + 2?") == prompt_keys(" what s 2+2")
        True
        >>> prompt_keys("2 + 2?") == prompt_keys("2 - 2?")
        False
    """
    lowered = prompt.casefold()
    operations = "".join("".join(_OPERATIONS.findall(lowered)).split())
    return key_of(re.sub(r"[\W_]+", "", lowered) or prompt), key_of(operations) if operations else 0


def key_of(*texts: str) -> int:
    """Return a 64-bit hash of texts."""
    written = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest())


def _add_keys(columns: dict[str, "array[Any]"], row: AuditRow) -> None:
    keys = [key_of(response) for response in row.responses]
    prompt = str(key_of(row.prompt) if row.prompt else key_of("", *sorted(row.responses)))
    label = "" if row.label is None else str(row.label)
    columns["prompts"].append(int(prompt))
    columns["has_prompt"].append(bool(row.prompt))
    columns["rows"].append(key_of(prompt, repr(sorted(zip(row.ranks, keys, strict=True))), label))
    columns["texts"].append(key_of(prompt, repr(sorted(keys))))
    columns["labels"].append(np.nan if row.label is None else row.label)
    columns["first"].append(len(columns["responses"]))
    columns["responses"].extend(keys)
    for name, key in zip(("normalised", "operations"), prompt_keys(row.prompt), strict=True):
        columns[name].append(key)


def _add_comparisons(columns: dict[str, "array[Any]"], row: AuditRow, index: int) -> None:
    start = columns["first"][-1]
    for better, worse in row.comparisons if row.weight > 0 else ():
        columns["better"].append(start + better)
        columns["worse"].append(start + worse)
        columns["row_of"].append(index)
        columns["weights"].append(row.weight / len(row.comparisons))


def _check(row: AuditRow) -> Iterator[tuple[str, str]]:
    ranks: dict[str, set[float]] = {}
    for response, rank in zip(row.responses, row.ranks, strict=True):
        ranks.setdefault(response, set()).add(rank)
    if len(ranks) == 1 or any(len(each) > 1 for each in ranks.values()):
        yield "identical", ""
    if row.empty:
        yield "empty", ""
    if row.diverges:
        yield "early_divergence", ""
    if row.template:
        yield "template_tokens", row.template
    if row.broken:
        yield "broken_roles", row.broken


def _features(response: str) -> list[int]:
    found = (
        pattern.match(response) if name in _OPENERS else pattern.search(response) for name, pattern in FORMATS.items()
    )
    return [*(min(count, 65535) for count in style_counts(response)), *(match is not None for match in found)]
