"""Converters from the layouts in which preference data is published to Plaudit's own row formats.

Each converter is a pure function from one row to one row, and can be passed to `datasets.map`. The result is
conversational, so that a chat template applies, except for ranked rows that have Plaudit's format in text already. A
pair has an implicit prompt: `chosen` and `rejected` are the two whole chats. That one schema fits every row (published
pairs may diverge before their last turn), so datasets of different layouts can be mixed.

A converter whose layout has ties returns a boolean `tie` in every row; a tied pair keeps its published order.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from plaudit.data.annotations import shorten
from plaudit.data.rankings import dense_ranks
from plaudit.errors import DataError

__all__ = ["CONVERTERS", "arena", "helpsteer", "hh", "ranked", "split_transcript", "ultrafeedback"]

Row = Mapping[str, Any]
Message = dict[str, str]

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"(?:\A|\n)<extra_id_1>(User|Assistant)\n")
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
_SIDES = (("_1", "_2"), ("1", "2"), ("_a", "_b"))
_SIGNED = ("preference_strength", "overall_preference")
_SCORED = ("score", "helpfulness", "overall_score", "rating")
_BINARIZED_SCORES = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"))


def hh(row: Row) -> dict[str, Any]:
    r"""Convert a pair of Anthropic HH transcripts, `"\n\nHuman: … \n\nAssistant: …"`, to a pair of chats.

    Turns are stripped; an empty turn is kept, and so are two turns in a row by one speaker. Text before the first turn
    becomes a system message.

    Returns:
        `chosen` and `rejected`, each a list of messages that ends with the assistant's.

    Raises:
        DataError: A column is missing, has no turn, or does not end with a turn of the assistant.
    """
    chats = {side: _transcript(_need(row, "hh", side, str), side) for side in ("chosen", "rejected")}
    for side, chat in chats.items():
        if chat[-1]["role"] != "assistant":
            raise DataError(f'expected the last turn of "{side}" to be the assistant\'s, got {shorten(chat[-1])}')
    return chats


def _transcript(text: str, column: str) -> list[Message]:
    """Split a transcript into messages; text before the first turn becomes a system message."""
    chat = split_transcript(text)
    if not chat:
        raise DataError(f'expected a transcript of "Human:" and "Assistant:" in "{column}", got {shorten(text)}')
    return chat


def split_transcript(text: str) -> list[Message]:
    r"""Split a text at its `"Human:"` and `"Assistant:"` turns into messages; a text without one gives none.

    Example:
        >>> [message["role"] for message in split_transcript("\n\nHuman: hi\n\nAssistant: hello")]
        ['user', 'assistant']
    """
    preamble, *turns = _HH_TURN.split(text)
    chat = [_message(_ROLES[role], turn.strip()) for role, turn in zip(turns[::2], turns[1::2], strict=True)]
    return [_message("system", preamble.strip()), *chat] if preamble.strip() and chat else chat


def arena(row: Row) -> dict[str, Any]:
    """Convert a Chatbot Arena battle to a pair of chats.

    There are two published layouts: `prompt`, `response_a`, `response_b` (lists of turns, or JSON strings of them) with
    `winner_model_a`, `winner_model_b`, `winner_tie`; and `conversation_a`, `conversation_b` with `winner`. A null turn,
    where a model answered nothing, becomes an empty message. Half a surrogate pair, which Arrow cannot store, becomes
    U+FFFD.

    Returns:
        `chosen`, `rejected` and `tie` (of a tie, the chat of model a is `chosen`).

    Raises:
        DataError: A column is missing or malformed, or the row names no winner or several.
    """
    if row.get("conversation_a") is not None:
        first, second = (_messages(_need(row, "arena", f"conversation_{x}"), f"conversation_{x}") for x in "ab")
        return _pair(first, second, _winner_of_name(_need(row, "arena", "winner", str)))
    prompts = _turns(row, "prompt")
    first, second = (_interleave(prompts, _turns(row, f"response_{x}"), f"response_{x}") for x in "ab")
    return _pair(first, second, _winner_of_flags(row))


def _turns(row: Row, column: str) -> list[str]:
    """Return the turns of a battle from a list or a JSON string of one; a null turn is an empty one."""
    value = _need(row, "arena", column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f'expected a JSON list of turns in "{column}", got {shorten(value)}') from None
    if not isinstance(value, list) or not value or not all(isinstance(turn, str | None) for turn in value):
        raise DataError(f'expected a list of texts or nulls in "{column}", got {shorten(value)}')
    return [turn or "" for turn in value]


def _interleave(prompts: list[str], answers: list[str], column: str) -> list[Message]:
    if len(prompts) != len(answers):
        raise DataError(f'expected as many turns in "{column}" as in "prompt", got {len(answers)} and {len(prompts)}')
    pairs = zip(prompts, answers, strict=True)
    return [message for user, reply in pairs for message in (_message("user", user), _message("assistant", reply))]


def _winner_of_flags(row: Row) -> int:
    flags = {name: _number(_need(row, "arena", f"winner_{name}"), f"winner_{name}") for name in ("model_a", "model_b")}
    flags["tie"] = _number(row.get("winner_tie") or 0, "winner_tie")
    undecided = not any(flags.values()) and "winner_tie" not in row  # a tie, in a layout without that column
    if sorted(flags.values()) != [0, 0, 1] and not undecided:
        raise DataError(f"expected one of winner_model_a, winner_model_b and winner_tie to be 1, got {flags}")
    return int(flags["model_a"] - flags["model_b"])


def _winner_of_name(winner: str) -> int:
    verdict = {"model_a": 1, "model_b": -1}.get(winner, 0)
    if not verdict and not winner.startswith(("tie", "both")):  # "tie", "tie (bothbad)", "both_bad"
        raise DataError(f'expected "model_a", "model_b" or a tie in the column "winner", got {shorten(winner)}')
    return verdict


def ultrafeedback(row: Row) -> dict[str, Any]:
    """Convert a row of UltraFeedback, binarized or raw, to a pair of chats without a margin.

    Binarized: `chosen` and `rejected` are whole chats already, `prompt` repeats their first message and is dropped, and
    equal `score_chosen` and `score_rejected` are a tie. Raw: of `completions`, the best by `overall_score` against the
    worst. The scores make no margin: UltraFeedback is usually trained without one, and the raw scores are unreliable at
    the top (some critiques that give 1 were recorded as 10).

    Returns:
        `chosen`, `rejected` and `tie`.

    Raises:
        DataError: A column is missing or malformed, or fewer than two completions have a score.
    """
    if row.get("completions") is None and row.get("instruction") is None:
        chosen, rejected = (_messages(_need(row, "ultrafeedback", x), x) for x in ("chosen", "rejected"))
        return {"chosen": chosen, "rejected": rejected, "tie": _same_score(row)}
    chat = [_message("user", _need(row, "ultrafeedback", "instruction", str))]
    records = _records(_need(row, "ultrafeedback", "completions"), "completions")
    scored = [(_number(r["overall_score"], "overall_score"), r) for r in records if r.get("overall_score") is not None]
    if len(scored) < 2:
        raise DataError(f'expected two completions with an "overall_score" or more, got {len(scored)}; drop the row')
    scored.sort(key=lambda pair: -pair[0])  # stable: of equals, the first published is best and the last is worst
    (high, best), (low, worst) = scored[0], scored[-1]
    first, second = ([*chat, _message("assistant", _need(r, "ultrafeedback", "response", str))] for r in (best, worst))
    return _pair(first, second, high - low)


def _same_score(row: Row) -> bool:
    for columns in _BINARIZED_SCORES:
        scores = [row.get(column) for column in columns]
        if None not in scores:
            return _number(scores[0], columns[0]) == _number(scores[1], columns[1])
    return False


def helpsteer(row: Row) -> dict[str, Any]:
    """Convert a scored pair (HelpSteer2-Preference, HelpSteer3, and the like) to a pair of chats with a margin.

    The prompt is `prompt` (text or messages) or `context` (messages); HelpSteer's `<extra_id_1>` marks in a text
    separate turns. The responses are `response_1` and `response_2`, `response1` and `response2`, or `response_a` and
    `response_b`. They are compared by a signed preference (`preference_strength` or `overall_preference`: negative
    prefers the first, positive the second), or else by two scores, the higher better (`score`, `helpfulness`,
    `overall_score` or `rating`, with the suffixes of the responses).

    Returns:
        `chosen`, `rejected`, `margin` (the strength of the preference, at least 0) and `tie` (the margin is 0).

    Raises:
        DataError: The prompt, a response or the preference is missing or malformed.
    """
    prompt = row.get("context") if row.get("prompt") is None else row["prompt"]
    if prompt is None:
        raise _missing(row, "helpsteer", '"prompt" or "context"')
    chat = _messages(prompt, "prompt") if not isinstance(prompt, str) else _marked_chat(prompt)
    suffixes = next((s for s in _SIDES if row.get(f"response{s[0]}") is not None), _SIDES[0])
    answers = [_need(row, "helpsteer", f"response{suffix}", str) for suffix in suffixes]
    preference = _strength(row)
    first, second = ([*chat, _message("assistant", answer)] for answer in answers)
    return {**_pair(first, second, preference), "margin": abs(preference)}


def _marked_chat(text: str) -> list[Message]:
    opening, *turns = _HELPSTEER_TURN.split(text)
    chat = [_message(_ROLES[role], turn) for role, turn in zip(turns[::2], turns[1::2], strict=True)]
    return [_message("user", opening), *chat] if opening or not chat else chat


def _strength(row: Row) -> float:
    """Return by how much the first response is better; below 0 where the second is better."""
    for column in _SIGNED:
        if row.get(column) is not None:
            return 0.0 - _number(row[column], column)  # not -x, which makes -0.0 of a tie
    for stem in _SCORED:
        for suffixes in _SIDES:
            names = [stem + suffix for suffix in suffixes]
            if all(row.get(name) is not None for name in names):
                return _number(row[names[0]], names[0]) - _number(row[names[1]], names[1])
    raise _missing(row, "helpsteer", '"preference_strength" (or "overall_preference", or "score_1" and "score_2")')


def ranked(row: Row) -> dict[str, Any]:
    """Convert a published ranked list to a group of Plaudit's format, with dense ranks from 0, equal ranks tied.

    There are three layouts: Plaudit's (`prompt`, `completions` with `ranks`, left as text where they are text); Nectar
    (`prompt` as an HH transcript, `answers` of `answer` and `rank`); and `prompt` with `responses` and one of `ranks`,
    `rank` (lower is better) or `scores` (higher is better), in this order. The latter two become conversational.

    Returns:
        `prompt`, `completions`, `ranks` and `tie` (all responses are tied, so there is no comparison).

    Raises:
        DataError: A column is missing or malformed, or there are fewer than two responses.
    """
    prompt = _need(row, "ranked", "prompt")
    if row.get("answers") is not None:
        records = _records(row["answers"], "answers")
        answers, order = [r.get("answer") for r in records], [r.get("rank") for r in records]
        if isinstance(prompt, str) and _HH_TURN.search(prompt):
            prompt = _transcript(prompt, "prompt")
            prompt = prompt[:-1] if prompt[-1] == _message("assistant", "") else prompt  # the turn of the answers
    else:
        native = row.get("completions") is not None
        answers, order = _need(row, "ranked", "completions" if native else "responses", list), _order_of_responses(row)
        if native and isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
            return {"prompt": prompt, "completions": answers, **_ranks_and_tie(answers, order)}
    chat = [_message("user", prompt)] if isinstance(prompt, str) else _messages(prompt, "prompt")
    completions = [[_message("assistant", a)] if isinstance(a, str) else _messages(a, "completions") for a in answers]
    return {"prompt": chat, "completions": completions, **_ranks_and_tie(completions, order)}


def _order_of_responses(row: Row) -> list[Any]:
    for column in ("ranks", "rank", "scores"):
        if row.get(column) is not None:
            values = _need(row, "ranked", column, list)
            return [-_number(value, column) for value in values] if column == "scores" else values
    raise _missing(row, "ranked", '"ranks" (or "rank", or "scores")')


def _ranks_and_tie(completions: list[Any], order: list[Any]) -> dict[str, Any]:
    if len(completions) < 2 or len(completions) != len(order):
        raise DataError(
            f"expected at least two responses and a rank for each, got {len(completions)} responses, {len(order)} ranks"
        )
    ranks = dense_ranks([_number(value, "ranks") for value in order])
    return {"ranks": ranks, "tie": not any(ranks)}


CONVERTERS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "arena": arena,
    "helpsteer": helpsteer,
    "hh": hh,
    "ranked": ranked,
    "ultrafeedback": ultrafeedback,
}


def _missing(row: Row, layout: str, what: str) -> DataError:
    return DataError(
        f"the {layout!r} format needs the column {what}, but this row has {', '.join(map(str, row)) or 'no columns'}"
        f"; choose another format ({', '.join(sorted(CONVERTERS))}), or leave it out if the rows are native already"
    )


def _need(row: Row, layout: str, column: str, kind: type | None = None) -> Any:
    """Return the value of a column that must not be missing or null, and must be of a type if one is given."""
    value = row.get(column)
    if value is None and column in row:
        raise DataError(f'the {layout!r} format needs the column "{column}", but it is null here; drop or mend the row')
    if value is None:
        raise _missing(row, layout, f'"{column}"')
    if kind is not None and not isinstance(value, kind):
        raise DataError(
            f'the {layout!r} format needs a {kind.__name__} in the column "{column}", got a {type(value).__name__}'
            "; leave the format out if the rows are native already"
        )
    return value


def _message(role: str, content: str) -> Message:
    try:
        content.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which Arrow refuses; UTF-16 also joins two halves that meet
        content = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return {"role": role, "content": content}


def _messages(value: Any, column: str) -> list[Message]:
    """Reduce messages to role and content, so that the rows of all layouts share one schema."""
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f'expected a list of messages in the column "{column}", got {shorten(value)}')
    for message in value:
        fields = [message.get("role"), message.get("content")] if isinstance(message, Mapping) else []
        if not fields or not all(isinstance(field, str) for field in fields):
            raise DataError(f'expected messages with a text "role" and "content" in "{column}", got {shorten(message)}')
    return [_message(message["role"], message["content"]) for message in value]


def _records(value: Any, column: str) -> list[Row]:
    """Return a list of records, also where `datasets` returns it as one record of lists."""
    if isinstance(value, Mapping):
        value = [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(record, Mapping) for record in value):
        raise DataError(f'expected a list of records in the column "{column}", got {shorten(value)}')
    return value


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f'expected a finite number in "{column}", got {shorten(value)}; drop or mend the row')
    return number


def _pair(first: list[Message], second: list[Message], preference: float) -> dict[str, Any]:
    """Build a pair whose chosen side is the first if `preference` is not negative, else the second."""
    chosen, rejected = (second, first) if preference < 0 else (first, second)
    return {"chosen": chosen, "rejected": rejected, "tie": preference == 0}
