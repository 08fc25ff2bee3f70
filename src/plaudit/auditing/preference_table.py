"""The columns that an audit computes from: one pass over the rows keeps numbers and hashes, and no text."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.agreement import votes_of
from plaudit.auditing.audit_rows import AuditRow, read_row
from plaudit.auditing.biases import FEATURES, features_of
from plaudit.auditing.near_duplicates import HASHES, signatures
from plaudit.auditing.word_differences import WordDifferences

__all__ = ["PreferenceTable", "prompt_keys", "read_table"]

_OPERATIONS = re.compile(r"(?:\b\w+\s?)?[-+*/^=<>\xd7\xf7]\s?\d+")
_BATCH = 128  # rows
# The types of the columns, as `array.array` names them.
_TYPES = {
    "prompts": "Q", "normalised": "Q", "operations": "Q", "rows": "Q", "texts": "Q", "better": "Q",
    "worse": "Q", "row_of": "i", "weights": "f", "features": "H",
}  # fmt: skip


@dataclass(frozen=True)
class PreferenceTable:
    """The columns of R rows with C comparisons, texts as 64-bit hashes."""

    prompts: NDArray[np.uint64]  # [R] hash of the prompt, or of the responses where there is no prompt
    normalised: NDArray[np.uint64]  # [R] hash of the prompt without case, space, punctuation; 0 if none
    operations: NDArray[np.uint64]  # [R] hash of the arithmetic in the prompt, such as 2+2, or 0
    rows: NDArray[np.uint64]  # [R] hash of prompt, responses and preference
    texts: NDArray[np.uint64]  # [R] hash of prompt and responses in any order
    better: NDArray[np.uint64]  # [C] hash of the prompt and the better response
    worse: NDArray[np.uint64]  # [C] hash of the prompt and the other response
    row_of: NDArray[np.int32]  # [C] the row
    weights: NDArray[np.float32]  # [C] an equal share of the weight of the row
    features: NDArray[np.uint16]  # [C, 2, 11] `FEATURES` of the better and the other response
    problems: dict[str, dict[int, str]]  # by kind, the rows that have a finding by themselves, and what was found
    votes: dict[int, tuple[int, int, int]]  # of rows with raters: for the first response, the other one, neither
    labels: dict[int, float]  # of rows with a label

    def __len__(self) -> int:
        return len(self.prompts)


def read_table(rows: Iterable[Any], *, deep: bool = True) -> tuple[PreferenceTable, NDArray[np.uint8], WordDifferences]:
    """Read rows into columns; without `deep`, leave out the features and texts that only the slow findings need.

    Returns:
        The columns; the MinHash signatures of the prompt, of all responses and of both together, shape [R, 3, 100]; and
        the differences in words of the C comparisons.

    Raises:
        DataError: A row is malformed in a way that no finding describes; the message names it.
    """
    columns = {name: array(kind) for name, kind in _TYPES.items()}
    problems: dict[str, dict[int, str]] = {}
    votes, labels, signed, words = {}, {}, array("B"), WordDifferences()
    numbered = enumerate(rows)
    while batch := [(index, raw, read_row(raw, index)) for index, raw in islice(numbered, _BATCH)]:
        for index, raw, row in batch:
            _add_row(columns, row, index)
            for kind, found in row.problems.items():
                problems.setdefault(kind, {})[index] = found
            if raters := votes_of(raw):
                votes[index] = raters
            if row.label is not None:
                labels[index] = row.label
        if deep:
            read = [row for _, _, row in batch]
            texts = [response for row in read for response in row.responses]
            starts = accumulate((len(row.responses) for row in read), initial=0)
            pairs = [
                (start + a, start + b) for start, row in zip(starts, read, strict=False) for a, b in row.comparisons
            ]
            words.append(texts, pairs)
            counts = [features_of(text) for text in texts]
            columns["features"].extend(count for pair in pairs for place in pair for count in counts[place])
            signed.frombytes(_signatures(read).tobytes())
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    arrays["features"] = arrays["features"].reshape(-1, 2, len(FEATURES))
    table = PreferenceTable(**arrays, problems=problems, votes=votes, labels=labels)
    return table, np.asarray(signed).reshape(-1, 3, HASHES), words


def _signatures(rows: Sequence[AuditRow]) -> NDArray[np.uint8]:
    prompts = signatures([row.prompt for row in rows])
    responses = signatures(["\n".join(row.responses) for row in rows])
    return np.stack([prompts, responses, np.minimum(prompts, responses)], axis=1).astype(np.uint8)


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
    return _key(re.sub(r"[\W_]+", "", lowered) or prompt), _key(operations) if operations else 0


def _key(*texts: str) -> int:
    written = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest())


def _add_row(columns: dict[str, "array[Any]"], row: AuditRow, index: int) -> None:
    prompt = _key(row.prompt) if row.prompt else _key("", *sorted(row.responses))
    keys = [_key(str(prompt), response) for response in row.responses]
    normalised, operations = prompt_keys(row.prompt) if row.prompt else (0, 0)
    values = {
        "prompts": prompt, "normalised": normalised, "operations": operations,
        "rows": _key(repr(sorted(zip(row.ranks, keys, strict=True))), str(row.label)),
        "texts": _key(repr(sorted(keys))),
    }  # fmt: skip
    for name, value in values.items():
        columns[name].append(value)
    for better, worse in row.comparisons:
        columns["better"].append(keys[better])
        columns["worse"].append(keys[worse])
        columns["row_of"].append(index)
        columns["weights"].append(row.weight / len(row.comparisons))
