"""The dialect of text-embeddings-inference (TEI): /predict and /rerank.

Rewards are raw unless a request sets `raw_scores` to false, which asks for the sigmoid. TEI itself takes a missing
`raw_scores` for false. Results of /rerank are sorted by the raw rewards.

A text is tokenised with the tokenizer's special tokens and without an EOS that it does not add. A pair of texts, in
/predict as in /rerank, is a prompt and its response. As in TEI, a list of one or two strings is one input; a batch is a
list that holds lists. With `truncate`, a sequence that is too long is cut on the side of `truncation_direction`, the
right one if it does not say; without it, it is an error if `truncate` is false, and else the server's own rule holds.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from plaudit.serving.dialects.dialect import (
    Body,
    Dialect,
    Endpoint,
    Information,
    Texts,
    best_first,
    pair_items,
)
from plaudit.serving.scoring_request import Item, Pair, Scored, ScoringRequest, ServerInfo, Text
from plaudit.serving.serving_errors import Failure, ServingError

__all__ = ["TEI"]


def _lower(value: Any) -> Any:
    """Accept "Right" as TEI's enumeration writes it, and "right" as its documentation does."""
    return value.lower() if isinstance(value, str) else value


class _Options(Body):
    """The fields that both routes share."""

    truncate: bool | None = None
    truncation_direction: Annotated[Literal["left", "right"], BeforeValidator(_lower)] = "right"
    raw_scores: bool | None = None


_Sequence = str | Annotated[list[str], Field(min_length=1, max_length=2, fail_fast=True)]


class _Predict(_Options):
    """A body of /predict."""

    inputs: str | Annotated[list[_Sequence], Field(min_length=1, fail_fast=True)]

    @property
    def is_batch(self) -> bool:
        """True where the answer has a list for each input."""
        return isinstance(self.inputs, list) and any(isinstance(each, list) for each in self.inputs)


class _Rerank(_Options):
    """A body of /rerank."""

    query: str
    texts: Texts
    return_text: bool = False


def _request(body: _Options, items: list[Item], names: list[str]) -> ScoringRequest:
    truncation: Literal["error", "left", "right"] | None = None
    if body.truncate is not None:
        truncation = body.truncation_direction if body.truncate else "error"
    activation: Literal["identity", "sigmoid"] = "sigmoid" if body.raw_scores is False else "identity"
    return ScoringRequest(items, names, activation=activation, truncation=truncation)


def _read_predict(body: _Predict) -> ScoringRequest:
    if isinstance(body.inputs, list) and body.is_batch:
        names = [f"inputs[{n}]" for n in range(len(body.inputs))]
        return _request(body, [_item(each) for each in body.inputs], names)
    if len(body.inputs) > 2 and isinstance(body.inputs, list):
        message = "two strings are a pair: expected a batch of texts as a list of lists, each with one string."
        raise ServingError("invalid", message, param="inputs")
    return _request(body, [_item(body.inputs)], ["inputs"])


def _item(sequence: Any) -> Item:
    """Return the item of a string, of a list with one string, or of a pair."""
    texts = [sequence] if isinstance(sequence, str) else sequence
    if len(texts) == 2:
        return Pair(texts[0], texts[1], as_conversation=True)
    return Text(texts[0], special_tokens="added")


def _read_rerank(body: _Rerank) -> ScoringRequest:
    return _request(body, *pair_items(body.query, body.texts, "texts"))


def _answer_predict(body: _Predict, scored: Scored) -> list[Any]:
    batch = [[{"score": value, "label": scored.label}] for value in scored.values]
    return batch if body.is_batch else batch[0]


def _answer_rerank(body: _Rerank, scored: Scored) -> list[dict[str, Any]]:
    texts = [{"text": text} if body.return_text else {} for text in body.texts]
    return [{"index": n, **texts[n], "score": scored.values[n]} for n in best_first(scored)]


def _info(server: ServerInfo) -> dict[str, Any]:
    model = server.models[0]
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": model.dtype,
        "model_type": {"reranker": {"id2label": {"0": model.label}, "label2id": {model.label: 0}}},
        "max_concurrent_requests": server.max_queued_items,
        "max_input_length": model.max_length,
        "max_batch_tokens": server.max_tokens_per_batch,
        "max_batch_requests": None,
        "max_client_batch_size": server.max_items,
        "auto_truncate": server.truncates,
        "version": server.version,
    }


_TYPES: dict[Failure, str] = {
    "overloaded": "Overloaded",
    "late": "Overloaded",
    "draining": "Unhealthy",
    "dead": "Unhealthy",
    "model_fault": "Backend",
}


TEI = Dialect(
    name="tei",
    endpoints=(
        Endpoint("/predict", _Predict, _read_predict, _answer_predict),
        *(Endpoint(path, _Rerank, _read_rerank, _answer_rerank) for path in ("/rerank", "/", "/invocations")),
    ),
    describe_error=lambda error, _: {"error": error.message, "error_type": _TYPES.get(error.failure, "Validation")},
    statuses={"overloaded": 429, "late": 429, "model_fault": 424},
    information=(Information("/info", _info),),
)
