"""Items of a request to token ids: rendered as `RewardModel.score` renders, or as written, and cut where asked to."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from plaudit.data.formats import TextOrChat, read_sequence
from plaudit.data.render import render, render_as_written
from plaudit.data.truncation import cut_left
from plaudit.scoring.completions import join_completions
from plaudit.serving.scoring_request import Conversation, Item, Pair, Text, TokenIds
from plaudit.serving.serving_errors import ServingError

__all__ = ["ItemRenderer"]


class ItemRenderer:
    """Turns items into token ids for one model.

    Args:
        tokenizer: The model's tokenizer.
        trained_on: "texts", "conversations", or `None` where it is not known.
        max_length: The most tokens of a sequence; `None` for no limit.
        vocabulary_size: One more than the greatest token id that the model takes; `None` if any id will do.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        trained_on: str | None,
        max_length: int | None,
        vocabulary_size: int | None,
    ) -> None:
        self._tokenizer, self._trained_on = tokenizer, trained_on
        self._max_length, self._vocabulary_size = max_length, vocabulary_size

    def render(self, items: Sequence[Item], names: Sequence[str]) -> list[list[int]]:
        """Return the token ids of N items, not cut yet.

        Args:
            items: N items.
            names: The field of the body that each item came from, for errors.

        Raises:
            ServingError: An item cannot be rendered; the message names its field and quotes nothing.
        """
        try:
            return self._render(items, names)
        except ServingError:
            raise
        except Exception:  # templates are programs, and fail in ways of their own
            for item, name in zip(items, names, strict=True):
                try:
                    self._render([item], [name])
                except ServingError:
                    raise
                except Exception:
                    raise ServingError("invalid", f"{name}: {self._reason(item)}", param=name) from None
            raise

    def cut(
        self,
        ids: list[int],
        name: str,
        *,
        truncation: Literal["error", "left", "right"],
        max_length: int | None,
    ) -> NDArray[np.int64]:
        """Return the token ids of one item within the limit.

        A cut on the left keeps a BOS or CLS at the beginning, as `RewardModel.score` does.

        Args:
            ids: The token ids, one or more.
            name: The field of the body, for errors.
            truncation: The side to cut off, or "error".
            max_length: The most tokens that the request allows; `None` for the model's limit.

        Raises:
            ServingError: The sequence is too long, and truncation is "error"; or it has no tokens.
        """
        if not ids:
            raise ServingError("invalid", f"{name}: expected some text, got a sequence without tokens.", param=name)
        limit = min((each for each in (max_length, self._max_length) if each is not None), default=len(ids))
        if len(ids) <= limit:
            return np.asarray(ids, dtype=np.int64)
        if truncation == "error":
            raise ServingError(
                "too_long",
                f"{name}: the sequence has {len(ids):,} tokens, more than {limit:,}. Shorten it, or ask for "
                "truncation; a server that was started with --overlong truncate cuts by itself.",
                param=name,
            )
        if truncation == "right":
            return np.asarray(ids[:limit], dtype=np.int64)
        leading = (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id)
        return np.asarray(cut_left(ids, limit, leading), dtype=np.int64)

    def pieces(self, ids: NDArray[np.int64], positions: list[int]) -> list[str]:
        """Return the text that each prefix of a sequence adds to the one before it.

        A character whose bytes end in a later prefix belongs to that one.

        Args:
            ids: Token ids, shape [T].
            positions: Increasing lengths of prefixes.
        """
        pieces, start = [], 0
        for stop in positions:
            text = self._tokenizer.decode(ids[start:stop].tolist())
            is_cut = text.endswith("\ufffd") and stop < positions[-1] and stop - start < 8
            pieces.append("" if is_cut else text)
            start = start if is_cut else stop
        return pieces

    def _render(self, items: Sequence[Item], names: Sequence[str]) -> list[list[int]]:
        """Render items of one kind in one call of the tokenizer."""
        ids: list[list[int]] = [[] for _ in items]
        whole: dict[int, tuple[TextOrChat, dict[str, Any]]] = {}
        written: dict[str, list[int]] = {"added": [], "none": [], "exact": []}
        for number, (item, name) in enumerate(zip(items, names, strict=True)):
            if isinstance(item, TokenIds):
                ids[number] = self._checked_ids(item.ids, name)
            elif isinstance(item, Text) and self._is_as_written(item):
                written[item.special_tokens].append(number)
            else:
                whole[number] = self._whole(item, name)
        for kind, numbers in written.items():
            if numbers:
                texts = [item.text for item in (items[number] for number in numbers) if isinstance(item, Text)]
                made = render_as_written(self._tokenizer, texts, add_special_tokens=kind == "added")
                ids = _placed(ids, numbers, made)
        if whole:
            sequences, options = [each for each, _ in whole.values()], [each for _, each in whole.values()]
            ids = _placed(ids, list(whole), render(self._tokenizer, sequences, options))
        return ids

    def _whole(self, item: Item, name: str) -> tuple[TextOrChat, dict[str, Any]]:
        """Return the text or conversation that `RewardModel.score` would render, and the options of the template."""
        if isinstance(item, Text):
            return read_sequence(item.text, name), {}
        if isinstance(item, Conversation):
            return read_sequence(item.messages, name), item.template_kwargs
        assert isinstance(item, Pair)
        prompt, response = item.prompt, item.response
        if item.as_conversation and self._trained_on == "conversations" and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        (joined,) = join_completions([prompt], [response])
        return read_sequence(joined, name), item.template_kwargs

    def _checked_ids(self, ids: list[int], name: str) -> list[int]:
        size = self._vocabulary_size or 2**31
        if any(not 0 <= each < size for each in ids):
            raise ServingError("invalid", f"{name}: expected token ids from 0 to {size - 1}.", param=name)
        return ids

    def _is_as_written(self, item: Text) -> bool:
        """Return whether a text is tokenised by a peer's rules.

        A model that was trained on texts read the reward of each at the EOS that training put behind it. Its texts are
        rendered as in training in every dialect, unless the client asks for no special tokens.
        """
        return item.special_tokens == "exact" or (item.special_tokens != "rendered" and self._trained_on != "texts")

    def _reason(self, item: Item) -> str:
        """Return the reason why an item cannot be rendered, without a word of the item."""
        if isinstance(item, (Conversation, Pair)):
            messages = item.messages if isinstance(item, Conversation) else item.response
            is_chat = isinstance(messages, list) or (isinstance(item, Pair) and isinstance(item.prompt, list))
            if is_chat and not self._tokenizer.chat_template:
                return "it is a conversation, and the model has no chat template. Send text."
            if isinstance(messages, list) and messages and messages[-1].get("role") not in ("assistant", "tool"):
                return "expected the last message to be from the assistant or its tool: the reward judges that message."
            if is_chat:
                return (
                    "the chat template of the model refuses the conversation: its roles, their order or their content."
                )
        return "expected one or more characters of text."


def _placed(ids: list[list[int]], numbers: list[int], made: list[list[int]]) -> list[list[int]]:
    """Return the ids with new ones at the given places."""
    placed = list(ids)
    for number, own in zip(numbers, made, strict=True):
        placed[number] = own
    return placed
