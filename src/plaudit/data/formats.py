"""The accepted row formats, and the one form that they are parsed into: `ParsedRow`.

A row is `{prompt?, chosen, rejected}`, all strings (standard) or all lists of messages (conversational), or a ranked
group `{prompt?, completions, ranks or scores}`. An ambiguous row raises a `DataError` that names the row and the
column. Files are read by `plaudit.data.file_formats`; rows in other layouts are converted first, by
`plaudit.data.published_layouts`.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from plaudit.data.annotations import malformed, parse_group_annotations, parse_pair_annotations
from plaudit.data.prompts import without_none
from plaudit.errors import DataError

__all__ = [
    "GROUP_COLUMNS",
    "PAIR_COLUMNS",
    "ParsedRow",
    "TEMPLATE_COLUMNS",
    "TextOrChat",
    "hint_about_token_ids",
    "join_responses",
    "parse_row",
    "read_sequence",
    "template_options",
]

Message = dict[str, Any]
TextOrChat = str | list[Message]  # one whole text, or one whole conversation

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
GROUP_COLUMNS = ("completions", "ranks")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")

_RESPONDING_ROLES = ("assistant", "tool")  # an agent that is stopped after a call ends with the tool's answer

_STANDARD = '{"prompt": "2+2?", "chosen": " 4.", "rejected": " 5."}'
_CONVERSATIONAL = (
    '{"prompt": [{"role": "user", "content": "2+2?"}], "chosen": [{"role": "assistant", "content": "4."}], '
    '"rejected": [{"role": "assistant", "content": "5."}]}'
)
_BOTH = f"{_STANDARD} or {_CONVERSATIONAL}"
_TOOLS = '[{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}]'
_GROUP = '{"prompt": "2+2?", "completions": [" 4.", " 5.", " Four."], "ranks": [0, 1, 0]}'


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A pair, or a ranked group: K whole sequences, prompt included, and the annotations of the row.

    Attributes:
        sequences: K texts, conversations or lists of token ids; of a pair, the chosen one first.
        columns: Their K names in error messages: "chosen" and "rejected", or "completions[0]" and so on.
        ranks: K numbers, 0 for the best; equal ranks tie. Of a pair, 0 and 1, or 0 and 0 where it is a tie.
        scores: K numbers, the highest for the best, if the group has them; then `ranks` are their dense ranks.
        weight: How many times the row counts.
        margin: By how much `chosen` should win, in reward units, if the pair has a margin.
        label: The probability that `chosen` is the better response, if the pair has a label.
        tie: The annotators called the responses of the pair equal.
        template_options: Keyword arguments for the chat template (`tools` and `chat_template_kwargs`).
    """

    sequences: list[Any]
    columns: list[str]
    ranks: list[float]
    scores: list[float] | None = None
    weight: float = 1.0
    margin: float | None = None
    label: float | None = None
    tie: bool = False
    template_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def pair(cls, columns: list[str], sequences: list[Any], row: dict[str, Any], index: int, **options: Any) -> Self:
        """Build the parsed row of a pair from its two sequences and the annotations in `row`.

        Raises:
            DataError: An annotation is malformed.
        """
        annotations = parse_pair_annotations(row, index)
        return cls(sequences, columns, [0.0, 0.0 if annotations["tie"] else 1.0], **annotations, **options)


def parse_row(row: dict[str, Any], index: int) -> ParsedRow:
    """Parse row `index` of a split, a pair or a ranked group.

    Raises:
        DataError: The row is malformed; the message names the row, the column, the expected shape and an example.
    """
    if "completions" in row and row.get("chosen") is None and row.get("rejected") is None:
        return _parse_group(row, index)
    if row.get("completions") is not None:
        raise DataError(
            f"row {index}: expected a pair ('chosen' and 'rejected') or a ranked group ('completions' with 'ranks' or "
            f"'scores'), but it has both. Examples of the right shape: {_STANDARD} or {_GROUP}"
        )
    columns = ["chosen", "rejected"]
    if missing := [column for column in columns if row.get(column) is None]:
        filled = sorted(name for name, value in row.items() if value is not None)
        raise DataError(
            f"row {index}: expected the columns 'chosen' and 'rejected', but {_listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing or empty; the row has values in {_listed(filled)}. "
            f"{hint_about_token_ids(row)}If other rows have them, complete or remove this one; else rename your "
            f"columns, or name a published layout with `dataset_format`. Examples of the right shape: {_BOTH}"
        )
    sequences, options = join_responses(row, {column: row[column] for column in columns}, index)
    return ParsedRow.pair(columns, sequences, row, index, template_options=options)


def hint_about_token_ids(row: Mapping[str, Any]) -> str:
    """Return a sentence for the error about a row that has token ids where text is needed, else an empty string."""
    names = [name for name, value in row.items() if str(name).endswith("_ids") and isinstance(value, list)]
    advice = "may be token ids, which only training takes: give the rows as they were before tokenising. "
    return f"{_listed(names)} {advice}" if names else ""


