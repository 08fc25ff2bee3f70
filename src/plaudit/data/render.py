"""The only place where text meets a tokenizer: chat template, BOS, EOS and pad.

Training, evaluation and scoring all turn text into ids through `render`, so a sequence has one form everywhere.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plaudit.data.formats import TextOrChat
from plaudit.errors import DataError

__all__ = ["render"]

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

    A text is tokenised with the tokenizer's own special tokens and gets one EOS at its end unless it is there. A
    conversation is written by the chat template, which writes its own special tokens. Neither starts with two BOS.

    Args:
        tokenizer: The model's tokenizer.
        sequences: N texts or conversations (lists of messages), mixed at will.
        options: N dicts of keyword arguments for the chat template; `None` for none.
        names: What error messages call the sequences; their number here if `None`.

    Returns:
        N lists of token ids.

    Raises:
        DataError: There is a conversation and the tokenizer has no chat template, its template refuses it, or a text is
            broken Unicode.
    """
    ids: list[list[int]] = [[] for _ in sequences]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = [n for n, sequence in enumerate(sequences) if isinstance(sequence, str)]
    chats = [n for n, sequence in enumerate(sequences) if not isinstance(sequence, str)]
    called = names or [f"{'text' if isinstance(each, str) else 'conversation'} {n}" for n, each in enumerate(sequences)]
    if texts:
        encoded = _encode(tokenizer, [sequences[n] for n in texts], [called[n] for n in texts], add_special_tokens=True)
        for n, sequence_ids in zip(texts, encoded, strict=True):
            ids[n] = _one_eos(_one_bos(sequence_ids, bos), eos)
    if chats:
        conversations = _as_taken(tokenizer, [sequences[n] for n in chats])
        written = [
            _write_chat(tokenizer, conversation, options[n] if options else {}, called[n])
            for n, conversation in zip(chats, conversations, strict=True)
        ]
        encoded = _encode(tokenizer, written, [called[n] for n in chats], add_special_tokens=False)
        for n, sequence_ids in zip(chats, encoded, strict=True):
            ids[n] = _one_bos(sequence_ids, bos)
    return ids


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[Any], names: list[str], *, add_special_tokens: bool
) -> list[list[int]]:
    try:
        return _ids_of(tokenizer, texts, add_special_tokens=add_special_tokens)
    except (TypeError, UnicodeError):
        for text, name in zip(texts, names, strict=True):
            if half := _SURROGATE.search(text):
                raise DataError(
                    f"{name}: expected text, got half of a character ({half[0]!r}), which no tokenizer takes. It was "
                    f"cut in two, or written by a program that counts in UTF-16. Remove it, or write '?' for it."
                ) from None
        raise


def _ids_of(tokenizer: PreTrainedTokenizerBase, texts: list[Any], *, add_special_tokens: bool) -> list[list[int]]:
    # verbose=False: the "longer than the maximum length" remark would come before our own overlong policy acts.
    options: dict[str, Any] = {"add_special_tokens": add_special_tokens, "return_attention_mask": False}
    if not _is_plainly_fast(tokenizer):
        return tokenizer(texts, **options, verbose=False)["input_ids"]
    # The first text goes through transformers, which clears the truncation, padding and the like that an earlier call
    # left in the backend. The others go straight there: the same ids without their offsets, at four fifths of the cost.
    first = tokenizer(texts[:1], **options, verbose=False)["input_ids"]
    rest = tokenizer.backend_tokenizer.encode_batch_fast(texts[1:], add_special_tokens=add_special_tokens)
    return first + [encoding.ids for encoding in rest]


def _is_plainly_fast(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether its ids are those of its Rust backend, with nothing that a class of its own does before or after."""
    kind = type(tokenizer)
    return isinstance(tokenizer, PreTrainedTokenizerFast) and (
        (kind.__call__, kind._encode_plus) == (PreTrainedTokenizerFast.__call__, PreTrainedTokenizerFast._encode_plus)
    )


def _write_chat(tokenizer: PreTrainedTokenizerBase, messages: Any, options: dict[str, Any], name: str) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"{name}: it is a conversation, but the tokenizer has no chat template. Pass `chat_template_path` in "
            f"training (a tokenizer folder or id, or a Jinja file), set the `chat_template` of a tokenizer in memory, "
            f"or use plain text."
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (TemplateError, TypeError) as error:  # what a template says of roles it does not take, or fails at
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{name}: the tokenizer's chat template refuses it: {error} Its messages are from {roles}. Change the "
            f"rows, or name another template with `chat_template_path`."
        ) from error


def _as_taken(tokenizer: PreTrainedTokenizerBase, conversations: list[Any]) -> list[Any]:
    """Conversations with their text parts joined, unless the template writes parts itself.

    Most templates of language models know strings only: they leave a list of parts out, or print it as Python would.
    """
    if not any(isinstance(message["content"], list) for messages in conversations for message in messages):
        return conversations
    sample = [{"role": "user", "content": [{"type": "text", "text": _SAMPLE}]}]
    with suppress(Exception):  # whatever it trips over, it does not take parts
        written = tokenizer.apply_chat_template(sample, tokenize=False)
        if _SAMPLE in written and "'type'" not in written and '"type"' not in written:
            return conversations
    return [[message | {"content": _joined(message["content"])} for message in messages] for messages in conversations]


def _joined(content: Any) -> Any:
    return "".join(part.get("text") or "" for part in content) if isinstance(content, list) else content


def _one_bos(ids: list[int], bos: int | None) -> list[int]:
    # A text that a template rendered before it came here already starts with BOS, and the tokenizer adds its own.
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


def _one_eos(ids: list[int], eos: int | None) -> list[int]:
    if eos is None:  # encoders: the tokenizer closes a text by itself
        return ids
    while ids[-2:] == [eos, eos]:
        ids = ids[:-1]
    if ids[-1:] != [eos]:
        ids.append(eos)
    return ids
