"""The methods that every reward model has, whether the model runs in this process or behind a server."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from plaudit.data.formats import TextOrChat
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.completions import join_completions
from plaudit.uncertainty import Uncertainty, check_aggregate, checked_uncertainty

__all__ = ["BaseRewardModel", "ChunkScoring", "Ranked", "ScoredSequences", "join_scored"]

logger = logging.getLogger(__name__)

_ARRAYS = ("rewards", "tokens", "truncated", "columns")
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
        reward: The raw reward, or the aggregate that was asked for.
        win_probability: The probability that people prefer this completion to all the others: the softmax of the
            rewards (Plackett-Luce); for two completions, the sigmoid of the difference.
        reward_std: The standard deviation of `reward`, in its unit, of a model that says how sure it is; else `None`.
    """

    index: int
    completion: Any
    reward: float
    win_probability: float
    reward_std: float | None = None


class ScoredSequences(NamedTuple):
    """The rewards of N sequences, their lengths as the model saw them, and what the model says of its uncertainty."""

    rewards: NDArray[np.float32]  # [N]; raw, normalised, or a conservative aggregate
    tokens: NDArray[np.int64]  # [N], after truncation
    truncated: NDArray[np.bool_]  # [N]
    columns: NDArray[np.float32]  # [N, C], raw; `uncertainty` reads those after the first
    uncertainty: Uncertainty | None = None  # that of the weights that gave the columns
    unit: float = 1.0  # the unit of `rewards`, in raw rewards

    def aggregate(self, how: str, k: float = 1.0) -> "ScoredSequences":
        """Return the same sequences with an aggregate as their rewards, as in `BaseRewardModel.score`."""
        if how == "mean":
            return self
        assert self.uncertainty is not None
        rewards = self.uncertainty.aggregate(self.columns, how, k)
        return self._replace(rewards=rewards, unit=self.uncertainty.reward_std)

    def take(self, places: Any) -> "ScoredSequences":
        """Return the sequences at these indices or in this slice."""
        return self._replace(**{name: getattr(self, name)[places] for name in _ARRAYS})

    @property
    def has_stds(self) -> bool:
        """True where the model gives each reward a measured standard deviation."""
        return self.uncertainty is not None and self.uncertainty.is_measured

    def stds(self) -> NDArray[np.float32]:
        """Return the standard deviation of each reward [N], in the unit of `rewards`."""
        assert self.uncertainty is not None
        return self.uncertainty.std(self.columns) / np.float32(self.unit)


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
        uncertainty: How to read the columns of a model that says how sure its rewards are; `None` for other models.
    """

    name: str
    chunk_size = 4096
    max_length: int | None = None
    trained_on: str | None = None
    truncated = 0
    uncertainty: Uncertainty | None = None
    _has_warned_of_form = False

    @abstractmethod
    def begin_call(self, normalize: bool) -> ChunkScoring:
        """Return a function that scores the chunks of one call of `score` or `stream`, in their order.

        Args:
            normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        """

    def begin_call_with_uncertainty(self, normalize: bool) -> tuple[Uncertainty | None, ChunkScoring]:
        """Return the uncertainty of the model, and a function as of `begin_call`, whose results have its columns.

        Args:
            normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        """
        return self.uncertainty, self.begin_call(normalize)

    @abstractmethod
    def _saved_temperature(self) -> float:
        """Return the temperature that was saved with the model, or raise a `ConfigError`."""

    def score(
        self,
        sequences: Iterable[Any],
        completions: Iterable[Any] | None = None,
        options: Iterable[dict[str, Any]] | None = None,
        *,
        names: Iterable[str] | None = None,
        normalize: bool = False,
        aggregate: str = "mean",
        k: float = 1.0,
        return_details: bool = False,
        return_members: bool = False,
        return_std: bool = False,
    ) -> Any:
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
            aggregate: "mean", or for a model with an uncertainty a conservative reward: "min", "mean-std" or
                "mean-var", in standard deviations of the rewards (`plaudit.uncertainty`).
            k: The weight of the standard deviation or variance in a conservative reward.
            return_details: Return a `ScoredSequences`, with the numbers of tokens, which sequences were truncated, and
                the columns of a model with an uncertainty.
            return_members: Return the raw rewards of the members of an ensemble, float32 [N, K], and nothing else.
            return_std: Return two arrays, the rewards [N] and their standard deviations [N], in the unit of these
                rewards: raw ones, multiples of the saved standard deviation with `normalize`, or standard deviations of
                the rewards beside a conservative reward.

        Raises:
            DataError: `sequences` is a single text or conversation, a sequence is malformed or refused by the chat
                template, or there are not as many completions as prompts.
            ConfigError: `normalize` is set, and the model was saved without a scale; or members, standard deviations or
                a conservative reward are asked of a model without an uncertainty; or two options exclude each other.
        """
        check_aggregate(aggregate, k, normalize=normalize)
        if return_details + return_members + return_std > 1:
            raise ConfigError("return_details, return_members, return_std: expected at most one of them.")
        needed_by = "return_members" if return_members else "return_std" if return_std else None
        needs_columns = return_details or aggregate != "mean" or needed_by is not None
        uncertainty, score_chunk = (
            self.begin_call_with_uncertainty(normalize) if needs_columns else (None, self.begin_call(normalize))
        )
        checked_uncertainty(uncertainty, self.name, aggregate, k, needed_by=needed_by, wants_std=return_std)
        chunks = list(self._score_chunks(score_chunk, sequences, completions, options, names))
        scored = join_scored(chunks, uncertainty).aggregate(aggregate, k)
        if return_members and uncertainty is not None:
            return uncertainty.members(scored.columns)
        if return_std:
            return scored.rewards, scored.stds()
        return scored if return_details else scored.rewards

    def stream(
        self, sequences: Iterable[Any], completions: Iterable[Any] | None = None, *, normalize: bool = False
    ) -> Iterator[float]:
        """Yield the rewards of `score` one by one while the sequences are still being read, in constant memory."""
        for scored in self._score_chunks(self.begin_call(normalize), sequences, completions):
            yield from scored.rewards.tolist()

    def rank(
        self,
        prompt: Any,
        completions: Iterable[Any],
        *,
        calibrated: bool = False,
        aggregate: str = "mean",
        k: float = 1.0,
    ) -> list[Ranked]:
        """Rank the completions of one prompt, best first; equal rewards keep the order given. The prompt runs once.

        Args:
            prompt: The prompt, a string or messages.
            completions: The completions, strings or messages.
            calibrated: Divide the rewards by the saved temperature for `win_probability`; `reward` stays raw.
            aggregate: The reward to rank by, as in `score`. Probabilities are those of the raw rewards.
            k: The weight of the standard deviation or variance in a conservative reward.

        Raises:
            ConfigError: `calibrated` is set, and the model was saved without a temperature; or a conservative reward is
                asked of a single model.
        """
        temperature = self._saved_temperature() if calibrated else 1.0
        completions = completions if isinstance(completions, str) else list(completions)  # `score` refuses a string
        prompts = [prompt] * len(completions)
        scored = self.score(prompts, completions, aggregate=aggregate, k=k, return_details=True)
        rewards, raw = scored.rewards, scored.columns[:, 0]
        shares = np.exp((raw - raw.max(initial=-np.inf)) / temperature, dtype=np.float64)
        shares = shares / shares.sum()
        stds: list[Any] = [None] * len(raw)
        if scored.has_stds:
            stds = scored.stds().tolist()
        order = np.argsort(-rewards, kind="stable").tolist()
        return [Ranked(n, completions[n], float(rewards[n]), float(shares[n]), stds[n]) for n in order]

    def best_of(self, prompt: Any, completions: Iterable[Any], *, aggregate: str = "mean", k: float = 1.0) -> Any:
        """Return the completion with the greatest reward, or the greatest `aggregate`; of equal ones the first.

        Raises:
            DataError: The list of completions is empty.
            ConfigError: A conservative reward is asked of a single model.
        """
        ranked = self.rank(prompt, completions, aggregate=aggregate, k=k)
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
        self,
        score_chunk: ChunkScoring,
        sequences: Iterable[Any],
        completions: Iterable[Any] | None,
        options: Any = None,
        names: Any = None,
    ) -> Iterator[ScoredSequences]:
        """Yield the rewards of `chunk_size` sequences at a time."""
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


def join_scored(chunks: list[ScoredSequences], uncertainty: Uncertainty | None = None) -> ScoredSequences:
    """Join the results of chunks of one call; of no chunks, into empty arrays with the columns of this uncertainty."""
    nothing = np.zeros((0, 1 if uncertainty is None else uncertainty.num_columns), np.float32)
    empty = ScoredSequences(nothing[:, 0], np.zeros(0, np.int64), np.zeros(0, np.bool_), nothing, uncertainty)
    chunks = chunks or [empty]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in chunks]) for name in _ARRAYS}
    return chunks[0]._replace(**arrays)


def _take(iterator: Iterator[Any], number: int, name: str, before: int) -> list[Any]:
    """Take the next `number` items of an argument that must have one for each sequence."""
    items = list(islice(iterator, number))
    if len(items) < number:
        raise DataError(f"{name}: expected one for each sequence, and there are only {before + len(items)}.")
    return items
