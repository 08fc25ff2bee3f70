"""The only place where text meets a tokenizer: chat template, BOS, EOS and pad.

Training, evaluation and scoring all turn text into ids through `render`, so a sequence has one form everywhere.
"""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plaudit.data.formats import TextOrChat
from plaudit.errors import ConfigError, DataError

__all__ = ["choose_pad_token", "render", "set_chat_template", "set_eos_token"]

logger = logging.getLogger(__name__)

# How publishers name the ids that they keep for later: Llama's "<|finetune_right_pad_id|>" and
# "<|reserved_special_token_0|>", Gemma's "<unused0>", T5's "<extra_id_0>", Mistral's "[control_8]".
_SPARE_NAMES = ("pad", "reserved", "unused", "extra", "control", "placeholder", "dummy")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SAMPLE = "a text in a part of its own"
_NEW_PAD = "<|pad|>"


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


def set_eos_token(tokenizer: PreTrainedTokenizerBase, eos_token: str) -> None:
    """Make `eos_token` the token that closes a text.

    Raises:
        ConfigError: It is not in the vocabulary.
    """
    _require_in_vocabulary(tokenizer, eos_token, "eos_token")
    tokenizer.eos_token = eos_token


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, pad_token: str | None = None) -> None:
    """Give the tokenizer a pad token that is not its EOS.

    Plain transformers finds a sequence's reward at its last token that is not the pad, so a pad that equals EOS reads
    the wrong token. In this order: the `pad_token` asked for; the tokenizer's own; an unused special token; a new token
    in a spare row of the embedding; a new token that needs a new row (then `tokenizer.pad_token_id >= embedding_rows`,
    and the caller grows the embedding or refuses).

    Args:
        tokenizer: Changed in place.
        embedding_rows: Rows of the model's input embedding.
        pad_token: What the user asked for, if anything.

    Raises:
        ConfigError: `pad_token` is not in the vocabulary.
    """
    if pad_token is not None:
        _require_in_vocabulary(tokenizer, pad_token, "pad_token")
        tokenizer.pad_token = pad_token
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            logger.warning(
                "pad_token=%r is also the EOS token. Plaudit reads rewards by position and is not misled, but plain "
                "transformers will read the token before EOS. Choose another, or leave `pad_token` unset.",
                pad_token,
            )
        return
    own = tokenizer.pad_token_id
    # One that the template writes could end a conversation, and plain transformers would take it for padding.
    written = own is not None and tokenizer.pad_token in str(tokenizer.chat_template or "")
    if own is not None and own < embedding_rows and own != tokenizer.eos_token_id and not written:
        return
    spare = _unused_special_token(tokenizer, embedding_rows)
    if spare is None:
        spare = _NEW_PAD
        tokenizer.add_special_tokens({"pad_token": AddedToken(spare, special=True, normalized=False)})
    tokenizer.pad_token = spare
    logger.info("padding with %r (id %d), which is not EOS", spare, tokenizer.pad_token_id)


def _unused_special_token(tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> str | None:
    """The first special token that its publisher set aside, that has no role and that no template writes."""
    roles = {token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    template = str(tokenizer.chat_template or "")
    spare = [
        token.content
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token_id < embedding_rows and token.content not in roles and token.content not in template
    ]
    named = [[token for token in spare if name in token.lower()] for name in _SPARE_NAMES]
    return next((tokens[0] for tokens in named if tokens), None)


def set_chat_template(tokenizer: PreTrainedTokenizerBase, path: str, *, trust_remote_code: bool = False) -> None:
    """Use the chat template of a Jinja file, or that of another tokenizer together with its special tokens and EOS.

    Args:
        tokenizer: Changed in place; it may grow by the tokens that the other tokenizer's template writes.
        path: A Jinja file, a tokenizer folder, or a hub id.
        trust_remote_code: Allow a tokenizer that ships its own code.

    Raises:
        ConfigError: Nothing of that name can be loaded, or the other tokenizer has no chat template.
    """
    if Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        return
    if path.endswith((".jinja", ".j2")):
        raise ConfigError(f"chat_template_path={path!r}: there is no such file.")
    try:
        source = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template_path={path!r}: expected a Jinja file, a tokenizer folder or a hub id, but no tokenizer "
            f"could be loaded from it ({str(error).splitlines()[0]})."
        ) from error
    if not source.chat_template:
        raise ConfigError(f"chat_template_path={path!r}: that tokenizer has no chat template.")
    tokenizer.chat_template = source.get_chat_template()
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in source.added_tokens_decoder.values() if token.content not in known])
    if source.eos_token is not None:
        tokenizer.eos_token = source.eos_token


def _require_in_vocabulary(tokenizer: PreTrainedTokenizerBase, token: str, option: str) -> None:
    if token not in tokenizer.get_vocab():
        raise ConfigError(
            f"The specified `{option}` ('{token}') is not found in the vocabulary of the given `processing_class` "
            f"({type(tokenizer).__name__}). Choose a token that exists there, or leave `{option}` unset."
        )
