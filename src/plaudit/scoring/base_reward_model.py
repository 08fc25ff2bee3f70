"""The methods that every reward model has, whether the model runs in this process or behind a server."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from plaudit.data.formats import TextOrChat
from plaudit.errors import DataError
from plaudit.scoring.completions import join_completions

__all__ = ["BaseRewardModel", "ChunkScoring", "Ranked", "ScoredSequences"]

logger = logging.getLogger(__name__)

_ADVICE = {
    "conversations": 'Give lists of messages; a prompt as [{"role": "user", "content": "..."}].',
    "texts": "Give strings.",
}


@dataclass(frozen=True)
class Ranked:
    """One of several completions of a prompt, with its reward.

    Attributes:
        index: Index among the completions given.
        completion: The completion as it was given.
        reward: The raw reward.
        win_probability: The probability that people prefer this completion to all the others: the softmax of the
            rewards (Plackett-Luce); for two completions, the sigmoid of the difference.
    """

    index: int
    completion: Any
    reward: float
    win_probability: float


class ScoredSequences(NamedTuple):
    """The rewards of N sequences, and their lengths as the model saw them."""

    rewards: NDArray[np.float32]  # [N]
    tokens: NDArray[np.int64]  # [N], after truncation
    truncated: NDArray[np.bool_]  # [N]


# Scores a chunk of sequences with their options and names, and calls the last argument with the number of sequences
# that were scored as they are.
ChunkScoring = Callable[
    [list[TextOrChat], list[dict[str, Any]] | None, list[str], Callable[[int], object]], ScoredSequences
]


class BaseRewardModel(ABC):
    """A reward model as its users call it; a subclass scores the chunks.

    Attributes:
        name: Where the model comes from.
        chunk_size: How many sequences are read and rendered together.
        max_length: The most tokens of a sequence, if that is known here.
        trained_on: "texts" or "conversations", if that is known here.
        truncated: How many sequences have been truncated so far.
    """

    name: str
    chunk_size = 4096
    max_length: int | None = None
    trained_on: str | None = None
    truncated = 0
    _has_warned_of_form = False

    @abstractmethod
    def begin_call(self, normalize: bool) -> ChunkScoring:
        """Return a function that scores the chunks of one call of `score` or `stream`, in their order.

        Args:
            normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        """

    @abstractmethod
    def _saved_temperature(self) -> float:
        """Return the temperature that was saved with the model, or raise a `ConfigError`."""

    @overload
    def score(
        self,
        sequences: Iterable[Any],
        completions: Iterable[Any] | None = ...,
        options: Iterable[dict[str, Any]] | None = ...,
        *,
        names: Iterable[str] | None = ...,
        normalize: bool = ...,
        return_details: Literal[False] = ...,
    ) -> NDArray[np.float32]: ...

    @overload
    def score(
        self,
        sequences: Iterable[Any],
        completions: Iterable[Any] | None = ...,
        options: Iterable[dict[str, Any]] | None = ...,
        *,
        names: Iterable[str] | None = ...,
        normalize: bool = ...,
        return_details: Literal[True],
    ) -> ScoredSequences: ...

    def score(
        self,
        sequences: Iterable[Any],
        completions: Iterable[Any] | None = None,
        options: Iterable[dict[str, Any]] | None = None,
        *,
        names: Iterable[str] | None = None,
        normalize: bool = False,
        return_details: bool = False,
    ) -> NDArray[np.float32] | ScoredSequences:
        """Return the rewards [N] of N sequences, float32, in the order given.

        The same sequence gets the same reward alone, in any batch and in any order, up to rounding (1e-6 of the
        rewards' size in float32).

        Args:
            sequences: N texts (prompt and response joined) or conversations (lists of messages), mixed at will; or,
                with `completions`, their prompts. Generators are read in chunks.
            completions: N completions, one for each prompt; strings or messages.
            options: N dicts of keyword arguments for the chat template (`tools`, say), if any.
            names: N names for error messages; "row 3" and the like if `None`.
            normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
            return_details: Return the numbers of tokens and which sequences were truncated beside the rewards.

        Raises:
            DataError: `sequences` is a single text or conversation, a sequence is malformed or refused by the chat
                template, or there are not as many completions as prompts.
            ConfigError: `normalize` is set, and the model was saved without a scale.
        """
        chunks = list(self._score_chunks(sequences, completions, options, names, normalize))
        columns = [list(column) for column in zip(*chunks, strict=True)] or [[], [], []]
        joined = zip(columns, (np.float32, np.int64, np.bool_), strict=True)
        details = ScoredSequences(*(np.concatenate(parts) if parts else np.zeros(0, dtype) for parts, dtype in joined))
        return details if return_details else details.rewards

    def stream(
        self, sequences: Iterable[Any], completions: Iterable[Any] | None = None, *, normalize: bool = False
    ) -> Iterator[float]:
        """Yield the rewards of `score` one by one while the sequences are still being read, in constant memory."""
        for scored in self._score_chunks(sequences, completions, None, None, normalize):
            yield from scored.rewards.tolist()

    def rank(self, prompt: Any, completions: Iterable[Any], *, calibrated: bool = False) -> list[Ranked]:
        """Rank the completions of one prompt, best first; equal rewards keep the order given. The prompt runs once.

        Args:
            prompt: The prompt, a string or messages.
            completions: The completions, strings or messages.
            calibrated: Divide the rewards by the saved temperature for `win_probability`; `reward` stays raw.

        Raises:
            ConfigError: `calibrated` is set, and the model was saved without a temperature.
        """
        temperature = self._saved_temperature() if calibrated else 1.0
        completions = completions if isinstance(completions, str) else list(completions)  # `score` refuses a string
        rewards = self.score([prompt] * len(completions), completions)
        shares = np.exp((rewards - rewards.max(initial=-np.inf)) / temperature, dtype=np.float64)
        shares = shares / shares.sum()
        order = np.argsort(-rewards, kind="stable").tolist()
        return [Ranked(n, completions[n], float(rewards[n]), float(shares[n])) for n in order]

    def best_of(self, prompt: Any, completions: Iterable[Any]) -> Any:
        """Return the completion with the greatest reward; of equal ones the first.

        Raises:
            DataError: The list of completions is empty.
        """
        ranked = self.rank(prompt, completions)
        if not ranked:
            raise DataError("best_of: expected one or more completions, got none")
        return ranked[0].completion

    def preference_probability(self, prompt: Any, first: Any, second: Any, *, calibrated: bool = False) -> float:
        """Return the probability that people prefer the first completion: `sigmoid(reward_first - reward_second)`.

        With `calibrated`, the difference is divided by the temperature that was saved with the model.

        Raises:
            ConfigError: `calibrated` is set, and the model was saved without a temperature.
        """
        temperature = self._saved_temperature() if calibrated else 1.0
        one, other = self.score([prompt, prompt], [first, second]).astype(np.float64) / temperature
        return float(np.exp(-np.logaddexp(0.0, other - one)))  # does not overflow, however far apart they are

    def _warn_of_other_form(
        self, sequences: list[TextOrChat], names: list[str], is_rendered: Callable[[int], object]
    ) -> None:
        """Warn once where a text is scored by a model of conversations, or the other way round.

        Args:
            sequences: Texts and conversations.
            names: Their names for the warning.
            is_rendered: Says whether the text at an index is a conversation that a template has rendered already.
        """
        if self.trained_on not in _ADVICE or self._has_warned_of_form:
            return
        for index, sequence in enumerate(sequences):
            form = "texts" if isinstance(sequence, str) else "conversations"
            if form == self.trained_on or (form == "texts" and is_rendered(index)):
                continue
            logger.warning(
                "%s is a %s, and the model was trained on %s: its reward means little. %s", names[index],
                form.removesuffix("s"), self.trained_on, _ADVICE[self.trained_on],
            )  # fmt: skip
            self._has_warned_of_form = True
            return

    def _score_chunks(
        self, sequences: Iterable[Any], completions: Iterable[Any] | None, options: Any, names: Any, normalize: bool
    ) -> Iterator[ScoredSequences]:
        """Yield the rewards of `chunk_size` sequences at a time."""
        score_chunk = self.begin_call(normalize)
        total = len(sequences) if isinstance(sequences, Sized) else None
        texts = join_completions(sequences, completions)
        options = None if options is None else iter(options)
        names = (f"row {number}" for number in count()) if names is None else iter(names)
        truncated, done = 0, 0
        with tqdm(total=total, unit="seq", desc="scoring", delay=3, disable=None, leave=False) as bar:
            while chunk := list(islice(texts, self.chunk_size)):
                chunk_options = None if options is None else _take(options, len(chunk), "options", done)
                chunk_names = _take(names, len(chunk), "names", done)
                done += len(chunk)
                scored = score_chunk(chunk, chunk_options, chunk_names, bar.update)
                truncated += int(scored.truncated.sum())
                yield scored
        if truncated:
            what = f"more than {self.max_length} tokens" if self.max_length else "more tokens than the model takes"
            logger.warning("%d of %d sequences had %s and were truncated from the left", truncated, done, what)


def _take(iterator: Iterator[Any], number: int, name: str, before: int) -> list[Any]:
    """Take the next `number` items of an argument that must have one for each sequence."""
    items = list(islice(iterator, number))
    if len(items) < number:
        raise DataError(f"{name}: expected one for each sequence, and there are only {before + len(items)}.")
    return items
