import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.tei import TEI
from plaudit.serving.scoring_request import ModelInfo, Pair, ServerInfo, Text
from plaudit.serving.serving_errors import ServingError

PAIR = Pair("q", "a", as_conversation=True)


@pytest.mark.parametrize(
    ("inputs", "items", "names"),
    [
        ("a", [Text("a", "added")], ["inputs"]),
        (["a"], [Text("a", "added")], ["inputs"]),
        (["q", "a"], [PAIR], ["inputs"]),
        ([["a"], ["q", "a"]], [Text("a", "added"), PAIR], ["inputs[0]", "inputs[1]"]),
        ([["q", "a"], "a"], [PAIR, Text("a", "added")], ["inputs[0]", "inputs[1]"]),
    ],
)
def test_a_list_of_strings_is_one_input_and_a_list_of_lists_is_a_batch(inputs, items, names):
    request = read(TEI, "/predict", {"inputs": inputs})
    assert (request.items, request.names) == (items, names)


def test_three_strings_are_no_pair_and_no_batch():
    with pytest.raises(ServingError, match="list of lists"):
        read(TEI, "/predict", {"inputs": ["a", "b", "c"]})


@pytest.mark.parametrize("inputs", [[], [[]], [["a", "b", "c"]], 3, {"a": "b"}, [["a"], 3]])
def test_other_inputs_are_refused(inputs):
    with pytest.raises(ValidationError):
        read(TEI, "/predict", {"inputs": inputs})


def test_predict_answers_one_list_or_a_list_for_each():
    assert ask(TEI, "/predict", {"inputs": "a"}, [0.5]) == [{"score": 0.5, "label": "LABEL_0"}]
    assert ask(TEI, "/predict", {"inputs": [["a"]]}, [0.5]) == [[{"score": 0.5, "label": "LABEL_0"}]]


def test_rerank_answers_to_the_field():
    body = {"query": "q", "texts": ["a", "b"]}
    assert ask(TEI, "/rerank", body, [0.5, 1.0]) == [{"index": 1, "score": 1.0}, {"index": 0, "score": 0.5}]
    with_texts = ask(TEI, "/rerank", body | {"return_text": True}, [0.5, 1.0])
    assert with_texts == [{"index": 1, "text": "b", "score": 1.0}, {"index": 0, "text": "a", "score": 0.5}]
    assert read(TEI, "/rerank", body).names == ["texts[0]", "texts[1]"]


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "identity"), ({"raw_scores": True}, "identity"), ({"raw_scores": False}, "sigmoid")]
)
def test_rewards_are_raw_unless_a_request_refuses_raw_scores(given, expected):
    assert read(TEI, "/predict", {"inputs": "a"} | given).activation == expected
    assert read(TEI, "/rerank", {"query": "q", "texts": ["a"]} | given).activation == expected


def test_a_rank_with_a_sigmoid_that_saturates_follows_the_raw_rewards():
    body = {"query": "q", "texts": ["a", "b", "c"], "raw_scores": False}
    answer = ask(TEI, "/rerank", body, [40.0, 41.0, 42.0])
    assert [(each["index"], each["score"]) for each in answer] == [(2, 1.0), (1, 1.0), (0, 1.0)]


@pytest.mark.parametrize(
    ("given", "truncation"),
    [
        ({}, None),
        ({"truncate": None}, None),
        ({"truncate": False, "truncation_direction": "Left"}, "error"),
        ({"truncate": True}, "right"),
        ({"truncate": True, "truncation_direction": "Left"}, "left"),
        ({"truncate": True, "truncation_direction": "right"}, "right"),
    ],
)
def test_truncation_is_asked_for(given, truncation):
    assert read(TEI, "/predict", {"inputs": "a"} | given).truncation == truncation


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        ("overloaded", 429, "Overloaded"),
        ("too_long", 422, "Validation"),
        ("model_fault", 424, "Backend"),
        ("body_too_large", 413, "Validation"),
        ("draining", 503, "Unhealthy"),
    ],
)
def test_errors_have_a_type(failure, status, kind):
    assert TEI.error(ServingError(failure, "why")) == (status, {"error": "why", "error_type": kind})


def test_info():
    server = ServerInfo([ModelInfo("tiny", "v1", 7, "float32", 256)], "0.1", 100, 4096, 1000, truncates=True)
    (route,) = TEI.information
    assert route.answer(server) == {
        "model_id": "tiny",
        "model_sha": None,
        "model_dtype": "float32",
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": 1000,
        "max_input_length": 256,
        "max_batch_tokens": 4096,
        "max_batch_requests": None,
        "max_client_batch_size": 100,
        "auto_truncate": True,
        "version": "0.1",
    }
