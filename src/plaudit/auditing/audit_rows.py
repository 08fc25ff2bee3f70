"""Rows as an audit reads them: plain texts, and what is wrong with a row by itself.

Training refuses a row with an empty response or broken roles. An audit reads such a row, since both are findings; any
other malformed row is an error, as in training.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from plaudit.data.formats import parse_row
from plaudit.data.prompts import common_prefix, prompt_of
from plaudit.data.published_layouts import split_transcript
from plaudit.data.rankings import comparisons_of_ranking
from plaudit.errors import DataError

__all__ = ["AuditRow", "read_prompt", "read_row"]

_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython"}
_RESPONDING = {"assistant", "tool", "function", "ipython"}
_TEMPLATE = re.compile(
    r"<\|[A-Za-z][\w ]{1,30}\|>|\[/?INST\]|<</?SYS>>|</s>|\A<s>|<(?:start|end)_of_turn>|<extra_id_\d+>"
    "|\n\n(?:Human|Assistant):|<\uff5c[^\\s<>]{3,40}\uff5c>"
)
_PROMPTS = ("prompt", "question", "input", "instruction", "query", "conversation_input", "context")
_MOST_COMPARISONS = 10  # of a ranked group: the best response's first

Message = dict[str, str]


@dataclass(slots=True)
class AuditRow:
    """A pair or a ranked group as plain text.

    Attributes:
        prompt: The prompt's text; empty where there is none.
        responses: K texts behind the prompt.
        problems: Kinds of findings that concern the row by itself, and what was found.
        ranks: K numbers, 0 for the best; equal ranks tie. Equal for all in a row that training refuses.
        comparisons: At most 10 pairs (better, worse) of indices of different responses of unequal rank; none if
            the weight is 0.
        weight: How many times the row counts.
        label: The probability that the first response of a pair is better, if the row has one.
    """

    prompt: str
    responses: list[str]
    problems: dict[str, str]
    ranks: list[float] = field(default_factory=list)
    comparisons: list[tuple[int, int]] = field(default_factory=list)
    weight: float = 1.0
    label: float | None = None


def read_row(raw: Any, index: int) -> AuditRow:
    """Read row `index` of a dataset.

    Raises:
        DataError: The row is malformed in a way that no finding describes; the message names it.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"row {index}: expected a dict with 'chosen' and 'rejected', got {raw!r:.80}")
    parsed, refusal = None, None
    try:
        parsed = parse_row(dict(raw), index)
    except DataError as error:
        refusal = error
    row = _read_texts_or_chats(raw)
    if row is None or (refusal and not row.problems.keys() & {"empty", "broken_roles"}):
        raise refusal or DataError(f"row {index}: expected texts or messages, got {raw!r:.80}")
    row.prompt, row.responses = row.prompt.strip(), [response.strip() for response in row.responses]
    row.ranks = [0.0] * len(row.responses)
    if parsed is not None:
        row.label, row.weight, row.ranks = parsed.label, parsed.weight, parsed.ranks
        if row.label is not None and row.label <= 0.5:
            row.ranks = [0.0, 0.0] if row.label == 0.5 else [1.0, 0.0]
        comparisons = comparisons_of_ranking(row.responses, row.ranks) if row.weight > 0 else []
        row.comparisons = comparisons[:_MOST_COMPARISONS]
    if len(set(row.responses)) == 1:
        row.problems["identical"] = ""
    return row


def read_prompt(row: Any, index: int) -> str:
    """Return the text of the prompt of a test row, also of one that has no preference; empty where there is none.

    Raises:
        DataError: The row has no column that holds a prompt, and cannot be read as a pair or a ranked group.
    """
    prompt = next((row[name] for name in _PROMPTS if row.get(name)), None) if isinstance(row, Mapping) else None
    if isinstance(prompt, str):
        return (_join(split_transcript(prompt)) if _is_transcript(prompt) else prompt).strip()
    if isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt):
        return _join(_plain(prompt)).strip()
    return read_row(row, index).prompt


