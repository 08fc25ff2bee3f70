"""Prompts and completions, as a caller hands them over, joined into the sequences that are scored."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from plaudit.data.formats import TextOrChat
from plaudit.errors import DataError

__all__ = ["align_forms", "count_characters", "join_completions"]


def join_completions(sequences: Iterable[Any], completions: Iterable[Any] | None) -> Iterator[TextOrChat]:
    """Yield the sequences themselves, or each prompt joined with its completion, reading as they are asked for.

    Args:
        sequences: N whole texts or conversations; with `completions`, N prompts.
        completions: N completions, if any.

    Raises:
        DataError: An argument is a single text or conversation, or a table; or, while iterating, a part is neither a
            string nor a list, or there are not as many completions as prompts.
    """
    for given in (sequences, completions):
        if given is not None and not isinstance(given, Iterable):
            raise DataError(f"expected a list of texts or of conversations, got {given!r:.80}.")
        if isinstance(given, Mapping) or hasattr(given, "columns"):  # iterating one yields the names of its columns
            kind = type(given).__name__
            raise DataError(f"expected a list of texts or of conversations, got a {kind}. Pass one of its columns.")
    if isinstance(completions, str):
        raise DataError(f"expected a list of completions, got a single one: {completions!r:.80}. Wrap it in a list.")
    if _is_single(sequences) and completions is not None:
        raise DataError(
            "expected as many prompts as completions, got a single prompt. For one prompt with several completions: "
            "rank(prompt, completions), or score([prompt] * len(completions), completions)."
        )
    if _is_single(sequences):
        raise DataError("expected a list of texts or of conversations, got a single one. Wrap it: score([...]).")
    return iter(sequences) if completions is None else _joined_pairs(sequences, completions)


def align_forms(prompt: Any, responses: list[Any]) -> tuple[Any, list[Any]]:
    """Return a prompt and its responses as all strings or all lists of messages.

    Samplers and trainers mix the two forms. A string beside messages becomes a message: the prompt the user's, a
    response the assistant's.
    """
    if not any(isinstance(part, list) for part in (prompt, *responses)):
        return prompt, responses
    return _as_messages(prompt, "user"), [_as_messages(response, "assistant") for response in responses]


def count_characters(sequence: TextOrChat) -> int:
    """Return the length in characters of a text, or of the contents of all messages of a conversation."""
    if isinstance(sequence, str):
        return len(sequence)
    contents = [message["content"] or "" for message in sequence]
    parts = [[part.get("text") or "" for part in each] if isinstance(each, list) else [each] for each in contents]
    return sum(len(text) for texts in parts for text in texts)


def _is_single(sequences: Any) -> bool:
    first = sequences[0] if isinstance(sequences, list) and sequences else None
    return isinstance(sequences, str) or (isinstance(first, dict) and "role" in first)


def _joined_pairs(prompts: Iterable[Any], completions: Iterable[Any]) -> Iterator[TextOrChat]:
    missing = object()
    for number, pair in enumerate(zip_longest(prompts, completions, fillvalue=missing)):
        if pair[0] is missing or pair[1] is missing:
            raise DataError(
                f"expected a completion for each prompt; one of the two ends after {number}, and the other goes on."
            )
        for name, part in zip(("prompt", "completion"), pair, strict=True):
            if not isinstance(part, (str, list)):
                raise DataError(
                    f"row {number}: expected the {name} to be a string or a list of messages, got {part!r:.80}"
                )
        prompt, (completion,) = align_forms(pair[0], [pair[1]])
        yield prompt + completion


def _as_messages(part: Any, role: str) -> Any:
    return [{"role": role, "content": part}] if isinstance(part, str) else part
