"""The dialect of vLLM's pooling routes: /classify, /pooling, /score and /rerank. verl uses /classify.

Rewards are raw unless a request sets `use_activation` to true, which asks for the sigmoid. vLLM itself takes a missing
or null `use_activation` for a sigmoid.

An `input` is tokenised as it is written: with the tokenizer's special tokens, without them where `add_special_tokens`
is false, and with no EOS that the tokenizer does not add. `messages` are written by the model's chat template. A query
and a document are a prompt and its response.

The server's own rule holds for a sequence that is too long, unless `truncate_prompt_tokens` is given. It is then cut
from the left if `truncation_side` does not say, so that the end of the response stays; vLLM takes the side from the
tokenizer, which is the right one for most. Results of /rerank are sorted by the raw rewards.

A full queue is a 503 and never a 429, after which verl gives up.
"""

import time
from typing import Annotated, Any, Literal

from pydantic import Field

from plaudit.serving.dialects.dialect import (
    Body,
    Dialect,
    Endpoint,
    Information,
    Input,
    Texts,
    best_first,
    input_items,
    new_id,
    only,
    openai_error,
    pair_items,
    template_kwargs,
    usage,
)
from plaudit.serving.scoring_request import Conversation, Item, Pair, Scored, ScoringRequest, ServerInfo
from plaudit.serving.serving_errors import ServingError

__all__ = ["VLLM", "classification", "list_models"]

_NO_ACTIVATION = "this option is not served; set use_activation to true for a sigmoid, or leave both out"
_NO_TEMPLATE = "a request may not bring a chat template: the model is scored with its own"


class _Options(Body):
    """The fields that all routes share."""

    model: str | None = None
    request_id: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    activation: Annotated[Any, only(False, reason=_NO_ACTIVATION)] = None  # names of older versions
    softmax: Annotated[Any, only(False, reason=_NO_ACTIVATION)] = None
    normalize: Annotated[Any, only(False, reason=_NO_ACTIVATION)] = None
    padding: Annotated[Any, only("do_not_pad", reason="sequences are never padded to a length")] = None
    priority: Annotated[Any, only(0, reason="requests have no priority here; expected 0")] = None
    mm_processor_kwargs: Annotated[Any, only(reason="expected text only: no images, sounds or videos")] = None
    chat_template: Annotated[Any, only(reason=_NO_TEMPLATE)] = None


class _Classify(_Options):
    """A body of /classify."""

    input: Input | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class _Pooling(_Classify):
    """A body of /pooling."""

    task: Annotated[Any, only("classify", reason="expected the task classify: a sequence has one reward")] = None
    encoding_format: Annotated[Any, only("float", reason="expected the encoding_format float")] = None
    dimensions: Annotated[Any, only(reason="a reward is one number: leave dimensions out")] = None


_Side = str | Texts | None


class _Pairs(_Options):
    """The fields that /score and /rerank share."""

    instruction: Annotated[Any, only(reason=_NO_TEMPLATE)] = None
    max_tokens_per_query: Annotated[Any, only(0, reason="use truncate_prompt_tokens")] = None
    max_tokens_per_doc: Annotated[Any, only(0, reason="use truncate_prompt_tokens")] = None


class _Score(_Pairs):
    """A body of /score: two lists, under one of four pairs of names."""

    queries: _Side = None
    documents: _Side = None
    items: _Side = None
    data_1: _Side = None
    data_2: _Side = None
    text_1: _Side = None
    text_2: _Side = None


class _Rerank(_Pairs):
    """A body of /rerank."""

    query: str
    documents: str | Texts
    top_n: int = 0


def _request(body: _Options, items: list[Item], names: list[str]) -> ScoringRequest:
    length = body.truncate_prompt_tokens
    if length == 0:
        raise ServingError("invalid", "expected at least one token, or -1.", param="truncate_prompt_tokens")
    return ScoringRequest(
        items,
        names,
        model=body.model,
        activation="sigmoid" if body.use_activation else "identity",
        truncation=None if length is None else body.truncation_side or "left",
        max_length=None if length in (None, -1) else length,
    )


def _read_classify(body: _Classify) -> ScoringRequest:
    if (body.input is None) == (body.messages is None):
        raise ServingError("invalid", "expected one of input and messages.", param="input")
    if body.input is not None:
        special_tokens: Literal["added", "exact"] = "exact" if body.add_special_tokens is False else "added"
        return _request(body, *input_items(body.input, "input", special_tokens))
    return _request(body, [_conversation(body)], ["messages"])


