"""What the responses of a row answer, and a number that is the same wherever it is the same."""

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

__all__ = ["prompt_key", "prompt_of"]

# Where an assistant's turn begins in the plain-text layouts that are about.
_REPLY = re.compile(r"(?:^|\n)\s*(?:Assistant|ASSISTANT|A|### ?Response|TL;DR):|\[/INST\]|<\|[\w ]*assistant[\w ]*\|>")

_BREAK = re.compile(r"\n|[.?!:](?=\s)")


def prompt_of(row: Mapping[str, Any]) -> Any:
    """What a raw row asks.

    That is its `prompt`. Where that is implicit, it is the common leading messages of its responses up to the last
    which is not the assistant's; of texts, their common start cut back to where a reply begins, or to the last line,
    sentence or word. Where nothing is common, it is the responses themselves, so that the row stands alone.

    Args:
        row: A pair or a ranked group; it need not be well formed.
    """
    if row.get("prompt"):  # an empty one says nothing of the whole texts beside it
        return row["prompt"]
    responses = row.get("completions") or [row.get("chosen"), row.get("rejected")]
    common: Any = None
    if all(isinstance(response, str) for response in responses):
        common = _common_text(responses)
    elif all(isinstance(response, list) for response in responses):
        common = _common_messages(responses)
    return common or responses


def prompt_key(prompt: Any) -> int:
    """A number below 2^63 that stands for a prompt: the same on any machine and in any run.

    Args:
        prompt: Text, messages or token ids.
    """
    written = json.dumps(_without_none(prompt), sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(written.encode(), digest_size=8).digest()) >> 1


def _without_none(value: Any) -> Any:
    """Arrow fills in None for keys that other rows have; the prompt is the same without."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _shared_start(sequences: list[Any]) -> Any:
    shortest = min(len(sequence) for sequence in sequences)
    ends = (at for at in range(shortest) if any(one[at] != other[at] for one, other in pairwise(sequences)))
    return sequences[0][: next(ends, shortest)]


def _common_messages(responses: list[Any]) -> list[Any]:
    shared = _shared_start(responses)
    while shared and isinstance(shared[-1], Mapping) and shared[-1].get("role") == "assistant":
        shared = shared[:-1]  # the replies are equal, or begin alike
    return shared


def _common_text(responses: list[str]) -> str:
    shared = _shared_start(responses)
    for boundary in (_REPLY, _BREAK):
        if ends := [match.end() for match in boundary.finditer(shared)]:
            return shared[: ends[-1]].strip()
    return shared[: shared.rfind(" ") + 1].strip()
