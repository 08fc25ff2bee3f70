"""What holds for every dialect."""

import json
from typing import get_args

import pytest
from dialect_calls import ask, endpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.serving.dialects.registry import DIALECTS
from plaudit.serving.scoring_request import ModelInfo, ServerInfo
from plaudit.serving.serving_errors import Failure, ServingError

FAILURES = get_args(Failure)
STATUSES = {
    "invalid": {400, 422},
    "too_long": {400, 422},
    "unknown_model": {400, 404},
    "unknown_route": {404},
    "wrong_method": {405},
    "unauthorized": {401},
    "forbidden": {403},
    "body_too_large": {413},
    "compressed": {415},
    "slow": {408},
    "draining": {503},
    "model_fault": {424, 500},
    "dead": {503},
}
PATIENT = {"tei", "infinity", "cohere", "jina"}  # their clients take a 429 for "try again"; those of RL do not


def test_the_names_are_those_of_the_prefixes():
    assert set(DIALECTS) >= {
        "vllm", "sglang", "tei", "infinity", "cohere", "jina", "openrlhf", "slime", "llama_factory", "huggingface",
    }  # fmt: skip
    assert all(name == dialect.name for name, dialect in DIALECTS.items())


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", DIALECTS)
def test_every_failure_has_a_status_and_a_message_that_json_can_hold(name, failure):
    status, body = DIALECTS[name].error(ServingError(failure, "what to do", param="items[3]"))
    assert status in STATUSES.get(failure, {429} if name in PATIENT else {503})
    assert "what to do" in json.dumps(body, allow_nan=False)


def listed(field):
    return lambda texts: {field: texts}


def from_data(field):
    return lambda answer: [each[field][0] for each in answer["data"]]


def scores(answer):
    return [each[0]["score"] for each in answer]


# One body for N texts on each route, and where the answer has its N results. Those of a rank are sorted.
TEXTS = {
    ("vllm", "/classify"): (listed("input"), from_data("probs")),
    ("vllm", "/pooling"): (listed("input"), from_data("data")),
    ("sglang", "/classify"): (listed("text"), lambda answer: [each["embedding"][0] for each in answer]),
    ("sglang", "/v1/classify"): (listed("input"), from_data("probs")),
    ("sglang", "/v1/embeddings"): (listed("input"), from_data("embedding")),
    ("tei", "/predict"): (lambda texts: {"inputs": [[text] for text in texts]}, scores),
    ("infinity", "/classify"): (listed("input"), lambda answer: scores(answer["data"])),
    ("openrlhf", "/get_reward"): (listed("query"), lambda answer: answer["rewards"]),
    ("slime", "/"): (lambda texts: {"prompt": "p", "response": texts[0]}, lambda answer: [answer]),
    ("llama_factory", "/v1/score/evaluation"): (
        lambda texts: {"model": "m", "messages": texts},
        lambda answer: answer["scores"],
    ),
    ("huggingface", "/"): (listed("inputs"), scores),
}
for path in ("/score", "/v1/score"):
    TEXTS["vllm", path] = (
        lambda texts: {"queries": "q", "documents": texts},
        lambda answer: [each["score"] for each in answer["data"]],
    )
RANKS = (
    {("tei", path): ("texts", "score", lambda answer: answer) for path in ("/rerank", "/", "/invocations")}
    | {("sglang", "/v1/rerank"): ("documents", "score", lambda answer: answer)}
    | {
        key: ("documents", "relevance_score", lambda answer: answer["results"])
        for key in (
            ("vllm", "/rerank"), ("vllm", "/v1/rerank"), ("vllm", "/v2/rerank"), ("infinity", "/rerank"),
            ("cohere", "/v2/rerank"), ("jina", "/v1/rerank"),
        )
    }
)  # fmt: skip
REWARDS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8)


def test_every_route_is_among_those():
    routes = {(name, route.path) for name, dialect in DIALECTS.items() for route in dialect.endpoints}
    assert routes - {each for each in routes if each[0] == "native"} == TEXTS.keys() | RANKS.keys()


@pytest.mark.parametrize("key", TEXTS, ids=" ".join)
@settings(max_examples=20, deadline=None)
@given(rewards=REWARDS)
def test_an_answer_has_the_raw_rewards_in_the_order_of_the_texts(key, rewards):
    body, results = TEXTS[key]
    rewards = rewards[:1] if key[0] == "slime" else rewards
    answer = ask(DIALECTS[key[0]], key[1], body([f"text {n}" for n in range(len(rewards))]), rewards)
    assert results(answer) == rewards


@pytest.mark.parametrize("key", RANKS, ids=" ".join)
@settings(max_examples=20, deadline=None)
@given(rewards=REWARDS)
def test_a_rank_has_the_raw_rewards_best_first_with_their_indices(key, rewards):
    field, score, results = RANKS[key]
    body = {"model": "m", "query": "q", field: [f"text {n}" for n in range(len(rewards))]}
    answer = results(ask(DIALECTS[key[0]], key[1], body, rewards))
    assert [each["index"] for each in answer] == sorted(range(len(rewards)), key=lambda n: (-rewards[n], n))
    assert [each[score] for each in answer] == sorted(rewards, reverse=True)


@pytest.mark.parametrize("key", [*TEXTS, *RANKS], ids=" ".join)
def test_fields_that_a_client_adds_are_ignored(key):
    name, path = key
    body = TEXTS[key][0](["a"]) if key in TEXTS else {"model": "m", "query": "q", RANKS[key][0]: ["a"]}
    ask(DIALECTS[name], path, body | {"a_new_field": 1, "user": "u"}, [0.5])


@pytest.mark.parametrize("key", [*TEXTS, *RANKS], ids=" ".join)
def test_an_empty_list_is_refused(key):
    name, path = key
    if name == "slime":
        body = {"prompt": [], "response": "r"}
    else:
        body = TEXTS[key][0]([]) if key in TEXTS else {"model": "m", "query": "q", RANKS[key][0]: []}
    with pytest.raises(ValueError, match="at least 1 item"):
        endpoint(DIALECTS[name], path).body.model_validate(body)


def test_information_is_json_and_names_the_model_but_no_path():
    server = ServerInfo([ModelInfo("tiny", "v1", 7, "float32", None)], "0.1", 100, 4096, 1000)
    for dialect in DIALECTS.values():
        for route in dialect.information:
            assert json.dumps(route.answer(server), allow_nan=False)
