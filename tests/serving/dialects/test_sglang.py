import base64
import struct

import pytest
from dialect_calls import ask, endpoint, read
from pydantic import ValidationError

from plaudit.serving.dialects.sglang import SGLANG
from plaudit.serving.scoring_request import ModelInfo, Pair, ServerInfo, Text, TokenIds
from plaudit.serving.serving_errors import ServingError


def test_one_text_has_one_object_and_a_list_has_a_list():
    one = ask(SGLANG, "/classify", {"text": "a", "rid": "7"}, [0.5])
    meta_info = {"id": "7", "prompt_tokens": 10, "weight_version": "v1", "e2e_latency": 0.75}
    assert one == {"embedding": [0.5], "meta_info": meta_info}
    several = ask(SGLANG, "/classify", {"text": ["a"]}, [0.5])
    assert [each["embedding"] for each in several] == [[0.5]]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ({"text": ["a", "b"], "rid": ["x", "y"]}, ["x", "y"]),
        ({"text": ["a", "b"], "rid": "x"}, ["x_0", "x_1"]),
        ({"input_ids": [[1], [2]], "rid": ["x", "y"]}, ["x", "y"]),
    ],
)
def test_identifiers_come_back(body, ids):
    assert [each["meta_info"]["id"] for each in ask(SGLANG, "/classify", body, [0.5, 1.0])] == ids


@pytest.mark.parametrize(
    ("body", "items"),
    [
        ({"text": "a"}, [Text("a", "added")]),
        ({"text": ["a", "b"]}, [Text("a", "added"), Text("b", "added")]),
        ({"input_ids": [5, 6]}, [TokenIds([5, 6])]),
        ({"input_ids": [[5, 6], [7]]}, [TokenIds([5, 6]), TokenIds([7])]),
    ],
)
def test_inputs_become_items(body, items):
    assert read(SGLANG, "/classify", body).items == items


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(body, param):
    with pytest.raises(ServingError) as raised:
        read(SGLANG, "/classify", body)
    assert (raised.value.failure, raised.value.param) == ("invalid", param)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"text": "a", "image_data": "data:"}),
        ("/classify", {"input_ids": ["a"]}),
        ("/v1/embeddings", {"input": "a", "dimensions": 8}),
        ("/v1/embeddings", {"input": "a", "encoding_format": "bytes"}),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 0}),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "instruct": "be kind"}),
        ("/v1/rerank", {"query": "q", "documents": [[{"type": "image_url"}]]}),
    ],
)
def test_options_that_are_not_served_are_refused(path, body):
    with pytest.raises(ValidationError):
        read(SGLANG, path, body)


def test_classify_takes_put_as_well():
    assert endpoint(SGLANG, "/classify").methods == ("POST", "PUT")


def test_rerank_is_a_bare_list():
    answer = ask(SGLANG, "/v1/rerank", {"query": "q", "documents": ["a", "b"], "top_n": 1}, [0.5, 1.0])
    assert [{key: each[key] for key in ("score", "document", "index")} for each in answer] == [
        {"score": 1.0, "document": "b", "index": 1}
    ]
    assert answer[0]["meta_info"]["prompt_tokens"] == 11
    without = ask(SGLANG, "/v1/rerank", {"query": "q", "documents": ["a"], "return_documents": False}, [0.5])
    assert "document" not in without[0]
    assert read(SGLANG, "/v1/rerank", {"query": "q", "documents": ["a"]}).items == [
        Pair("q", "a", as_conversation=True)
    ]


def test_v1_classify_is_raw_and_has_the_shape_of_vllm():
    answer = ask(SGLANG, "/v1/classify", {"model": "m", "input": "a"}, [-3.5])
    assert answer["data"] == [{"index": 0, "label": "LABEL_0", "probs": [-3.5], "num_classes": 1}]


def test_rewards_stand_in_the_place_of_embeddings():
    answer = ask(SGLANG, "/v1/embeddings", {"model": "m", "input": ["a", "b"]}, [0.5, -1.25])
    assert answer == {
        "data": [
            {"embedding": [0.5], "index": 0, "object": "embedding"},
            {"embedding": [-1.25], "index": 1, "object": "embedding"},
        ],
        "model": "tiny",
        "object": "list",
        "usage": {"prompt_tokens": 21, "total_tokens": 21},
    }
    coded = ask(SGLANG, "/v1/embeddings", {"input": "a", "encoding_format": "base64"}, [0.5])["data"][0]["embedding"]
    assert struct.unpack("<f", base64.b64decode(coded)) == (0.5,)


def test_errors_are_flat():
    assert SGLANG.error(ServingError("unknown_model", "no such model", param="model")) == (
        404,
        {"object": "error", "message": "no such model", "type": "NotFoundError", "param": "model", "code": 404},
    )


def test_information():
    server = ServerInfo([ModelInfo("tiny", "v1", 7, "float32", 256)], "0.1", 100, 4096, 1000)
    expected = {"model_path": "tiny", "is_generation": False, "weight_version": "v1"}
    assert {route.path: route.answer(server) for route in SGLANG.information} == {
        "/model_info": expected,
        "/get_model_info": expected,
    }
