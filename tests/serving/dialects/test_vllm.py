import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.vllm import VLLM
from plaudit.serving.scoring_request import Conversation, ModelInfo, Pair, ServerInfo, Text, TokenIds
from plaudit.serving.serving_errors import ServingError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_classify_answers_to_the_field():
    answer = ask(VLLM, "/classify", {"model": "any", "input": ["a", "b"]}, [0.5, -1.25])
    assert answer.pop("id").startswith("classify-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "list",
        "model": "tiny",
        "data": [
            {"index": 0, "label": "LABEL_0", "probs": [0.5], "num_classes": 1},
            {"index": 1, "label": "LABEL_0", "probs": [-1.25], "num_classes": 1},
        ],
        "usage": {"prompt_tokens": 21, "total_tokens": 21, "completion_tokens": 0, "prompt_tokens_details": None},
    }


def test_pooling_answers_to_the_field():
    answer = ask(VLLM, "/pooling", {"input": "a", "task": "classify", "encoding_format": "float"}, [0.5])
    assert answer["data"] == [{"index": 0, "object": "pooling", "data": [0.5]}]
    assert answer["object"] == "list"


def test_score_answers_to_the_field():
    answer = ask(VLLM, "/v1/score", {"text_1": "q", "text_2": ["a", "b"]}, [0.5, -1.25])
    assert answer["data"] == [
        {"index": 0, "object": "score", "score": 0.5},
        {"index": 1, "object": "score", "score": -1.25},
    ]
    assert answer["usage"]["prompt_tokens"] == 21


def test_rerank_answers_to_the_field_and_cuts_at_top_n():
    answer = ask(VLLM, "/v2/rerank", {"query": "q", "documents": ["a", "b", "c"], "top_n": 2}, [1.0, 3.0, 2.0])
    assert answer.pop("id")
    assert answer == {
        "model": "tiny",
        "usage": {"prompt_tokens": 33, "total_tokens": 33},
        "results": [
            {"index": 1, "document": {"text": "b"}, "relevance_score": 3.0},
            {"index": 2, "document": {"text": "c"}, "relevance_score": 2.0},
        ],
    }


def test_a_rank_with_a_sigmoid_that_saturates_follows_the_raw_rewards():
    body = {"query": "q", "documents": ["a", "b", "c"], "use_activation": True}
    results = ask(VLLM, "/rerank", body, [40.0, 41.0, 42.0])["results"]
    assert [(each["index"], each["relevance_score"]) for each in results] == [(2, 1.0), (1, 1.0), (0, 1.0)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "identity"),
        ({"use_activation": None}, "identity"),
        ({"use_activation": False}, "identity"),
        ({"activation": False}, "identity"),
        ({"use_activation": True}, "sigmoid"),
    ],
)
def test_rewards_are_raw_unless_an_activation_is_asked_for(given, expected):
    assert read(VLLM, "/classify", {"input": "a"} | given).activation == expected


@pytest.mark.parametrize(
    ("body", "items", "names"),
    [
        ({"input": "a"}, [Text("a", "added")], ["input"]),
        ({"input": "a", "add_special_tokens": False}, [Text("a", "exact")], ["input"]),
        ({"input": ["a", "b"]}, [Text("a", "added"), Text("b", "added")], ["input[0]", "input[1]"]),
        ({"input": [5, 6]}, [TokenIds([5, 6])], ["input"]),
        ({"input": [[5, 6], [7]]}, [TokenIds([5, 6]), TokenIds([7])], ["input[0]", "input[1]"]),
        ({"messages": CHAT}, [Conversation(CHAT)], ["messages"]),
        (
            {"messages": CHAT, "chat_template_kwargs": {"tools": []}, "add_generation_prompt": True},
            [Conversation(CHAT, {"tools": [], "add_generation_prompt": True})],
            ["messages"],
        ),
    ],
)
def test_inputs_become_items(body, items, names):
    for path in ("/classify", "/pooling"):
        request = read(VLLM, path, body)
        assert (request.items, request.names) == (items, names)


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
def test_scores_are_of_one_query_or_of_one_for_each_document(names):
    one = read(VLLM, "/score", {names[0]: "q", names[1]: ["a", "b"]})
    assert one.items == [Pair("q", "a", as_conversation=True), Pair("q", "b", as_conversation=True)]
    assert one.names == [f"{names[1]}[0]", f"{names[1]}[1]"]
    each = read(VLLM, "/score", {names[0]: ["p", "q"], names[1]: ["a", "b"]})
    assert each.items == [Pair("p", "a", as_conversation=True), Pair("q", "b", as_conversation=True)]


