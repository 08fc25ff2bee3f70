"""From a prompt and a completion to the one text or conversation that is scored."""

from typing import Any

from plaudit.data.formats import Sequence
from plaudit.errors import DataError

__all__ = ["whole_sequence"]


def whole_sequence(prompt: Any, completion: Any, number: int) -> Sequence:
    """Join a prompt and its completion, each a string or a list of messages.

    Two strings are one text, two lists one conversation. A string beside messages is a message: a prompt the user's, a
    completion the assistant's.

    Args:
        prompt: A string or a list of messages.
        completion: The same; TRL hands both over in either form.
        number: What error messages call the pair.

    Raises:
        DataError: One is neither.
    """
    for name, part in (("prompt", prompt), ("completion", completion)):
        if not isinstance(part, (str, list)):
            raise DataError(f"row {number}: expected the {name} to be a string or a list of messages, got {part!r:.80}")
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return [*prompt, *completion]
