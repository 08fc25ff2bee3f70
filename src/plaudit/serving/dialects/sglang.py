"""The dialect of SGLang: /classify, /v1/classify, /v1/rerank, and /v1/embeddings, which verl reads rewards from.

Rewards are raw on all routes. SGLang's own /v1/classify takes the softmax of one reward, which is always 1.

Texts are tokenised with the tokenizer's special tokens, and no EOS is added that the tokenizer does not add. (verl
strips BOS and expects the server to add it.) A query and a document are a prompt and its response, and results are
sorted by the raw rewards. One text or one list of ids has one object as its answer in /classify, and a list has a list.

A full queue is a 503 and never a 429, after which verl gives up.
"""

import base64
import struct
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field

from plaudit.serving.dialects.dialect import (
    Body,
    Dialect,
    Endpoint,
    Ids,
    Information,
    Input,
    Texts,
    best_first,
    input_items,
    new_id,
    only,
    openai_error,
    pair_items,
    usage,
)
from plaudit.serving.dialects.vllm import classification
from plaudit.serving.scoring_request import Scored, ScoringRequest, ServerInfo
from plaudit.serving.serving_errors import ServingError

__all__ = ["SGLANG"]

_TEXT_ONLY = "expected text only: no images, sounds or videos"


class _Classify(Body):
    """A body of /classify."""

    text: str | Texts | None = None
    input_ids: Ids | None = None
    rid: str | Texts | None = None
    image_data: Annotated[Any, only(reason=_TEXT_ONLY)] = None
    video_data: Annotated[Any, only(reason=_TEXT_ONLY)] = None
    audio_data: Annotated[Any, only(reason=_TEXT_ONLY)] = None

    @property
    def is_batch(self) -> bool:
        """True where the answer is a list."""
        if self.input_ids is not None:
            return isinstance(self.input_ids[0], list)
        return isinstance(self.text, list)


class _Input(Body):
    """A body of /v1/classify."""

    model: str | None = None
    input: Input


class _Embeddings(_Input):
    """A body of /v1/embeddings."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Any, only(reason="a reward is one number: leave dimensions out")] = None


class _Rerank(Body):
    """A body of /v1/rerank."""

    query: str
    documents: Texts
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True
    instruct: Annotated[Any, only(reason="the model is scored with its own chat template: leave instruct out")] = None


def _read_classify(body: _Classify) -> ScoringRequest:
    if (body.text is None) == (body.input_ids is None):
        raise ServingError("invalid", "expected one of text and input_ids.", param="text")
    if body.text is not None:
        items, names = input_items(body.text, "text", "added")
    else:
        items, names = input_items(body.input_ids, "input_ids", "added")
    if isinstance(body.rid, list) and len(body.rid) != len(items):
        raise ServingError("invalid", "expected as many identifiers as there are texts.", param="rid")
    return ScoringRequest(items, names)


def _read_input(body: _Input) -> ScoringRequest:
    return ScoringRequest(*input_items(body.input, "input", "added"), model=body.model)


def _read_rerank(body: _Rerank) -> ScoringRequest:
    return ScoringRequest(*pair_items(body.query, body.documents, "documents"))


def _meta_info(identifier: str, scored: Scored, n: int) -> dict[str, Any]:
    return {
        "id": identifier,
        "prompt_tokens": scored.tokens[n],
        "weight_version": scored.weight_version,
        "e2e_latency": scored.queued_seconds + scored.run_seconds,
    }


def _answer_classify(body: _Classify, scored: Scored) -> Any:
    count = len(scored.values)
    if isinstance(body.rid, list):
        identifiers = body.rid
    elif body.rid is not None:
        identifiers = [f"{body.rid}_{n}" for n in range(count)] if body.is_batch else [body.rid]
    else:
        identifiers = [uuid4().hex for _ in range(count)]
    answers = [
        {"embedding": [value], "meta_info": _meta_info(identifiers[n], scored, n)}
        for n, value in enumerate(scored.values)
    ]
    return answers if body.is_batch else answers[0]


def _answer_input(_: _Input, scored: Scored) -> dict[str, Any]:
    return classification(new_id("classify"), scored)


def _answer_embeddings(body: _Embeddings, scored: Scored) -> dict[str, Any]:
    vectors: list[Any] = [[value] for value in scored.values]
    if body.encoding_format == "base64":  # the default of OpenAI's client
        vectors = [base64.b64encode(struct.pack("<f", value)).decode() for value in scored.values]
    data = [{"embedding": vector, "index": n, "object": "embedding"} for n, vector in enumerate(vectors)]
    return {"data": data, "model": scored.model, "object": "list", "usage": usage(scored)}


def _answer_rerank(body: _Rerank, scored: Scored) -> list[dict[str, Any]]:
    documents = [{"document": text} if body.return_documents else {} for text in body.documents]
    return [
        {"score": scored.values[n], **documents[n], "index": n, "meta_info": _meta_info(uuid4().hex, scored, n)}
        for n in best_first(scored, body.top_n)
    ]


def _model_info(server: ServerInfo) -> dict[str, Any]:
    model = server.models[0]
    return {"model_path": model.name, "is_generation": False, "weight_version": model.weight_version}


SGLANG = Dialect(
    name="sglang",
    endpoints=(
        Endpoint("/classify", _Classify, _read_classify, _answer_classify, methods=("POST", "PUT")),
        Endpoint("/v1/classify", _Input, _read_input, _answer_input),
        Endpoint("/v1/embeddings", _Embeddings, _read_input, _answer_embeddings),
        Endpoint("/v1/rerank", _Rerank, _read_rerank, _answer_rerank),
    ),
    describe_error=lambda error, status: {"object": "error"} | openai_error(error, status),
    statuses={"invalid": 400, "too_long": 400},
    information=tuple(Information(path, _model_info) for path in ("/model_info", "/get_model_info")),
)
