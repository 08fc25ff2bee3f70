"""Rows read for an audit: what training refuses because of empty responses or broken roles is read all the same.

A row is parsed by `plaudit.data.formats` first. A malformed row is an error, as in training, unless what is wrong with
it is a finding of its own.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from plaudit.data.annotations import parse_group_annotations, parse_pair_annotations
from plaudit.data.formats import parse_row
from plaudit.data.prompts import common_prefix, prompt_of
from plaudit.data.published_layouts import split_transcript
from plaudit.data.rankings import comparisons_of_ranking
from plaudit.errors import DataError

__all__ = ["AuditRow", "read_prompt", "read_row"]

Turn = tuple[str, str]  # role and text

_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython"}
_RESPONDING = {"assistant", "tool", "function", "ipython"}
_TEMPLATE = re.compile(
    r"<\|[A-Za-z][\w ]{1,30}\|>|\[/?INST\]|<</?SYS>>|</s>|\A<s>|<(?:start|end)_of_turn>|<extra_id_\d+>"
    "|\n\n(?:Human|Assistant):|<\uff5c[^\\s<>]{3,40}\uff5c>"
)
_PROMPTS = ("prompt", "question", "input", "instruction", "query", "conversation_input", "context")
_MOST_COMPARISONS = 10  # of a ranked group: the best response's first


@dataclass(slots=True)
class AuditRow:
    """A pair or a ranked group as plain text.

    Attributes:
        prompt: The prompt's text; empty where there is none.
        responses: K texts behind the prompt.
        ranks: K numbers, 0 for the best; equal ranks tie.
        comparisons: At most 10 pairs (better, worse) of indices of different responses of unequal rank.
        weight: How many times the row counts.
        label: The probability that the first response of a pair is better, if the row has one.
        empty: A response has no text.
        broken: What is wrong with the roles, if anything is.
        template: A template's token inside text, if there is one.
        diverges: The user speaks again after the responses part.
    """

    prompt: str
    responses: list[str]
    ranks: list[float]
    comparisons: list[tuple[int, int]]
    weight: float = 1.0
    label: float | None = None
    empty: bool = False
    broken: str | None = None
    template: str | None = None
    diverges: bool = False


def read_row(row: Any, index: int) -> AuditRow:
    """Read row `index` of a dataset.

    Raises:
        DataError: The row is malformed in a way that no finding describes; the message names it.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"row {index}: expected a dict with 'chosen' and 'rejected', got {row!r:.80}")
    refused: DataError | None = None
    try:
        parse_row(dict(row), index)
    except DataError as error:
        refused = error
    read = _read(row, index)
    if read is None or (refused and not (read.empty or read.broken)):
        raise refused or DataError(f"row {index}: expected texts or messages, got {row!r:.80}")
    return read


def read_prompt(row: Any, index: int) -> str:
    """Return the text of the prompt of a test row, also of one that has no preference; empty where there is none.

    Raises:
        DataError: The row has no column that holds a prompt, and cannot be read as a pair or a ranked group.
    """
    prompt = next((row[name] for name in _PROMPTS if row.get(name)), None) if isinstance(row, Mapping) else None
    if isinstance(prompt, str):
        is_transcript = prompt.lstrip().startswith("Human:")
        return (
            "\n".join(turn["content"] for turn in split_transcript(prompt)).strip() if is_transcript else prompt.strip()
        )
    if isinstance(prompt, list) and all(map(_is_message, prompt)):
        return "\n".join(text for _, text in _turns(prompt)).strip()
    return read_row(row, index).prompt.strip()


