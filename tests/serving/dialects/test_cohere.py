import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.cohere import COHERE, JINA
from plaudit.serving.scoring_request import Pair
from plaudit.serving.serving_errors import ServingError

RERANK = {"model": "m", "query": "q", "documents": ["a", "b"]}


def test_cohere_answers_to_the_field():
    answer = ask(COHERE, "/v2/rerank", RERANK | {"top_n": 1}, [0.5, 1.0])
    assert answer.pop("id")
    assert answer == {
        "results": [{"index": 1, "relevance_score": 1.0}],
        "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": 21}},
    }
    request = read(COHERE, "/v2/rerank", RERANK)
    assert request.items == [Pair("q", "a", as_conversation=True), Pair("q", "b", as_conversation=True)]
    assert (request.model, request.names, request.activation) == ("m", ["documents[0]", "documents[1]"], "identity")


def test_jina_answers_to_the_field_with_the_documents_unless_they_are_not_wanted():
    body = RERANK | {"documents": ["a", {"text": "b"}]}
    answer = ask(JINA, "/v1/rerank", body, [0.5, 1.0])
    assert answer["results"] == [
        {"index": 1, "relevance_score": 1.0, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.5, "document": {"text": "a"}},
    ]
    assert answer["usage"] == {"prompt_tokens": 21, "total_tokens": 21}
    without = ask(JINA, "/v1/rerank", body | {"return_documents": False}, [0.5, 1.0])
    assert without["results"][0] == {"index": 1, "relevance_score": 1.0}


@pytest.mark.parametrize(
    ("dialect", "path", "given"),
    [
        (COHERE, "/v2/rerank", {"max_tokens_per_doc": 100}),
        (COHERE, "/v2/rerank", {"top_n": 0}),
        (COHERE, "/v2/rerank", {"documents": [{"text": "a"}]}),
        (JINA, "/v1/rerank", {"max_doc_length": 100}),
        (JINA, "/v1/rerank", {"return_embeddings": True}),
        (JINA, "/v1/rerank", {"documents": [{"image": "a"}]}),
    ],
)
def test_options_that_are_not_served_are_refused(dialect, path, given):
    with pytest.raises(ValidationError):
        read(dialect, path, RERANK | given)


def test_errors():
    full = ServingError("overloaded", "full", retry_after=3)
    status, body = COHERE.error(full)
    assert (status, body["message"]) == (429, "full")
    assert JINA.error(full) == (429, {"detail": "full"})
    assert COHERE.error(ServingError("invalid", "why"))[0] == 400
    assert JINA.error(ServingError("invalid", "why"))[0] == 422