def _read_texts_or_chats(raw: Mapping[str, Any]) -> AuditRow | None:
    """Read a row without the checks of training; `None` where its parts are neither texts nor messages."""
    is_pair = {"chosen", "rejected"} <= raw.keys()  # a column that is not there at all is an error
    given = [raw["chosen"], raw["rejected"]] if is_pair else raw.get("completions")
    if is_pair and given == [None, None]:
        given = raw.get("completions")
    if not isinstance(given, list) or len(given) < 2:
        return None
    prompt = raw.get("prompt")
    if all(isinstance(part, str | None) for part in (prompt, *given)):
        wholes = [(prompt or "") + (response or "") for response in given]
        if all(map(_is_transcript, wholes)):
            return _read_chats([], [split_transcript(whole) for whole in wholes])
        return _read_texts(prompt or "", [response or "" for response in given])
    if all(isinstance(part, list | None) for part in (prompt, *given)):
        messages = [message for part in (prompt, *given) for message in part or ()]
        if all(isinstance(message, Mapping) and "content" in message for message in messages):
            return _read_chats(_plain(prompt or []), [_plain(response or []) for response in given])
    return None


def _read_texts(prompt: str, responses: list[str]) -> AuditRow:
    problems = {} if all(map(str.strip, responses)) else {"empty": ""}
    if not prompt and isinstance(shared := prompt_of({"completions": responses}), str):
        prompt = shared
        responses = [response[response.find(shared) + len(shared) :] for response in responses]
    # The tokens are meant where a template wrote the prompt.
    found = next(filter(None, map(_TEMPLATE.search, responses)), None) if not _TEMPLATE.search(prompt) else None
    return AuditRow(prompt, responses, problems | ({"template_tokens": found[0].strip()} if found else {}))


def _read_chats(prompt: list[Message], responses: list[list[Message]]) -> AuditRow:
    chats = [prompt + response for response in responses]
    problems = {}
    if not all(response and chat[-1]["content"].strip() for response, chat in zip(responses, chats, strict=True)):
        problems["empty"] = ""
    if all(responses) and (broken := next(filter(None, map(_broken_roles, chats)), None)):
        problems["broken_roles"] = broken
    texts = (message["content"] for chat in chats for message in chat)
    if found := next(filter(None, map(_TEMPLATE.search, texts)), None):
        problems["template_tokens"] = found[0].strip()
    if any(message["role"] == "user" for chat in chats for message in chat[common_prefix(chats) :]):
        problems["early_divergence"] = ""
    shared = prompt or prompt_of({"completions": responses})
    start = len(shared) if shared != responses else 0
    return AuditRow(_join(chats[0][:start]), [_join(chat[start:]) for chat in chats], problems)


def _is_transcript(text: str) -> bool:
    return text.lstrip().startswith(("Human:", "Assistant:"))


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return messages of role and text, to which tool calls belong as JSON."""
    return [{"role": str(message.get("role")), "content": _text(message)} for message in messages]


def _text(message: Mapping[str, Any]) -> str:
    content, calls = message.get("content") or "", message.get("tool_calls")
    if not isinstance(content, str):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content + json.dumps(calls, ensure_ascii=False, default=str) if calls else content


def _join(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


def _broken_roles(chat: list[Message]) -> str | None:
    """Return what is wrong with the order of the roles, or `None`."""
    roles = [message["role"] for message in chat]
    if unknown := [role for role in roles if role not in _ROLES]:
        return f"unknown role {unknown[0]!r}"
    while roles and roles[0] in ("system", "developer"):
        roles = roles[1:]
    if "system" in roles:
        return "a system message that is not the first"
    if roles[:1] != ["user"]:
        return "no user's message before the first response"
    for one, two in pairwise(roles):
        if one == two and one in ("user", "assistant"):
            return f"two messages in a row from the {one}"
    return None if roles[-1] in _RESPONDING else f"the last message is from the {roles[-1]}"
