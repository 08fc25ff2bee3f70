"""Special tokens and chat template of a tokenizer, settled before a run: EOS, pad, and the tokens of the template."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit.errors import ConfigError
from plaudit.hub import reads_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["choose_pad_token", "set_chat_template", "set_eos_token"]

logger = logging.getLogger(__name__)

# Parts of the names that publishers give to reserved ids: Llama's "<|finetune_right_pad_id|>" and
# "<|reserved_special_token_0|>", Gemma's "<unused0>", T5's "<extra_id_0>", Mistral's "[control_8]".
_SPARE_NAMES = ("pad", "reserved", "unused", "extra", "control", "placeholder", "dummy")
_NEW_PAD = "<|pad|>"


def set_eos_token(tokenizer: PreTrainedTokenizerBase, eos_token: str) -> None:
    """Set the EOS token, which closes a text.

    Raises:
        ConfigError: `eos_token` is not in the vocabulary.
    """
    _require_in_vocabulary(tokenizer, eos_token, "eos_token")
    tokenizer.eos_token = eos_token


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, pad_token: str | None = None) -> None:
    """Give the tokenizer a pad token that is not its EOS.

    Plain transformers reads a sequence's reward at its last token that is not the pad, so a pad that equals EOS reads
    the wrong token. The choice is, in this order: the given `pad_token`; the tokenizer's own; an unused special token;
    a new token in a spare row of the embedding; a new token that needs a new row (then `tokenizer.pad_token_id >=
    embedding_rows`, and the caller grows the embedding or refuses).

    Args:
        tokenizer: Changed in place.
        embedding_rows: Rows of the model's input embedding.
        pad_token: The token that the user asked for, if any.

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
    # A pad that the template writes could end a conversation, and plain transformers would skip it as padding.
    written = own is not None and tokenizer.pad_token in str(tokenizer.chat_template or "")
    if own is not None and own < embedding_rows and own != tokenizer.eos_token_id and not written:
        return
    spare = _unused_special_token(tokenizer, embedding_rows)
    if spare is None:
        from transformers import AddedToken

        spare = _NEW_PAD
        tokenizer.add_special_tokens({"pad_token": AddedToken(spare, special=True, normalized=False)})
    tokenizer.pad_token = spare
    logger.info("padding with %r (id %d), which is not EOS", spare, tokenizer.pad_token_id)


def _unused_special_token(tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> str | None:
    """Return the first special token with a reserved name that has no role and that the template does not write."""
    roles = {token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    template = str(tokenizer.chat_template or "")
    spare = [
        token.content
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token_id < embedding_rows and token.content not in roles and token.content not in template
    ]
    return next((token for name in _SPARE_NAMES for token in spare if name in token.lower()), None)


@reads_hub("path")
def set_chat_template(tokenizer: PreTrainedTokenizerBase, path: str, *, trust_remote_code: bool = False) -> None:
    """Set the chat template of a tokenizer to that of a Jinja file, or of another tokenizer (a folder or a hub id).

    The special tokens of the other tokenizer are added, and its EOS becomes the EOS.

    Raises:
        ConfigError: No file or tokenizer of that name can be loaded, or the tokenizer has no chat template.
    """
    from transformers import AutoTokenizer

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