def _parse_group(row: dict[str, Any], index: int) -> ParsedRow:
    completions = row["completions"]
    if not isinstance(completions, list) or len(completions) < 2:
        raise malformed(f"row {index}, column 'completions'", "a list of two or more responses", completions, _GROUP)
    annotations = parse_group_annotations(row, index, len(completions))
    responses = {f"completions[{place}]": response for place, response in enumerate(completions)}
    sequences, options = join_responses(row, responses, index)
    return ParsedRow(sequences, list(responses), template_options=options, **annotations)


def join_responses(
    row: dict[str, Any], responses: dict[str, Any], index: int
) -> tuple[list[TextOrChat], dict[str, Any]]:
    """Put the prompt of row `index`, if it has one, before each of K responses, given by their names in error messages.

    Returns:
        The K whole sequences, and the keyword arguments of the row for the chat template: see `template_options`.

    Raises:
        DataError: A part is malformed, or the parts are not all texts or all lists of messages.
    """
    prompt = row.get("prompt")
    _check_same_kind(responses if prompt is None else {"prompt": prompt, **responses}, index)
    options = template_options(row, index)
    if isinstance(prompt, list):
        _check_messages(prompt, f"row {index}, column 'prompt'")
    columns = {f"row {index}, column '{name}'": response for name, response in responses.items()}
    return [_with_prompt(prompt, response, column) for column, response in columns.items()], options


def _check_same_kind(parts: dict[str, Any], index: int) -> None:
    """Raise unless all parts are texts or all are lists of messages: a mixture has no unambiguous form."""
    for name, part in parts.items():
        if not isinstance(part, str | list):
            raise malformed(f"row {index}, column '{name}'", "a string or a list of messages", part, _BOTH)
    if len({isinstance(part, str) for part in parts.values()}) > 1:
        kinds = {name: "a string" if isinstance(part, str) else "a list of messages" for name, part in parts.items()}
        listed = ", ".join(f"'{name}' is {kind}" for name, kind in kinds.items())
        raise DataError(
            f"row {index}: expected all of one kind, all strings or all lists of messages, but {listed}. "
            f"Examples of the right shape: {_BOTH}"
        )


def read_sequence(sequence: Any, name: str) -> TextOrChat:
    """Check a whole text or conversation, and return it in the form that parsed rows have.

    Raises:
        DataError: The sequence is neither, or a conversation that ends with the user; the message calls it `name`.
    """
    if not isinstance(sequence, str | list):
        expected = "a string or a list of messages"
        raise malformed(name, expected, sequence, '"2+2? 4." or [{"role": ..., "content": ...}, ...]')
    return _with_prompt(None, sequence, name)


def _with_prompt(prompt: Any, response: Any, where: str) -> TextOrChat:
    if isinstance(response, str):
        whole = (prompt or "") + response
        if not whole:
            raise malformed(where, "some text", whole, _STANDARD)
        return whole
    _check_messages(response, where)
    if response[-1]["role"] not in _RESPONDING_ROLES:
        expected = "the last message to be from the assistant or its tool, since the reward judges that message"
        raise malformed(where, expected, response[-1], _CONVERSATIONAL)
    # Arrow fills missing keys with `None`, and templates test for the presence of a key.
    return [
        {key: without_none(value) for key, value in message.items() if value is not None or key == "content"}
        for message in (prompt or []) + response
    ]


def _check_messages(messages: list[Any], where: str) -> None:
    if not messages:
        raise malformed(where, "at least one message", messages, _CONVERSATIONAL)
    for position, message in enumerate(messages):
        place = f"{where}, message {position}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise malformed(place, "a dict with 'role' and 'content'", message, _CONVERSATIONAL)
        if not _is_text(message):
            expected = "'content' to be text (rows with images or other media must be dropped)"
            raise malformed(place, expected, message["content"], _CONVERSATIONAL)


def _is_text(message: Message) -> bool:
    content = message["content"]
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))


def template_options(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Read the keyword arguments for the chat template from the columns `tools` and `chat_template_kwargs` of a row.

    Raises:
        DataError: One of the columns is malformed.
    """
    tools, options = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        with suppress(json.JSONDecodeError):  # a string that is no JSON is an error just below
            tools = json.loads(tools)
    if tools is not None and not isinstance(tools, list):
        raise malformed(f"row {index}, column 'tools'", "a list of tools or a JSON string of one", tools, _TOOLS)
    if options is not None and not isinstance(options, dict):
        raise malformed(f"row {index}, column 'chat_template_kwargs'", "a dict", options, '{"enable_thinking": false}')
    return ({"tools": without_none(tools)} if tools else {}) | (without_none(options) if options else {})


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no columns"
