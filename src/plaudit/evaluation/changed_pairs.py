"""Pairs of responses, split into prompt and responses, and what a change makes of them."""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from random import Random
from typing import Any

from plaudit.data.formats import TextOrChat
from plaudit.data.prompts import prompt_of
from plaudit.errors import DataError
from plaudit.evaluation.preference_data import read_preferences
from plaudit.evaluation.text_changes import TextChange

__all__ = ["Pair", "blank_prompt", "change_text", "read_pairs", "shuffle_prompts"]

# White space, a text, and white space; a mark that the assistant's reply follows counts as white space at the end.
_FRAME = re.compile(r"(\s*)(.*?)((?:\n\s*(?:Assistant|ASSISTANT|A|Answer|### ?Response):|\[/INST\])?\s*)", re.DOTALL)


@dataclass(frozen=True)
class Pair:
    """The better and the worse response to one prompt (empty where the row has none): texts, or lists of messages."""

    prompt: Any
    responses: tuple[Any, Any]
    names: tuple[str, str]  # row and column of both, for messages
    options: dict[str, Any]  # keyword arguments for the chat template
    key: int  # of the prompt
    weight: float  # of the row

    @property
    def sequences(self) -> tuple[TextOrChat, TextOrChat]:
        """Both responses with the prompt before them, as a reward model scores them."""
        return self.prompt + self.responses[0], self.prompt + self.responses[1]


def read_pairs(rows: Iterable[Any]) -> list[Pair]:
    """Return the pair of each row in which one response is better; of a ranked group, its best and its worst response.

    Raises:
        DataError: A row is malformed (the message names it), or there is no such row.
    """
    rows = list(rows)
    data, pairs = read_preferences(rows), []
    for row, group in groupby(range(len(data.rows)), key=data.rows.tolist().__getitem__):
        comparisons = list(group)  # those of the best response come first, in the order of ranks
        best = int(data.better[comparisons[0]])
        last = max(number for number in comparisons if data.better[number] == best)
        if data.labels[last] <= 0.5:
            continue
        sides = (best, int(data.worse[last]))
        better, worse = (data.sequences[side] for side in sides)
        length = _prompt_length(rows[row], better)
        pairs.append(Pair(
            better[:length], (better[length:], worse[length:]), (data.names[sides[0]], data.names[sides[1]]),
            data.template_options[best], int(data.prompts[last]), float(data.weights[comparisons].sum()),
        ))  # fmt: skip
    if not pairs:
        raise DataError(f"expected rows in which one response is better, got none in {len(rows)} rows")
    return pairs


def change_text(pair: Pair, change: TextChange, seed: int) -> Pair:
    """Return a pair with the target of a change altered; the white space around the text stays."""
    worse = next(iter(_texts(pair.responses[1], "assistant")), "").strip()

    def edit(text: str) -> str:
        frame = _FRAME.fullmatch(text)
        before, core, after = frame.groups() if frame else ("", text, "")
        changed = change.apply(core, random=Random(_digest(seed, change.name, core)), worse=worse)
        return before + changed + after if changed else ""

    if change.target == "prompt":
        return replace(pair, prompt=_edit(pair.prompt, "user", edit)) if pair.prompt else pair
    better, worse_response = pair.responses
    if change.target == "better":
        return replace(pair, responses=(_edit(better, "assistant", edit), worse_response))
    return replace(pair, responses=(better, _edit(worse_response, "assistant", edit)))


def blank_prompt(pair: Pair) -> Pair:
    """Return a pair with an empty prompt; of a conversation, one empty user message."""
    if not pair.prompt:
        return pair
    return replace(pair, prompt="" if isinstance(pair.prompt, str) else [{"role": "user", "content": ""}])


def shuffle_prompts(pairs: list[Pair], seed: int) -> Callable[[Pair], Pair]:
    """Return a function that gives a pair another prompt: the next one of its form in an order that the seed decides.

    All pairs of one prompt get the same other prompt. A prompt that is the only one of its form stays.
    """
    others: dict[int, Any] = {}
    for form in (str, list):
        prompts = {pair.key: pair.prompt for pair in pairs if pair.prompt and isinstance(pair.prompt, form)}
        order = sorted(prompts, key=lambda key: _digest(seed, key))
        others |= {key: prompts[other] for key, other in zip(order, order[1:] + order[:1], strict=True)}
    return lambda pair: replace(pair, prompt=others.get(pair.key, pair.prompt))


def _prompt_length(row: Any, sequence: TextOrChat) -> int:
    """Return the number of leading characters or messages of a sequence that are the row's prompt; 0 without one."""
    prompt = prompt_of(row)
    if isinstance(sequence, str):
        stripped = 0 if row.get("prompt") else len(sequence) - len(sequence.lstrip())  # of an implicit prompt
        return stripped + len(prompt) if isinstance(prompt, str) else 0
    return len(prompt) if isinstance(prompt[0], dict) else 0


def _texts(part: Any, role: str) -> list[str]:
    """Return a text, or the last message of a role if it is text, as a list of at most one."""
    contents = [part] if isinstance(part, str) else [each.get("content") for each in part if each["role"] == role]
    return [content for content in contents[-1:] if isinstance(content, str)]


def _edit(part: Any, role: str, edit: Callable[[str], str]) -> Any:
    """Return a text, or messages whose last one of a role is text, with that text edited."""
    if isinstance(part, str) or not _texts(part, role):
        return edit(part) if isinstance(part, str) else part
    place = max(place for place, message in enumerate(part) if message["role"] == role)
    message = part[place] | {"content": edit(part[place]["content"])}
    return [*part[:place], message, *part[place + 1 :]]


def _digest(*parts: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())
