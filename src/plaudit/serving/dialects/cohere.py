"""The dialects of Cohere's /v2/rerank and of Jina's /v1/rerank.

A `relevance_score` is the raw reward, by which results are sorted; neither service has an option for an activation. A
query and a document are a prompt and its response. Documents are never cut: `max_tokens_per_doc` is an error.

A full queue is a 429, and Cohere's client waits as long as Retry-After says.
"""

from typing import Annotated, Any

from pydantic import Field

from plaudit.serving.dialects.dialect import (
    Body,
    Dialect,
    Endpoint,
    Texts,
    best_first,
    new_id,
    only,
    pair_items,
    usage,
)
from plaudit.serving.scoring_request import Scored, ScoringRequest

__all__ = ["COHERE", "JINA"]

_NO_CUTS = "documents are scored whole: leave this option out"


class _Rerank(Body):
    """The fields that both services share."""

    model: str
    query: str
    documents: Texts
    top_n: Annotated[int, Field(ge=1)] | None = None


class _CohereRerank(_Rerank):
    """A body of /v2/rerank."""

    max_tokens_per_doc: Annotated[Any, only(reason=_NO_CUTS)] = None
    relevant_spans: Annotated[Any, only(reason="a reward is for a whole document: leave relevant_spans out")] = None


class _JinaDocument(Body):
    """A document as an object."""

    text: str


class _JinaRerank(_Rerank):
    """A body of /v1/rerank."""

    documents: Annotated[list[str | _JinaDocument], Field(min_length=1, fail_fast=True)]  # type: ignore[assignment]
    return_documents: bool | None = None
    return_embeddings: Annotated[Any, only(False, reason="a reward model has no embeddings")] = None
    max_doc_length: Annotated[Any, only(reason=_NO_CUTS)] = None

    @property
    def texts(self) -> list[str]:
        """The texts of the documents."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


def _read_cohere(body: _CohereRerank) -> ScoringRequest:
    return ScoringRequest(*pair_items(body.query, body.documents, "documents"), model=body.model)


def _read_jina(body: _JinaRerank) -> ScoringRequest:
    return ScoringRequest(*pair_items(body.query, body.texts, "documents"), model=body.model)


def _answer_cohere(body: _CohereRerank, scored: Scored) -> dict[str, Any]:
    order = best_first(scored, body.top_n)
    return {
        "id": new_id("rerank"),
        "results": [{"index": n, "relevance_score": scored.values[n]} for n in order],
        "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": sum(scored.tokens)}},
    }


def _answer_jina(body: _JinaRerank, scored: Scored) -> dict[str, Any]:
    shown = body.return_documents is not False  # Jina's default is true
    documents = [{"document": {"text": text}} if shown else {} for text in body.texts]
    order = best_first(scored, body.top_n)
    return {
        "id": new_id("rerank"),
        "model": scored.model,
        "object": "list",
        "usage": usage(scored),
        "results": [{"index": n, "relevance_score": scored.values[n], **documents[n]} for n in order],
    }


COHERE = Dialect(
    name="cohere",
    endpoints=(Endpoint("/v2/rerank", _CohereRerank, _read_cohere, _answer_cohere),),
    describe_error=lambda error, _: {"id": new_id("error"), "message": error.message},
    statuses={"invalid": 400, "too_long": 400, "overloaded": 429, "late": 429},
)
JINA = Dialect(
    name="jina",
    endpoints=(Endpoint("/v1/rerank", _JinaRerank, _read_jina, _answer_jina),),
    describe_error=lambda error, _: {"detail": error.message},
    statuses={"overloaded": 429, "late": 429},
)
