"""The prompt of a row, given or implicit in its responses, and an integer key that rows of one prompt share."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["common_prefix", "prompt_key", "prompt_of", "without_none"]

# Where an assistant's turn begins in the usual plain-text layouts.
_REPLY = re.compile(r"(?:^|\n)\s*(?:Assistant|ASSISTANT|A|### ?Response|TL;DR):|\[/INST\]|<\|[\w ]*assistant[\w ]*\|>")

_BREAK = re.compile(r"\n|[.?!:](?=\s)")


def common_prefix(sequences: Sequence[Any]) -> int:
    """Return the number of leading items that all sequences share: strings, or lists of messages or of token ids."""
    first, *others = sequences
    return min((_common_pair(first, other) for other in others), default=len(first))


def prompt_of(row: Mapping[str, Any]) -> Any:
    """Return the prompt of a raw row, a pair or a ranked group, well formed or not.

    The prompt is the column `prompt`. An implicit prompt is the common leading messages of the responses up to the last
    that is not the assistant's; of texts, their common prefix cut back to the start of a reply, or to the last line,
    sentence or word. Where the responses share nothing, they themselves are returned, so that no other row has the same
    prompt.
    """
    if row.get("prompt"):  # an empty prompt stands beside whole texts
        return row["prompt"]
    responses = row.get("completions") or [row.get("chosen"), row.get("rejected")]
    common: Any = None
    if all(isinstance(response, str) for response in responses):
        common = _common_text(responses)
    elif all(isinstance(response, list) for response in responses):
        common = _common_messages(responses)
    return common or responses


def prompt_key(prompt: Any) -> int:
    """Return a key below 2^63 of a prompt (text, messages or token ids), the same on any machine and in any run."""
    written = json.dumps(without_none(prompt), sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(written.encode(), digest_size=8).digest()) >> 1


def without_none(value: Any) -> Any:
    """Return a value without the keys, at any depth, that are `None`: Arrow fills in keys that other rows have."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def _common_pair(first: Any, second: Any) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:  # by halves, since two slices are compared faster than their items one by one
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_messages(responses: list[Any]) -> list[Any]:
    shared = responses[0][: common_prefix(responses)]
    while shared and isinstance(shared[-1], Mapping) and shared[-1].get("role") == "assistant":
        shared = shared[:-1]  # the replies are equal, or begin alike
    return shared


def _common_text(responses: list[str]) -> str:
    shared = responses[0][: common_prefix(responses)]
    for boundary in (_REPLY, _BREAK):
        if ends := [match.end() for match in boundary.finditer(shared)]:
            return shared[: ends[-1]].strip()
    return shared[: shared.rfind(" ") + 1].strip()
