import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from starlette.testclient import TestClient

from plaudit.serving import application
from plaudit.serving.application import create_application
from plaudit.serving.authentication import ApiKeys
from plaudit.serving.dialects.registry import DIALECTS
from plaudit.serving.guards import OPEN_PATHS
from plaudit.serving.json_body import read_json

QUESTION = [{"role": "user", "content": "Is the sky blue?"}]
ANSWERS = ["Yes, it is.", "No!", "The sky is green, thank you very much.", ""]
TEXTS = ["The quick brown fox", "The quick brown fox jumps", "Two plus two is four, not five. " * 3, "!"]
KEY = "a-key-of-more-than-sixteen-letters"


@pytest.fixture
def keys(tmp_path):
    """Keys from a file that holds one."""
    (tmp_path / "keys.txt").write_text(KEY, encoding="utf-8")
    return ApiKeys.from_file(tmp_path / "keys.txt")


def post(server, path, body, **headers):
    return requests.post(server.url + path, json=body, headers=headers, timeout=30)


def messages(answer):
    return [*QUESTION, {"role": "assistant", "content": answer}]


def test_items_of_every_form_get_the_rewards_of_the_reward_model(server):
    model = server.reward_model
    ids = model.token_ids(TEXTS)
    items = (
        [{"text": text} for text in TEXTS]
        + [{"messages": messages(answer)} for answer in ANSWERS]
        + [{"prompt": QUESTION, "response": answer} for answer in ANSWERS]
        + [{"prompt": "Is it? ", "response": answer} for answer in ANSWERS]
        + [{"ids": each} for each in ids]
    )
    expected = [
        *model.score(TEXTS),
        *model.score([messages(answer) for answer in ANSWERS]),
        *model.score([QUESTION] * 4, ANSWERS),
        *model.score(["Is it? "] * 4, ANSWERS),
        *model.score(TEXTS),
    ]
    answer = post(server, "/v1/rewards", {"items": items}).json()
    np.testing.assert_allclose(answer["rewards"], expected, atol=1e-5)
    assert answer["tokens"][:4] == [len(each) for each in ids]
    assert answer["truncated"] == [False] * 20
    assert answer["weight_version"] == server.service.info().models[0].weight_version
    assert answer["usage"]["tokens"] == sum(answer["tokens"]) > answer["usage"]["distinct_tokens"] > 0
    assert answer["timing"]["total_ms"] >= answer["timing"]["run_ms"] >= 0


def test_a_reward_is_the_same_alone_in_any_batch_shuffled_and_at_the_same_time(server):
    texts = [f"Is the {noun} {kind}? Yes." for noun in ("sky", "dog", "fox") for kind in ("blue", "lazy", "quick")]
    expected = dict(zip(texts, server.reward_model.score(texts).tolist(), strict=True))
    order = random.Random(0)
    batches = [order.sample(texts, order.randint(1, len(texts))) for _ in range(40)]

    def scored(batch):
        return post(server, "/v1/rewards", {"items": [{"text": text} for text in batch]}).json()["rewards"]

    with ThreadPoolExecutor(16) as pool:
        for batch, rewards in zip(batches, pool.map(scored, batches), strict=True):
            np.testing.assert_allclose(rewards, [expected[text] for text in batch], atol=1e-5)


def test_normalised_rewards_are_those_of_the_reward_model(server):
    body = {"items": [{"text": text} for text in TEXTS], "normalize": True}
    expected = server.reward_model.score(TEXTS, normalize=True)
    np.testing.assert_allclose(post(server, "/v1/rewards", body).json()["rewards"], expected, atol=1e-4)


def test_ranks_are_those_of_the_reward_model(server):
    expected = server.reward_model.rank(QUESTION, ANSWERS)
    answer = post(server, "/v1/rank", {"prompt": QUESTION, "responses": ANSWERS, "top_n": 3}).json()
    assert [each["index"] for each in answer["results"]] == [each.index for each in expected][:3]
    for name in ("reward", "win_probability"):
        wanted = [getattr(each, name) for each in expected][:3]
        np.testing.assert_allclose([each[name] for each in answer["results"]], wanted, atol=1e-5)