def _read(row: Mapping[str, Any], index: int) -> AuditRow | None:
    """Read a row without the checks of training; `None` where its parts are neither texts nor messages."""
    group = row.get("completions") is not None and row.get("chosen") is None and row.get("rejected") is None
    given = row["completions"] if group else [row.get("chosen"), row.get("rejected")]
    named = group or {"chosen", "rejected"} <= row.keys()  # a column that is not there at all is an error
    if not named or not isinstance(given, list) or len(given) < 2 or all(each is None for each in given):
        return None
    if group:
        annotations = parse_group_annotations(dict(row), index, len(given))
        label, ranks = None, annotations["ranks"]
    else:
        annotations = parse_pair_annotations(dict(row), index)
        label = annotations["label"]
        first = 0.5 if annotations["tie"] else 1.0 if label is None else label
        ranks = [0.0, 0.0] if first == 0.5 else [0.0, 1.0] if first > 0.5 else [1.0, 0.0]
    parts = [row.get("prompt"), *given]
    if all(isinstance(part, str | None) for part in parts):
        read = _read_texts(row, [part or "" for part in given])
    elif all(isinstance(part, list | None) and all(_is_message(each) for each in part or ()) for part in parts):
        prompt = row.get("prompt") or []
        read = _read_chats([_turns([*prompt, *(part or [])]) for part in given], len(prompt), given)
    else:
        return None
    read.ranks, read.label, read.weight = ranks, label, annotations["weight"]
    read.comparisons = comparisons_of_ranking(read.responses, ranks)[:_MOST_COMPARISONS]
    return read


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("content"), str | list | None)


def _turns(messages: Iterable[Mapping[str, Any]]) -> list[Turn]:
    return [(str(message.get("role")), _text(message)) for message in messages]


def _text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, and its tool calls as JSON."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    calls = message.get("tool_calls")
    return content + json.dumps(calls, ensure_ascii=False, default=str) if calls else content


def _read_texts(row: Mapping[str, Any], given: list[str]) -> AuditRow:
    prompt = row.get("prompt") or ""
    wholes = [prompt + response for response in given]
    if all(whole.lstrip()[:10].startswith(("Human:", "Assistant:")) for whole in wholes):
        chats = [[(turn["role"], turn["content"]) for turn in split_transcript(whole)] for whole in wholes]
        return _read_chats(chats, 0, given)
    if prompt:
        responses = given
    else:
        shared = prompt_of({"completions": given})  # the responses themselves where they share nothing
        prompt = shared if isinstance(shared, str) else ""
        responses = [whole[whole.find(prompt) + len(prompt) :] for whole in wholes] if prompt else wholes
    rendered = _TEMPLATE.search(prompt)  # a prompt that a template wrote: its tokens are meant
    found = None if rendered else next(filter(None, map(_TEMPLATE.search, responses)), None)
    empty = not all(map(str.strip, responses)) if row.get("prompt") else not all(map(str.strip, given))
    return AuditRow(prompt, responses, [], [], empty=empty, template=found and found[0].strip())


def _read_chats(chats: list[list[Turn]], explicit: int, given: list[Any]) -> AuditRow:
    """Read K conversations, whose first `explicit` messages are the column `prompt`."""
    shared = common_prefix(chats)
    prompt = explicit or shared
    while prompt > explicit and chats[0][prompt - 1][0] == "assistant":
        prompt -= 1
    responses = ["\n".join(text for _, text in chat[prompt:]) for chat in chats]
    found = next(filter(None, (_TEMPLATE.search(text) for chat in chats for _, text in chat)), None)
    return AuditRow(
        "\n".join(text for _, text in chats[0][:prompt]),
        responses,
        ranks=[],
        comparisons=[],
        empty=not all(part and chat and chat[-1][1].strip() for part, chat in zip(given, chats, strict=True)),
        broken=next(filter(None, map(_broken_roles, chats)), None) if all(given) else None,
        template=found and found[0].strip(),
        diverges=any(role == "user" for chat in chats for role, _ in chat[max(shared, explicit) :]),
    )


def _broken_roles(chat: list[Turn]) -> str | None:
    """Return what is wrong with the order of the roles, or `None`."""
    roles = [role for role, _ in chat]
    if unknown := [role for role in roles if role not in _ROLES]:
        return f"unknown role {unknown[0]!r}"
    opening = 0
    while opening < len(roles) and roles[opening] in ("system", "developer"):
        opening += 1
    spoken = roles[opening:]
    if "system" in spoken:
        return "a system message that is not the first"
    if spoken[:1] != ["user"]:
        return "no user's message before the first response"
    for one, two in pairwise(spoken):
        if one == two and one in ("user", "assistant"):
            return f"two messages in a row from the {one}"
    return None if spoken[-1] in _RESPONDING else f"the last message is from the {spoken[-1]}"
