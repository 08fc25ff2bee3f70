"""Rendering of texts and conversations to token ids: chat template, BOS and EOS.

Training, evaluation and scoring all call `render`, so a sequence has the same ids everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from plaudit.data.formats import TextOrChat
from plaudit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["render", "render_as_written"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_SAMPLE = "a text in a part of its own"


def render(
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[TextOrChat],
    options: Sequence[dict[str, Any]] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Turn whole texts and whole conversations into token ids, in one tokenizer call for each kind.

    A text is tokenised with the tokenizer's own special tokens, and one EOS is added at its end unless it is there. A
    conversation is written by the chat template, which writes its own special tokens. Neither starts with two BOS.

    Args:
        tokenizer: The model's tokenizer.
        sequences: N texts or conversations (lists of messages), in any mixture.
        options: N dicts of keyword arguments for the chat template; `None` for none.
        names: N names for error messages; by default the kind and index of each sequence.

    Returns:
        N lists of token ids.

    Raises:
        DataError: There is a conversation and the tokenizer has no chat template, the template refuses a conversation,
            or a text is broken Unicode.
    """
    ids: list[list[int]] = [[] for _ in sequences]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = [n for n, sequence in enumerate(sequences) if isinstance(sequence, str)]
    chats = [n for n, sequence in enumerate(sequences) if not isinstance(sequence, str)]
    called = names or [f"{'text' if isinstance(each, str) else 'conversation'} {n}" for n, each in enumerate(sequences)]
    if texts:
        encoded = _encode(tokenizer, [sequences[n] for n in texts], [called[n] for n in texts], add_special_tokens=True)
        for n, sequence_ids in zip(texts, encoded, strict=True):
            ids[n] = _with_one_eos(_with_one_bos(sequence_ids, bos), eos)
    if chats:
        conversations = _with_supported_content(tokenizer, [sequences[n] for n in chats])
        written = [
            _apply_chat_template(tokenizer, conversation, options[n] if options else {}, called[n])
            for n, conversation in zip(chats, conversations, strict=True)
        ]
        encoded = _encode(tokenizer, written, [called[n] for n in chats], add_special_tokens=False)
        for n, sequence_ids in zip(chats, encoded, strict=True):
            ids[n] = _with_one_bos(sequence_ids, bos)
    return ids


def render_as_written(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool
) -> list[list[int]]:
    """Turn whole texts into token ids as other servers do: no EOS is added that the tokenizer itself does not add.

    A text that a chat template has written may begin with BOS, and two BOS would change its reward: of several, one is
    kept.

    Args:
        tokenizer: The model's tokenizer.
        texts: N texts.
        add_special_tokens: Whether the tokenizer adds its own special tokens.

    Raises:
        DataError: A text is broken Unicode.
    """
    names = [f"text {number}" for number in range(len(texts))]
    encoded = _encode(tokenizer, list(texts), names, add_special_tokens=add_special_tokens)
    return [_with_one_bos(ids, tokenizer.bos_token_id) for ids in encoded]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[Any], names: list[str], *, add_special_tokens: bool
) -> list[list[int]]:
    options: dict[str, Any] = {"add_special_tokens": add_special_tokens, "return_attention_mask": False}
    try:
        # verbose=False: the warning about the maximum length would come before the overlong policy is applied.
        return tokenizer(texts, **options, verbose=False)["input_ids"]
    except (TypeError, UnicodeError):
        for text, name in zip(texts, names, strict=True):
            if half := _SURROGATE.search(text):
                raise DataError(
                    f"{name}: expected text, got half of a character ({half[0]!r}), which no tokenizer takes. It was "
                    f"cut in two, or written by a program that counts in UTF-16. Remove it, or write '?' for it."
                ) from None
        raise


def _apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: Any, options: dict[str, Any], name: str) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"{name}: it is a conversation, but the tokenizer has no chat template. Pass `chat_template_path` in "
            f"training (a tokenizer folder or id, or a Jinja file), set the `chat_template` of a tokenizer in memory, "
            f"or use plain text."
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (TemplateError, TypeError) as error:  # of a role that the template does not take, for example
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{name}: the tokenizer's chat template refuses it: {error} Its messages are from {roles}. Change the "
            f"rows, or name another template with `chat_template_path`."
        ) from error


def _with_supported_content(tokenizer: PreTrainedTokenizerBase, conversations: list[Any]) -> list[Any]:
    """Join the text parts of each message, unless the template writes text parts itself.

    Most templates of language models know strings only: they leave a list of parts out, or print it as Python would.
    """
    if not any(isinstance(message["content"], list) for messages in conversations for message in messages):
        return conversations
    sample = [{"role": "user", "content": [{"type": "text", "text": _SAMPLE}]}]
    with suppress(Exception):  # a template that fails does not take parts
        written = tokenizer.apply_chat_template(sample, tokenize=False)
        if _SAMPLE in written and "'type'" not in written and '"type"' not in written:
            return conversations

    def joined(content: Any) -> Any:
        return "".join(part.get("text") or "" for part in content) if isinstance(content, list) else content

    return [[message | {"content": joined(message["content"])} for message in messages] for messages in conversations]


def _with_one_bos(ids: list[int], bos: int | None) -> list[int]:
    # A text that was written by a template before may start with BOS, and the tokenizer adds its own.
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


def _with_one_eos(ids: list[int], eos: int | None) -> list[int]:
    if eos is None:  # the tokenizer of an encoder closes a text by itself
        return ids
    while ids[-2:] == [eos, eos]:
        ids = ids[:-1]
    if ids[-1:] != [eos]:
        ids.append(eos)
    return ids