@pytest.mark.parametrize("every", [1, 4])
def test_prefix_rewards_are_those_of_the_prefixes(server, every):
    text = "Is the sky blue? Yes, the sky is blue. " * 2
    (ids,) = server.reward_model.token_ids([text])
    answer = post(server, "/v1/prefix-rewards", {"item": {"text": text}, "every": every}).json()
    positions = answer["positions"]
    assert positions == [*range(every, len(ids), every), len(ids)]
    expected = server.reward_model.engine.score([ids[:stop] for stop in positions])
    np.testing.assert_allclose(answer["rewards"], expected, atol=1e-5)
    assert "".join(answer["pieces"]).startswith(text)
    assert answer["usage"]["tokens"] == answer["tokens"] == len(ids)


def test_an_overlong_sequence_is_an_error_unless_truncation_is_asked_for(server):
    text = "The quick brown fox. " * 100
    refused = post(server, "/v1/rewards", {"items": [{"text": "short"}, {"text": text}]})
    assert refused.status_code == 422
    assert refused.json()["error"]["type"] == "too_long"
    assert refused.json()["error"]["param"] == "items[1]"
    cut = post(server, "/v1/rewards", {"items": [{"text": text}], "truncation": "left"})
    np.testing.assert_allclose(cut.json()["rewards"], server.reward_model.score([text]), atol=1e-5)
    assert cut.json()["truncated"] == [True]
    assert cut.headers["X-Plaudit-Truncated"] == "1"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": [{"text": "a", "ids": [1]}]}, "items[0]"),
        ({"items": [{"prompt": "a"}]}, "items[0]"),
        ({"items": [{"ids": [-1]}]}, "items[0].ids[0]"),
        ({"items": [{"ids": [10**6]}]}, "items[0]"),
        ({"items": [{"text": "a"}], "normalise": True}, None),
        ({"items": [{"text": "a"}], "template_kwargs": {"chat_template": "{{ 1 }}"}}, "template_kwargs.chat_template"),
        ({"items": [{"text": "a"}], "calibrated": True}, "calibrated"),
        ([], None),
    ],
)
def test_a_malformed_body_is_an_error_that_names_the_field(server, body, param):
    answer = post(server, "/v1/rewards", body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["type"] == "invalid"
    assert error["param"] == param


def test_a_body_that_is_no_json_is_an_error(server):
    for data in (b"", b"{", b'{"items": NaN}', b"\xff"):
        answer = requests.post(server.url + "/v1/rewards", data=data, timeout=30)
        assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid")


def test_health_says_that_the_model_runs(server):
    for path in ("/live", "/ready", "/health"):
        assert requests.get(server.url + path, timeout=30).status_code == 200
    assert requests.get(server.url + "/health", timeout=30).content == b""


def test_an_unknown_route_or_method_is_an_error_in_json(server):
    assert requests.get(server.url + "/nothing", timeout=30).json()["error"]["type"] == "unknown_route"
    answer = requests.get(server.url + "/v1/rewards", timeout=30)
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "wrong_method")


def test_a_dialect_stands_under_its_name_and_takes_the_bare_paths(new_service):
    service = new_service()
    for name in DIALECTS:
        client = TestClient(create_application(service, dialect=name), base_url="http://127.0.0.1")
        for endpoint in DIALECTS[name].endpoints:
            bare, prefixed = (client.post(prefix + endpoint.path, content=b"{") for prefix in ("", f"/{name}"))
            assert bare.status_code == prefixed.status_code
            assert bare.json().keys() == prefixed.json().keys()  # the error has the shape of the dialect


def route_table(application):
    """Every path with each of its methods."""
    for route in application.routes:
        for method in sorted(route.methods):
            yield method, route.path


def test_every_route_but_the_health_routes_needs_a_key(new_service, keys):
    application = create_application(new_service(), keys=keys)
    client = TestClient(application, base_url="http://127.0.0.1")
    table = list(route_table(application))
    assert len(table) > 50
    for method, path in table:
        without = client.request(method, path)
        wrong = client.request(method, path, headers={"Authorization": "Bearer " + KEY[::-1]})
        right = client.request(method, path, headers={"Authorization": f"Bearer {KEY}"})
        assert right.status_code != 401, path
        expected = {200} if path in OPEN_PATHS else {401}
        assert {without.status_code, wrong.status_code} == expected, (method, path)
    assert client.get("/nothing").status_code == 401  # an unknown path tells nothing either