@pytest.mark.parametrize(
    ("given", "truncation", "max_length"),
    [
        ({}, None, None),
        ({"truncation_side": "right"}, None, None),
        ({"truncate_prompt_tokens": -1}, "left", None),
        ({"truncate_prompt_tokens": 64}, "left", 64),
        ({"truncate_prompt_tokens": 64, "truncation_side": "right"}, "right", 64),
    ],
)
def test_truncation_is_asked_for(given, truncation, max_length):
    request = read(VLLM, "/classify", {"input": "a"} | given)
    assert (request.truncation, request.max_length) == (truncation, max_length)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/classify", {}, "input"),
        ("/classify", {"input": "a", "messages": CHAT}, "input"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/classify", {"messages": CHAT, "add_special_tokens": True}, "add_special_tokens"),
        ("/classify", {"messages": CHAT, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        (
            "/classify",
            {"messages": CHAT, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        ("/score", {"queries": "q"}, "queries"),
        ("/score", {"queries": "q", "text_2": ["a"]}, "queries"),
        ("/score", {"queries": ["p", "q"], "documents": ["a", "b", "c"]}, "queries"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(path, body, param):
    with pytest.raises(ServingError) as raised:
        read(VLLM, path, body)
    assert (raised.value.failure, raised.value.param) == ("invalid", param)


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/classify", "chat_template", "{{ messages }}"),
        ("/classify", "activation", True),
        ("/classify", "softmax", True),
        ("/classify", "normalize", True),
        ("/classify", "padding", "max_length"),
        ("/classify", "priority", 3),
        ("/classify", "truncate_prompt_tokens", -2),
        ("/classify", "truncation_side", "middle"),
        ("/classify", "use_activation", 1),
        ("/classify", "mm_processor_kwargs", {"x": 1}),
        ("/pooling", "task", "token_classify"),
        ("/pooling", "task", "embed"),
        ("/pooling", "encoding_format", "base64"),
        ("/pooling", "encoding_format", "bytes"),
        ("/pooling", "dimensions", 1),
        ("/rerank", "max_tokens_per_doc", 100),
        ("/rerank", "instruction", "be kind"),
    ],
)
def test_options_that_are_not_served_are_refused_by_name(path, field, value):
    body = {"query": "q", "documents": ["a"]} if path == "/rerank" else {"input": "a"}
    with pytest.raises(ValidationError) as raised:
        read(VLLM, path, body | {field: value})
    assert [each["loc"] for each in raised.value.errors()] == [(field,)]


def test_errors_have_the_shape_of_openai():
    assert VLLM.error(ServingError("invalid", "too short", param="input[3]")) == (
        400,
        {"error": {"message": "too short", "type": "BadRequestError", "param": "input[3]", "code": 400}},
    )
    assert VLLM.error(ServingError("overloaded", "full", retry_after=3))[0] == 503


def test_a_request_id_comes_back():
    assert ask(VLLM, "/classify", {"input": "a", "request_id": "7"}, [0.5])["id"] == "classify-7"


def test_models_are_listed_as_openai_lists_them():
    server = ServerInfo([ModelInfo("tiny", "v1", 7, "float32", 256)], "0.1", 100, 4096, 1000)
    routes = {route.path: route.answer(server) for route in VLLM.information}
    model = {"id": "tiny", "object": "model", "created": 7, "owned_by": "plaudit", "root": "tiny", "max_model_len": 256}
    assert routes == {"/v1/models": {"object": "list", "data": [model]}, "/version": {"version": "0.1"}}
