"""Plaudit's own API: rewards of items, ranks of responses, and the reward of each prefix.

A field that the API does not know is an error, so that a misspelt option is never ignored.
"""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from plaudit.serving.dialects.dialect import Body, Dialect, Endpoint, Information, template_kwargs
from plaudit.serving.dialects.vllm import list_models
from plaudit.serving.scoring_request import Conversation, Item, Pair, Scored, ScoringRequest, ServerInfo, Text, TokenIds
from plaudit.serving.serving_errors import ServingError
from plaudit.uncertainty import Aggregate

__all__ = ["NATIVE"]

_FORMS = ({"prompt", "response"}, {"messages"}, {"text"}, {"ids"})


class _Strict(Body):
    model_config = ConfigDict(extra="forbid")


class _Message(Body):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None


_Messages = Annotated[list[_Message], Field(min_length=1, fail_fast=True)]
_Part = str | _Messages


class _Item(_Strict):
    prompt: _Part | None = None
    response: _Part | None = None
    messages: _Messages | None = None
    text: str | None = None
    ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_form(self) -> "_Item":
        if self.model_fields_set not in _FORMS:
            raise PydanticCustomError("unsupported", "expected one of: prompt and response; messages; text; ids")
        if any(getattr(self, name) is None for name in self.model_fields_set):
            raise PydanticCustomError("unsupported", "expected a value, got null")
        return self

    def item(self, options: dict[str, Any]) -> Item:
        """Return the item in the words of no dialect."""
        if self.text is not None:
            return Text(self.text)
        if self.ids is not None:
            return TokenIds(self.ids)
        if self.messages is not None:
            return Conversation(_dumped(self.messages), options)
        return Pair(_dumped(self.prompt), _dumped(self.response), options)


class _Options(_Strict):
    model: str | None = None
    truncation: Literal["error", "left"] | None = None
    template_kwargs: dict[str, Any] = Field(default_factory=dict)


class _Aggregated(_Options):
    aggregate: Aggregate = "mean"
    k: Annotated[float, Field(ge=0)] = 1.0


class _Rewards(_Aggregated):
    items: Annotated[list[_Item], Field(min_length=1, fail_fast=True)]
    normalize: bool = False
    calibrated: bool = False
    members: bool = False
    columns: bool = False


class _Rank(_Aggregated):
    prompt: _Part
    responses: Annotated[list[_Part], Field(min_length=1, fail_fast=True)]
    calibrated: bool = False
    top_n: Annotated[int, Field(ge=1)] | None = None


class _PrefixRewards(_Options):
    item: _Item
    every: Annotated[int, Field(ge=1)] = 1


def _read_rewards(body: _Rewards) -> ScoringRequest:
    if body.calibrated and body.aggregate != "mean":
        message = "calibrated: a conservative aggregate has its own unit, which no temperature fits. Leave it out."
        raise ServingError("invalid", message, param="calibrated")
    options = template_kwargs(body.template_kwargs, param="template_kwargs")
    return ScoringRequest(
        items=[each.item(options) for each in body.items],
        names=[f"items[{number}]" for number in range(len(body.items))],
        model=body.model,
        normalize=body.normalize,
        calibrated=body.calibrated,
        truncation=body.truncation,
        aggregate=body.aggregate,
        k=body.k,
        members=body.members,
        columns=body.columns,
    )


def _read_rank(body: _Rank) -> ScoringRequest:
    options = template_kwargs(body.template_kwargs, param="template_kwargs")
    prompt = _dumped(body.prompt)
    return ScoringRequest(
        items=[Pair(prompt, _dumped(each), options) for each in body.responses],
        names=[f"responses[{number}]" for number in range(len(body.responses))],
        model=body.model,
        calibrated=body.calibrated,
        truncation=body.truncation,
        aggregate=body.aggregate,
        k=body.k,
    )


def _read_prefixes(body: _PrefixRewards) -> ScoringRequest:
    options = template_kwargs(body.template_kwargs, param="template_kwargs")
    return ScoringRequest(
        items=[body.item.item(options)],
        names=["item"],
        model=body.model,
        truncation=body.truncation,
        prefix_step=body.every,
    )


def _answer_rewards(body: _Rewards, scored: Scored) -> dict[str, Any]:
    is_mean = body.aggregate == "mean"
    rewards, stds = (scored.values, scored.value_stds) if is_mean else (scored.rewards, scored.stds)
    columns = {"reward_stds": stds, "members": scored.members, "columns": scored.columns}
    return {"rewards": rewards} | {name: values for name, values in columns.items() if values} | _common(scored)


def _answer_rank(body: _Rank, scored: Scored) -> dict[str, Any]:
    values = np.array(scored.values)  # calibrated if asked for, while `reward` stays raw as in `RewardModel.rank`
    shares = np.exp(values - values.max())
    shares /= shares.sum()
    order = np.argsort(-np.array(scored.rewards), kind="stable").tolist()[: body.top_n]
    results = [
        {"index": number, "reward": scored.rewards[number], "win_probability": float(shares[number])}
        | ({"reward_std": scored.stds[number]} if scored.stds else {})
        for number in order
    ]
    return {"results": results} | _common(scored)


def _answer_prefixes(_: _PrefixRewards, scored: Scored) -> dict[str, Any]:
    common = _common(scored) | {"tokens": scored.tokens[-1], "truncated": scored.truncated[-1]}
    common["usage"]["tokens"] = scored.tokens[-1]
    stds = {"reward_stds": scored.stds} if scored.stds else {}
    return {"positions": scored.tokens, "pieces": scored.pieces, "rewards": scored.rewards} | stds | common


def _common(scored: Scored) -> dict[str, Any]:
    return {
        "model": scored.model,
        "weight_version": scored.weight_version,
        "tokens": scored.tokens,
        "truncated": scored.truncated,
        "usage": {"tokens": sum(scored.tokens), "distinct_tokens": scored.distinct_tokens},
        "timing": {
            "queued_ms": round(1e3 * scored.queued_seconds, 3),
            "run_ms": round(1e3 * scored.run_seconds, 3),
            "total_ms": round(1e3 * (scored.queued_seconds + scored.run_seconds), 3),
        },
    }


def _dumped(part: Any) -> Any:
    """Return messages as the dicts that were sent; a string as it is."""
    return [each.model_dump() for each in part] if isinstance(part, list) else part


def _info(info: ServerInfo) -> dict[str, Any]:
    return {
        "version": info.version,
        "models": [vars(each) for each in info.models],
        "limits": {
            "max_items": info.max_items,
            "max_tokens_per_batch": info.max_tokens_per_batch,
            "max_queued_items": info.max_queued_items,
        },
        "truncates": info.truncates,
    }


NATIVE = Dialect(
    name="native",
    endpoints=(
        Endpoint("/v1/rewards", _Rewards, _read_rewards, _answer_rewards),
        Endpoint("/v1/rank", _Rank, _read_rank, _answer_rank),
        Endpoint("/v1/prefix-rewards", _PrefixRewards, _read_prefixes, _answer_prefixes),
    ),
    describe_error=lambda error, _: {"error": {"type": error.failure, "message": error.message, "param": error.param}},
    information=(Information("/v1/models", list_models), Information("/info", _info)),
)