def test_several_models_are_told_apart_by_name(new_service, model_folder):
    from plaudit import RewardModel

    models = {name: RewardModel.from_pretrained(model_folder) for name in ("one", "two")}
    models["two"].model.score.weight.data.mul_(2)
    client = TestClient(create_application(new_service(models)), base_url="http://127.0.0.1")

    def score(model):
        return client.post("/v1/rewards", json={"items": [{"text": "The sky"}]} | model)

    one, two = (score({"model": name}).json() for name in models)
    assert (one["model"], two["model"]) == ("one", "two")
    np.testing.assert_allclose(np.array(two["rewards"]), 2 * np.array(one["rewards"]), rtol=1e-4)
    assert score({}).json()["model"] == "one"
    unknown = score({"model": "three-secret"})
    assert unknown.status_code == 404
    assert "one, two" in unknown.json()["error"]["message"]
    assert "secret" not in unknown.text


def test_one_model_answers_to_any_name(server):
    body = {"items": [{"text": "The sky"}], "model": "/some/local/path"}
    assert post(server, "/v1/rewards", body).json()["model"] == "tiny"


def test_the_metrics_count_what_was_scored(new_service):
    from prometheus_client.parser import text_string_to_metric_families

    client = TestClient(create_application(new_service()), base_url="http://127.0.0.1")
    answers = [client.post("/v1/rewards", json={"items": [{"text": text} for text in TEXTS]}) for _ in range(3)]
    client.post("/v1/rewards", json={"items": []})
    text = client.get("/metrics").text
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["plaudit_items_total",] == 3 * len(TEXTS)
    assert values["plaudit_tokens_total",] == sum(answer.json()["usage"]["tokens"] for answer in answers)
    distinct = sum(answer.json()["usage"]["distinct_tokens"] for answer in answers)
    assert values["plaudit_distinct_tokens_total",] == distinct
    assert values["plaudit_requests_total", "native", "/v1/rewards", "200"] == 3
    assert values["plaudit_requests_total", "native", "/v1/rewards", "422"] == 1
    assert values["plaudit_failures_total", "invalid"] == 1
    assert values["plaudit_queued_items",] == 0


def test_no_prompt_and_no_key_reaches_the_log(new_service, keys, caplog):
    caplog.set_level("DEBUG")
    client = TestClient(create_application(new_service(), keys=keys), base_url="http://127.0.0.1")
    headers = {"Authorization": f"Bearer {KEY}"}
    for body in ({"items": [{"text": "plugh"}]}, {"items": [{"plugh": 1}]}, {"items": [{"messages": ["plugh"]}]}):
        client.post("/v1/rewards?plugh=1", json=body, headers=headers)
    written = "".join(record.getMessage() for record in caplog.records if record.name.startswith("plaudit"))
    assert not re.search("plugh|a-key", written)


def test_an_answer_that_a_model_cannot_give_is_an_error_and_its_neighbours_are_right(new_service, model_folder):
    from plaudit import RewardModel

    model = RewardModel.from_pretrained(model_folder)
    poisoned = model.token_ids(["zq"])[0][0]
    expected = model.score(["The sky", "Two plus two"])
    model.model.model.embed_tokens.weight.data[poisoned] = float("nan")
    application = create_application(new_service({"tiny": model}))
    client = TestClient(application, base_url="http://127.0.0.1")

    def score(text):
        return client.post("/v1/rewards", json={"items": [{"text": text}]})

    with ThreadPoolExecutor(3) as pool:
        first, bad, second = pool.map(score, ["The sky", "zq", "Two plus two"])
    np.testing.assert_allclose([first.json()["rewards"][0], second.json()["rewards"][0]], expected, atol=1e-5)
    assert bad.status_code == 500
    assert json.loads(bad.text)["error"]["type"] == "model_fault"
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("letters", "elsewhere"), [(10, False), (300_000, True)])
def test_a_large_body_is_read_outside_the_event_loop(new_service, monkeypatch, letters, elsewhere):
    threads = []

    def read_and_note(data, limits):
        threads.append(threading.current_thread().name)
        return read_json(data, limits)

    monkeypatch.setattr(application, "read_json", read_and_note)
    with TestClient(create_application(new_service())) as client:
        client.post("/v1/rewards", json={"items": [{"text": "a" * letters}]})
    assert [name.startswith("reading") for name in threads] == [elsewhere]
