import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.infinity import INFINITY
from plaudit.serving.scoring_request import ModelInfo, Pair, ServerInfo, Text
from plaudit.serving.serving_errors import ServingError

RERANK = {"query": "q", "documents": ["a", "b"]}


def test_rerank_answers_to_the_field():
    answer = ask(INFINITY, "/rerank", RERANK | {"return_documents": True, "top_n": 1}, [0.5, 1.0])
    assert answer.pop("id").startswith("infinity-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "rerank",
        "results": [{"relevance_score": 1.0, "index": 1, "document": "b"}],
        "model": "tiny",
        "usage": {"prompt_tokens": 21, "total_tokens": 21},
    }
    assert "document" not in ask(INFINITY, "/rerank", RERANK, [0.5, 1.0])["results"][0]
    assert read(INFINITY, "/rerank", RERANK).items[1] == Pair("q", "b", as_conversation=True)


def test_classify_answers_to_the_field():
    answer = ask(INFINITY, "/classify", {"input": ["a", "b"]}, [0.5, 1.0])
    assert answer["object"] == "classify"
    assert answer["data"] == [[{"score": 0.5, "label": "LABEL_0"}], [{"score": 1.0, "label": "LABEL_0"}]]
    assert read(INFINITY, "/classify", {"input": [" a "]}).items == [Text(" a ", "added")]


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "identity"), ({"raw_scores": True}, "identity"), ({"raw_scores": False}, "sigmoid")]
)
def test_rewards_are_raw_unless_a_request_refuses_raw_scores(given, expected):
    assert read(INFINITY, "/classify", {"input": ["a"]} | given).activation == expected
    assert read(INFINITY, "/rerank", RERANK | given).activation == expected


def test_a_rank_with_a_sigmoid_that_saturates_follows_the_raw_rewards():
    body = {"query": "q", "documents": ["a", "b", "c"], "raw_scores": False}
    results = ask(INFINITY, "/rerank", body, [40.0, 41.0, 42.0])["results"]
    assert [(each["index"], each["relevance_score"]) for each in results] == [(2, 1.0), (1, 1.0), (0, 1.0)]


def test_the_default_name_of_infinity_is_no_name():
    assert read(INFINITY, "/rerank", RERANK).model is None
    assert read(INFINITY, "/rerank", RERANK | {"model": "default/not-specified"}).model is None
    assert read(INFINITY, "/rerank", RERANK | {"model": "mine"}).model == "mine"


@pytest.mark.parametrize("body", [RERANK | {"top_n": 0}, {"query": "q"}, RERANK | {"documents": [{"text": "a"}]}])
def test_other_bodies_are_refused(body):
    with pytest.raises(ValidationError):
        read(INFINITY, "/rerank", body)


def test_errors_have_the_shape_of_openai():
    assert INFINITY.error(ServingError("overloaded", "full", retry_after=3)) == (
        429,
        {"error": {"message": "full", "type": "RateLimitError", "param": None, "code": 429}},
    )


def test_models():
    server = ServerInfo([ModelInfo("tiny", "v1", 7, "float32", 256)], "0.1", 100, 4096, 1000)
    (route,) = INFINITY.information
    (model,) = route.answer(server)["data"]
    assert model.items() >= {"id": "tiny", "object": "model", "created": 7, "backend": "torch"}.items()
