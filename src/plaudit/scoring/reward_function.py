"""Reward models as the functions that RL trainers call, alone or combined with other reward functions."""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.data.formats import TEMPLATE_COLUMNS, template_options
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.scoring.base_reward_model import BaseRewardModel
from plaudit.scoring.completions import count_characters
from plaudit.scoring.remote_model import RemoteRewardModel
from plaudit.scoring.reward_model import RewardModel
from plaudit.scoring.server_connection import is_server_url
from plaudit.uncertainty import check_aggregate, checked_uncertainty

__all__ = ["RewardFunction", "combine"]

logger = logging.getLogger(__name__)


class RewardFunction:
    """A reward model with the signature that TRL's GRPO and RLOO, and trainers like them, call.

    It returns `clip(normalize(reward)) - length_penalty * characters`, each part only if its option is set. A
    conservative `aggregate` is in standard deviations of the rewards, and so are its `clip` and `length_penalty`.

    Args:
        path_or_model: A folder or hub id, as for `RewardModel.from_pretrained`; the address of a `plaudit serve`, such
            as "http://127.0.0.1:8000"; or a `RewardModel` or `RemoteRewardModel`. A path is loaded at the first call
            and pickled as a path, so each worker process loads a model of its own on its own device. A `RewardModel` is
            pickled with its weights. A server is asked at the first call, and each process connects by itself.
        key: Key for the server; that of the environment variable PLAUDIT_API_KEY if `None`. A key that is given is
            pickled with the function.
        normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        aggregate: "mean", or for a model with an uncertainty "min", "mean-std" or "mean-var", as in
            `RewardModel.score`. A conservative aggregate has its own unit, so that it excludes `normalize`.
        k: The weight of the standard deviation or variance in a conservative aggregate.
        clip: The greatest distance of a reward from 0, or the least and the greatest reward.
        length_penalty: Reward that each character of a completion costs; in a list of messages, each character of the
            assistant's. Characters are counted and not tokens, since a policy and its reward model may have different
            tokenizers.
        name: The name under which trainers log the rewards; the last part of the path or address by default.

    Raises:
        ConfigError: An option has no such value, `path_or_model` is neither a path nor a reward model, or a
            `RewardModel` without an uncertainty is to give a conservative aggregate. For a path or a server the first
            call finds that out.
    """

    def __init__(
        self,
        path_or_model: str | Path | BaseRewardModel,
        *,
        key: str | None = None,
        normalize: bool = False,
        aggregate: str = "mean",
        k: float = 1.0,
        clip: float | tuple[float, float] | None = None,
        length_penalty: float | None = None,
        name: str | None = None,
    ) -> None:
        self._path: str | None = None
        self._model: BaseRewardModel | None = None
        if key is not None and not is_server_url(path_or_model):
            raise ConfigError(f"key: expected the address of a server with it, got {path_or_model!r:.80}.")
        if isinstance(path_or_model, str) and is_server_url(path_or_model):
            path_or_model = RemoteRewardModel(path_or_model, key=key)
        if isinstance(path_or_model, BaseRewardModel):
            self._model = path_or_model
            source = path_or_model.name
        elif isinstance(path_or_model, (str, Path)):
            source = self._path = _absolute(path_or_model)
        else:
            raise ConfigError(
                f"path_or_model: expected a folder, a hub id or a RewardModel, got a {type(path_or_model).__name__}. "
                f"For a model in memory: RewardModel(model, tokenizer)."
            )
        check_aggregate(aggregate, k, normalize=normalize)
        self.aggregate, self.k = aggregate, k
        if self._model is not None and not isinstance(self._model, RemoteRewardModel):
            self._check_uncertainty(self._model)
        self.normalize, self.bounds = normalize, _bounds(clip)
        if length_penalty is not None and not (isinstance(length_penalty, Real) and 0 <= length_penalty < math.inf):
            raise ConfigError(f"length_penalty: expected a number of 0 or more, got {length_penalty!r}.")
        self.length_penalty = length_penalty
        self.__name__ = name or Path(source).name or "reward_model"

    @property
    def reward_model(self) -> BaseRewardModel:
        """The reward model; a path is loaded at the first use."""
        if self._model is None:
            assert self._path is not None
            loaded = RewardModel.from_pretrained(self._path)
            self._check_uncertainty(loaded)
            self._model = loaded
        return self._model

    def _check_uncertainty(self, model: BaseRewardModel) -> None:
        """Refuse a conservative aggregate of a single model before a trainer generates anything."""
        checked_uncertainty(model.uncertainty, model.name, self.aggregate, self.k)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the rewards of N completions, in their order.

        Args:
            prompts: N strings or lists of messages; a prompt that occurs several times runs once.
            completions: N strings or lists of messages, each the completion of the prompt at its index.
            **columns: Other arguments of the trainer. The dataset's columns `tools` and `chat_template_kwargs`, lists
                of N, go to the chat template as in training; all others are ignored.

        Raises:
            DataError: A prompt or completion is malformed, or their numbers differ.
            ConfigError: `normalize` is set, and the model was saved without mean and standard deviation; or a
                conservative aggregate is asked of a single model.
            ModelError: A reward is not finite; TRL would leave such a completion out.
            ServerError: A server does not answer in time.
        """
        options = _template_options(columns, len(completions))
        rewards = self.reward_model.score(
            prompts, completions, options, normalize=self.normalize, aggregate=self.aggregate, k=self.k
        ).astype(np.float64)
        invalid = np.flatnonzero(~np.isfinite(rewards))
        if len(invalid):
            raise ModelError(
                f"{self.__name__}: expected finite rewards, but that of completion {invalid[0]} is "
                f"{rewards[invalid[0]]}. Check the model with `plaudit verify`, or load it in float32."
            )
        if self.bounds is not None:
            rewards = rewards.clip(*self.bounds)
        if self.length_penalty:
            rewards -= self.length_penalty * np.array([_characters(each) for each in completions])
        return rewards.tolist()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({} if self._path is None else {"_model": None})

    def __repr__(self) -> str:
        return f"RewardFunction({self._path or self._model!r}, name={self.__name__!r})"


def combine(parts: Mapping[Any, float], *, name: str = "combined") -> Callable[..., list[float]]:
    """Return a reward function that is the weighted sum of several, and that logs each of them.

    If the trainer passes TRL's `log_metric` and `log_extra`, the unweighted mean of each part is logged as
    `rewards/<part>/mean`, and the rewards of each part in the table of completions; otherwise the means go to Python's
    log at level INFO.

    Args:
        parts: Weights by reward function. A function is any callable with TRL's signature, `(prompts, completions,
            **columns) -> list of one number for each completion`, or an argument for `RewardFunction`. The sum can be
            pickled if its parts can.
        name: The name under which trainers log the sum.

    Raises:
        ConfigError: There are no parts, two have the same name, or a weight is not finite.
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
        for part_name, weight in zip(self.names, self.weights, strict=True):
            if not math.isfinite(weight):
                raise ConfigError(f"combine: expected a finite weight for {part_name!r}, got {weight}.")
            if self.names.count(part_name) > 1:
                raise ConfigError(
                    f"combine: two parts are called {part_name!r}, and parts are logged by name. Give one another name."
                )

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        rewards = [
            _checked(part(prompts=prompts, completions=completions, **columns), part_name, len(completions))
            for part, part_name in zip(self.parts, self.names, strict=True)
        ]
        self._log(rewards, columns)
        return (np.array(self.weights) @ np.array(rewards)).tolist()

    def _log(self, rewards: list[list[float]], columns: dict[str, Any]) -> None:
        log_metric, log_extra = columns.get("log_metric"), columns.get("log_extra")
        for part_name, values in zip(self.names, rewards, strict=True):
            mean = float(np.mean(values)) if values else math.nan
            if log_metric is None:
                logger.info("%s: %s %.4f", self.__name__, part_name, mean)
            elif values:
                log_metric(f"rewards/{part_name}/mean", mean)
            if log_extra is not None:
                log_extra(part_name, values)


def _checked(rewards: Any, part_name: str, count: int) -> list[float]:
    try:
        rewards = list(rewards)
        values = [math.nan if each is None else float(each) for each in rewards]
    except (TypeError, ValueError) as error:
        raise DataError(f"{part_name}: expected a list of {count} numbers, got {rewards!r:.80} ({error}).") from error
    if len(values) != count:
        raise DataError(f"{part_name}: expected {count} rewards, one for each completion, got {len(values)}.")
    for number, value in enumerate(values):
        if not math.isfinite(value):
            raise DataError(
                f"{part_name}: expected a finite reward, but that of completion {number} is {rewards[number]}. In a "
                f"combination every part rewards every completion: return 0.0 for one that the part does not judge."
            )
    return values


def _name_of(function: Any) -> str:
    """Return the name of a reward function as TRL finds it."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _template_options(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return for each completion the keyword arguments of the chat template that the trainer's columns hold."""
    here = {name: columns[name] for name in TEMPLATE_COLUMNS if columns.get(name) is not None}
    for name, values in here.items():
        if not isinstance(values, list) or len(values) != count:
            raise DataError(
                f"column '{name}': expected a list of {count} values, one for each completion, got {values!r:.80}"
            )
    return [template_options({name: here[name][number] for name in here}, number) for number in range(count)]


def _absolute(path: str | Path) -> str:
    """Return the absolute path of a folder, since a worker may run in another one; return a hub id as it is."""
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
        is_range = low < high
    except (TypeError, ValueError):
        is_range = False
    if not is_range:
        raise ConfigError(f"clip: expected a number above 0, or a least and a greatest reward, got {clip!r}.")
    return float(low), float(high)


def _characters(completion: Any) -> int:
    if isinstance(completion, list):
        completion = [message for message in completion if message["role"] == "assistant"]
    return count_characters(completion)
