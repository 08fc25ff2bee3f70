"""Reward models as the functions that RL trainers call, alone or beside plain Python."""

import functools
import inspect
import logging
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.data.formats import TEMPLATE_COLUMNS, template_options
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.scoring.reward_model import RewardModel

__all__ = ["RewardFunction", "combine"]

logger = logging.getLogger(__name__)


class RewardFunction:
    """A reward model as TRL's GRPO and RLOO, and trainers like them, call it.

    What it returns is `clipped(normalized(reward)) - length_penalty * characters`, each part where it was asked for.

    Args:
        path_or_model: A folder or hub id, as for `RewardModel.from_pretrained`, or a `RewardModel`. A path is loaded
            at the first call, and pickles as a path: each worker loads its own, on its own device. A model pickles
            whole.
        normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        clip: The most that a reward may be away from 0, or its least and its greatest value.
        length_penalty: What each character of a completion costs; in a list of messages those of the assistant's.
            Characters and not tokens, since a policy and its reward model may count tokens differently.
        name: What trainers log it as; the last part of the path if `None`.

    Raises:
        ConfigError: An option cannot work, or it is neither a path nor a `RewardModel`.
    """

    def __init__(
        self,
        path_or_model: str | Path | RewardModel,
        *,
        normalize: bool = False,
        clip: float | tuple[float, float] | None = None,
        length_penalty: float | None = None,
        name: str | None = None,
    ) -> None:
        self._path, self._model = None, None
        if isinstance(path_or_model, RewardModel):
            self._model = path_or_model
            source = path_or_model.name
        elif isinstance(path_or_model, (str, Path)):
            source = self._path = _absolute(path_or_model)
        else:
            raise ConfigError(
                f"path_or_model: expected a folder, a hub id or a RewardModel, got a {type(path_or_model).__name__}. "
                f"For a model in memory: RewardModel(model, tokenizer)."
            )
        self.normalize, self.bounds = normalize, _bounds(clip)
        a_number = isinstance(length_penalty, Real) and length_penalty >= 0 and math.isfinite(length_penalty)
        if length_penalty is not None and not a_number:
            raise ConfigError(f"length_penalty: expected a number of 0 or more, got {length_penalty!r}.")
        self.length_penalty = length_penalty
        self.__name__ = name or Path(source).name or "reward_model"

    @property
    def reward_model(self) -> RewardModel:
        """The model; a path is loaded now if it was not yet."""
        if self._model is None:
            assert self._path is not None
            self._model = RewardModel.from_pretrained(self._path)
        return self._model

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Rewards of N completions, in the order given.

        Args:
            prompts: N strings or lists of messages; a prompt that comes more than once runs once.
            completions: N strings or lists of messages, each of the prompt in its place.
            **columns: What else trainers hand over. Of the dataset's columns, lists of N, `tools` and
                `chat_template_kwargs` go to the chat template, as in training.

        Raises:
            DataError: A prompt or completion is malformed, or there are not as many of both.
            ConfigError: `normalize`, and the model was saved without a scale.
            ModelError: A reward is not finite; TRL would take it for a row that is not to be scored.
        """
        options = [template_options(row, number) for number, row in enumerate(_rows_of(columns, len(completions)))]
        rewards = self.reward_model.score(prompts, completions, options, normalize=self.normalize).astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(rewards))
        if len(wrong):
            raise ModelError(
                f"{self.__name__}: expected finite rewards, but that of completion {wrong[0]} is {rewards[wrong[0]]}. "
                f"Look at the model (`plaudit verify`), or load it in float32."
            )
        if self.bounds is not None:
            rewards = rewards.clip(*self.bounds)
        if self.length_penalty:
            rewards -= self.length_penalty * np.array([_characters(each) for each in completions])
        return rewards.tolist()

    def __getstate__(self) -> dict[str, Any]:
        if self._path is not None:
            return self.__dict__ | {"_model": None}
        try:
            return self.__dict__ | {"_model": pickle.dumps(self._model)}
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ModelError(
                f"{self.__name__}: its model cannot be pickled for another process ({error}). Save it and pass the "
                f"folder: each worker then loads its own."
            ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._model, bytes):
            self._model = pickle.loads(self._model)

    def __repr__(self) -> str:
        return f"RewardFunction({self._path or self._model!r}, name={self.__name__!r})"


def combine(parts: Mapping[Any, float], *, name: str = "combined") -> Callable[..., list[float]]:
    """One reward function that is the weighted sum of several, and that logs each of them.

    The mean of each part goes to the trainer's log as `rewards/<part>/mean`, unweighted, and the rewards of each into
    its table of completions, where the trainer hands over TRL's `log_metric` and `log_extra`; else the means go to
    Python's log, at level INFO.

    Args:
        parts: Weights by reward function: any callable of TRL's kind, `(prompts, completions, **columns)` to one number
            a completion, or what `RewardFunction` takes. It pickles if its parts do.
        name: What trainers log the sum as.

    Raises:
        ConfigError: There are no parts, two are called the same, one is asynchronous, or a weight is not finite.
    """
    return _Combined(parts, name)


class _Combined:
    def __init__(self, parts: Mapping[Any, float], name: str) -> None:
        if not isinstance(parts, Mapping):
            raise ConfigError(f"combine: expected weights by reward function, {{function: 1.0}}, got {parts!r:.80}.")
        self.__name__ = name
        self.parts = [part if callable(part) else RewardFunction(part) for part in parts]
        self.names = [_name_of(part) for part in self.parts]
        self.weights = [float(weight) for weight in parts.values()]
        if not parts:
            raise ConfigError("combine: expected one or more reward functions with their weights, got none.")
        for part, called, weight in zip(self.parts, self.names, self.weights, strict=True):
            if not math.isfinite(weight):
                raise ConfigError(f"combine: expected a finite weight for {called!r}, got {weight}.")
            if self.names.count(called) > 1:
                raise ConfigError(f"combine: two parts are called {called!r}, and are logged by their names. Name one.")
            if any(map(inspect.iscoroutinefunction, (part, part.__call__))):
                raise ConfigError(f"combine: {called!r} is asynchronous. Pass it to the trainer beside the others.")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        rewards = [
            _checked(part(prompts=prompts, completions=completions, **columns), called, len(completions))
            for part, called in zip(self.parts, self.names, strict=True)
        ]
        self._log(rewards, columns)
        return (np.array(self.weights) @ np.array(rewards)).tolist()

    def _log(self, rewards: list[list[float]], columns: dict[str, Any]) -> None:
        log_metric, log_extra = columns.get("log_metric"), columns.get("log_extra")
        for called, values in zip(self.names, rewards, strict=True):
            mean = float(np.mean(values)) if values else math.nan
            if log_metric is None:
                logger.info("%s: %s %.4f", self.__name__, called, mean)
            elif values:
                log_metric(f"rewards/{called}/mean", mean)
            if log_extra is not None:
                log_extra(called, values)


def _checked(rewards: Any, called: str, count: int) -> list[float]:
    if inspect.isawaitable(rewards):
        if inspect.iscoroutine(rewards):
            rewards.close()  # else Python warns that nobody awaited it
        raise ConfigError(f"combine: {called!r} is asynchronous. Pass it to the trainer beside the others.")
    try:
        rewards = list(rewards)
        values = [math.nan if each is None else float(each) for each in rewards]
    except (TypeError, ValueError) as error:
        raise DataError(f"{called}: expected a list of {count} numbers, got {rewards!r:.80} ({error}).") from error
    if len(values) != count:
        raise DataError(f"{called}: expected {count} rewards, one for each completion, got {len(values)}.")
    for number, value in enumerate(values):
        if not math.isfinite(value):
            raise DataError(
                f"{called}: expected a finite reward, but that of completion {number} is {rewards[number]}. In a "
                f"combination every part judges every completion: return 0.0 where it has nothing to say."
            )
    return values


def _name_of(function: Any) -> str:
    """As TRL names it."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _rows_of(columns: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """What the columns that concern the chat template say of each row."""
    here = {name: columns[name] for name in TEMPLATE_COLUMNS if columns.get(name) is not None}
    for name, values in here.items():
        if not isinstance(values, list) or len(values) != count:
            raise DataError(
                f"column '{name}': expected a list of {count} values, one for each completion, got {values!r:.80}"
            )
    for number in range(count):
        yield {name: values[number] for name, values in here.items()}


def _absolute(path: str | Path) -> str:
    """A folder by its whole path, since a worker may run elsewhere; a hub id as it is."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if str(path).startswith((".", "/", "~")):  # a trainer would find out after its first generation
        raise ConfigError(f"path_or_model: there is no folder {str(path)!r}.")
    return str(path)


def _bounds(clip: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if clip is None:
        return None
    try:
        low, high = clip if isinstance(clip, (tuple, list)) else (-clip, clip)
        right = low < high
    except (TypeError, ValueError):
        right = False
    if not right:
        raise ConfigError(f"clip: expected a number above 0, or a least and a greatest reward, got {clip!r}.")
    return float(low), float(high)


def _characters(completion: Any) -> int:
    if isinstance(completion, str):
        return len(completion)
    return sum(_text_length(message["content"]) for message in completion if message["role"] == "assistant")


def _text_length(content: Any) -> int:
    return len(content) if isinstance(content, str) else sum(len(part.get("text") or "") for part in content or [])
