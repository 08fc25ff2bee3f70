"""From what a caller hands over to the whole texts and conversations that are scored."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plaudit.data.formats import Sequence
from plaudit.errors import DataError

__all__ = ["in_one_form", "joined"]


def joined(sequences: Iterable[Any], completions: Iterable[Any] | None) -> Iterator[Any]:
    """The sequences themselves, or each prompt with its completion as one, read as they are asked for.

    Raises:
        DataError: It is a single one, or a table; or, on the way, there are not as many completions as prompts.
    """
    if isinstance(sequences, str) or (isinstance(sequences, list) and sequences and isinstance(sequences[0], dict)):
        if completions is not None:
            raise DataError(
                "expected as many prompts as completions, got a single prompt. For one prompt with several "
                "completions: rank(prompt, completions), or score([prompt] * len(completions), completions)."
            )
        if not isinstance(sequences, str) and "role" not in sequences[0]:
            raise DataError(
                f"row 0: expected a text or a conversation, got a dict with {', '.join(map(repr, sequences[0]))}. "
                "Of rows with prompt and completion: score([row['prompt'] for ...], [row['completion'] for ...])."
            )
        raise DataError("expected a list of texts or of conversations, got a single one. Wrap it: score([...]).")
    for given in (sequences, completions):
        if given is not None and not isinstance(given, Iterable):
            raise DataError(f"expected a list of texts or of conversations, got {given!r:.80}.")
    if isinstance(completions, str):
        raise DataError(f"expected a list of completions, got a single one: {completions!r:.80}. Wrap it in a list.")
    for given in (sequences, completions):  # each would be read as the names of its columns
        if isinstance(given, Mapping) or hasattr(given, "columns"):
            kind = type(given).__name__
            raise DataError(f"expected a list of texts or of conversations, got a {kind}. Pass one of its columns.")
    if completions is None:
        return iter(sequences)
    return _pairs(sequences, completions)


def _pairs(prompts: Iterable[Any], completions: Iterable[Any]) -> Iterator[Any]:
    pairs = zip(prompts, completions, strict=True)
    number = 0
    while True:
        try:
            pair = next(pairs)
        except StopIteration:
            return
        except ValueError as error:  # zip's own words tell no number
            raise DataError(
                f"expected a completion for each prompt; one of the two ends after {number}, and the other goes on."
            ) from error
        yield _whole_sequence(*pair, number)
        number += 1


def _whole_sequence(prompt: Any, completion: Any, number: int) -> Sequence:
    """Join a prompt and its completion; two strings are one text, else both are messages.

    Raises:
        DataError: One is neither a string nor a list; the message calls them row `number`.
    """
    for name, part in (("prompt", prompt), ("completion", completion)):
        if not isinstance(part, (str, list)):
            raise DataError(f"row {number}: expected the {name} to be a string or a list of messages, got {part!r:.80}")
    prompt, (completion,) = in_one_form(prompt, [completion])
    return prompt + completion


def in_one_form(prompt: Any, responses: list[Any]) -> tuple[Any, list[Any]]:
    """A prompt and its responses, all strings or all messages, as samplers and trainers hand them over in either form.

    A string beside messages is a message: the prompt the user's, a response the assistant's.
    """
    if not any(isinstance(part, list) for part in (prompt, *responses)):
        return prompt, responses
    return _as_messages(prompt, "user"), [_as_messages(response, "assistant") for response in responses]


def _as_messages(part: Any, role: str) -> Any:
    return [{"role": role, "content": part}] if isinstance(part, str) else part
