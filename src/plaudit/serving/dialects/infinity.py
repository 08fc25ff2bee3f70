"""The dialect of infinity: /rerank and /classify.

Rewards are raw unless a request sets `raw_scores` to false, which asks for the sigmoid. infinity itself takes a missing
`raw_scores` for false. Results of /rerank are sorted by the raw rewards; a query and a document are a prompt and its
response. The texts of /classify are tokenised with the tokenizer's special tokens and without an EOS that it does not
add; infinity strips white space at both ends of each text, and here a text stays as it is written.
"""

import time
from typing import Annotated, Any

from pydantic import Field

from plaudit.serving.dialects.dialect import (
    Body,
    Dialect,
    Endpoint,
    Information,
    Texts,
    best_first,
    input_items,
    new_id,
    openai_error,
    pair_items,
    usage,
)
from plaudit.serving.scoring_request import Item, Scored, ScoringRequest, ServerInfo

__all__ = ["INFINITY"]

_NO_MODEL = "default/not-specified"  # infinity's own default, which its clients send


class _Options(Body):
    """The fields that both routes share."""

    model: str = _NO_MODEL
    raw_scores: bool | None = None


class _Rerank(_Options):
    """A body of /rerank."""

    query: str
    documents: Texts
    return_documents: bool = False
    top_n: Annotated[int, Field(ge=1)] | None = None


class _Classify(_Options):
    """A body of /classify."""

    input: Texts


def _request(body: _Options, items: list[Item], names: list[str]) -> ScoringRequest:
    model = None if body.model == _NO_MODEL else body.model
    return ScoringRequest(items, names, model=model, activation="sigmoid" if body.raw_scores is False else "identity")


def _read_rerank(body: _Rerank) -> ScoringRequest:
    return _request(body, *pair_items(body.query, body.documents, "documents"))


def _read_classify(body: _Classify) -> ScoringRequest:
    return _request(body, *input_items(body.input, "input", "added"))


def _envelope(kind: str, scored: Scored) -> dict[str, Any]:
    return {
        "object": kind,
        "model": scored.model,
        "usage": usage(scored),
        "id": new_id("infinity"),
        "created": int(time.time()),
    }


def _answer_rerank(body: _Rerank, scored: Scored) -> dict[str, Any]:
    documents = [{"document": text} if body.return_documents else {} for text in body.documents]
    order = best_first(scored, body.top_n)
    results = [{"relevance_score": scored.values[n], "index": n, **documents[n]} for n in order]
    return _envelope("rerank", scored) | {"results": results}


def _answer_classify(_: _Classify, scored: Scored) -> dict[str, Any]:
    data = [[{"score": value, "label": scored.label}] for value in scored.values]
    return _envelope("classify", scored) | {"data": data}


def _models(server: ServerInfo) -> dict[str, Any]:
    data = [
        {
            "id": model.name,
            "stats": {},
            "object": "model",
            "owned_by": "plaudit",
            "created": model.created,
            "backend": "torch",
            "capabilities": ["classify", "rerank"],
            "dtype": model.dtype,
        }
        for model in server.models
    ]
    return {"data": data, "object": "list"}


INFINITY = Dialect(
    name="infinity",
    endpoints=(
        Endpoint("/rerank", _Rerank, _read_rerank, _answer_rerank),
        Endpoint("/classify", _Classify, _read_classify, _answer_classify),
    ),
    describe_error=lambda error, status: {"error": openai_error(error, status)},
    statuses={"unknown_model": 400, "overloaded": 429, "late": 429},
    information=(Information("/models", _models),),
)