def _conversation(body: _Classify) -> Conversation:
    if body.add_special_tokens:
        message = "the chat template writes the special tokens of messages: leave add_special_tokens out."
        raise ServingError("invalid", message, param="add_special_tokens")
    options = template_kwargs(body.chat_template_kwargs, "chat_template_kwargs")
    for name in ("add_generation_prompt", "continue_final_message"):
        if getattr(body, name):
            options = options | {name: True}
    if options.get("add_generation_prompt") and options.get("continue_final_message"):
        message = "expected at most one of add_generation_prompt and continue_final_message."
        raise ServingError("invalid", message, param="continue_final_message")
    return Conversation(body.messages or [], options)


def _read_score(body: _Score) -> ScoringRequest:
    for names in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")):
        first, second = (getattr(body, name) for name in names)
        if first is not None and second is not None:
            break
    else:
        raise ServingError("invalid", "expected queries and documents, two lists of texts.", param="queries")
    queries, documents = ([side] if isinstance(side, str) else side for side in (first, second))
    if len(queries) == 1:
        return _request(body, *pair_items(queries[0], documents, names[1]))
    if len(queries) != len(documents):
        message = f"expected one text, or as many as there are {names[1]}: {len(documents)}, not {len(queries)}."
        raise ServingError("invalid", message, param=names[0])
    items: list[Item] = [Pair(*each, as_conversation=True) for each in zip(queries, documents, strict=True)]
    return _request(body, items, [f"{names[1]}[{n}]" for n in range(len(documents))])


def _read_rerank(body: _Rerank) -> ScoringRequest:
    return _request(body, *pair_items(body.query, _documents(body), "documents"))


def _documents(body: _Rerank) -> list[str]:
    return [body.documents] if isinstance(body.documents, str) else body.documents


def _identifier(body: _Options, prefix: str) -> str:
    return new_id(prefix) if body.request_id is None else f"{prefix}-{body.request_id}"


def _listed(identifier: str, scored: Scored, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": identifier,
        "object": "list",
        "created": int(time.time()),
        "model": scored.model,
        "data": data,
        "usage": usage(scored) | {"completion_tokens": 0, "prompt_tokens_details": None},
    }


def classification(identifier: str, scored: Scored) -> dict[str, Any]:
    """Return the answer of /classify, which SGLang's /v1/classify shares: `probs` holds the reward, one number."""
    data = [
        {"index": n, "label": scored.label, "probs": [value], "num_classes": 1} for n, value in enumerate(scored.values)
    ]
    return _listed(identifier, scored, data)


def _answer_classify(body: _Classify, scored: Scored) -> dict[str, Any]:
    return classification(_identifier(body, "classify"), scored)


def _answer_pooling(body: _Pooling, scored: Scored) -> dict[str, Any]:
    data = [{"index": n, "object": "pooling", "data": [value]} for n, value in enumerate(scored.values)]
    return _listed(_identifier(body, "pool"), scored, data)


def _answer_score(body: _Score, scored: Scored) -> dict[str, Any]:
    data = [{"index": n, "object": "score", "score": value} for n, value in enumerate(scored.values)]
    return _listed(_identifier(body, "score"), scored, data)


def _answer_rerank(body: _Rerank, scored: Scored) -> dict[str, Any]:
    documents = _documents(body)
    order = best_first(scored, body.top_n if body.top_n > 0 else None)
    return {
        "id": _identifier(body, "rerank"),
        "model": scored.model,
        "usage": usage(scored),
        "results": [
            {"index": n, "document": {"text": documents[n]}, "relevance_score": scored.values[n]} for n in order
        ],
    }


def list_models(server: ServerInfo) -> dict[str, Any]:
    """Return the served models as OpenAI's client lists them."""
    data = [
        {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "plaudit",
            "root": model.name,
            "max_model_len": model.max_length,
        }
        for model in server.models
    ]
    return {"object": "list", "data": data}


VLLM = Dialect(
    name="vllm",
    endpoints=(
        Endpoint("/classify", _Classify, _read_classify, _answer_classify),
        Endpoint("/pooling", _Pooling, _read_classify, _answer_pooling),
        *(Endpoint(path, _Score, _read_score, _answer_score) for path in ("/score", "/v1/score")),
        *(Endpoint(path, _Rerank, _read_rerank, _answer_rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    ),
    describe_error=lambda error, status: {"error": openai_error(error, status)},
    statuses={"invalid": 400, "too_long": 400},
    information=(
        Information("/v1/models", list_models),
        Information("/version", lambda server: {"version": server.version}),
    ),
)
