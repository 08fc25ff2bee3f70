"""The clients that the dialects are for, on a server whose reward of a text is its length.

Cohere, OpenAI and huggingface_hub come as their own libraries. The clients inside verl, OpenRLHF, slime and
LLaMA-Factory are a few lines each; the tests send what those lines send and read what they read.
"""

import json

import cohere
import openai
import pytest
import requests
from dialect_calls import scored
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from pydantic import ValidationError
from running_server import running
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from plaudit.serving.dialects.registry import DIALECTS
from plaudit.serving.scoring_request import ModelInfo, Pair, ServerInfo, Text
from plaudit.serving.serving_errors import ServingError

SERVER = ServerInfo([ModelInfo("tiny", "v1", 7, "float32", 256)], "0.1", 100, 4096, 1000)


def length_of(item):
    """The reward of an item in these tests."""
    if isinstance(item, Text):
        return float(len(item.text))
    return float(len(item.response)) if isinstance(item, Pair) else 0.0


def routes_of(dialect, failing):
    def scoring(endpoint):
        async def handle(request):
            try:
                if failing:
                    raise failing.pop()
                body = endpoint.body.model_validate(await request.json())
                call = endpoint.read(body)
                return JSONResponse(endpoint.answer(body, scored([length_of(each) for each in call.items])))
            except ValidationError as error:
                status, content = dialect.error(ServingError("invalid", error.errors()[0]["msg"]))
                return JSONResponse(content, status)
            except ServingError as error:
                status, content = dialect.error(error)
                return JSONResponse(content, status, {"Retry-After": "1"})

        return handle

    def informing(information):
        return lambda request: JSONResponse(information.answer(SERVER))

    for endpoint in dialect.endpoints:
        path = f"/{dialect.name}{endpoint.path}".rstrip("/")
        yield Route(path, scoring(endpoint), methods=list(endpoint.methods))
    for information in dialect.information:
        yield Route(f"/{dialect.name}{information.path}", informing(information))


class LengthServer:
    """All dialects over HTTP; requests fail as long as there are errors in `failing`."""

    def __init__(self):
        self.failing = []
        self.application = Starlette(
            routes=[route for each in DIALECTS.values() for route in routes_of(each, self.failing)]
        )

    def fails_once(self, failure):
        self.failing.append(ServingError(failure, "what to do"))


@pytest.fixture(scope="module")
def server():
    served = LengthServer()
    with running(served.application) as url:
        served.url = url
        yield served


def test_cohere_ranks(server):
    client = cohere.ClientV2(api_key="any", base_url=f"{server.url}/cohere")
    answer = client.rerank(model="any", query="q", documents=["a", "abc", "ab"], top_n=2)
    assert [(each.index, each.relevance_score) for each in answer.results] == [(1, 3.0), (2, 2.0)]
    assert answer.meta.api_version.version == "2"


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ("invalid", cohere.BadRequestError),
        ("unauthorized", cohere.UnauthorizedError),
        ("unknown_model", cohere.NotFoundError),
        ("overloaded", cohere.TooManyRequestsError),
        ("model_fault", cohere.InternalServerError),
    ],
)
def test_cohere_knows_the_errors(server, failure, error):
    client = cohere.ClientV2(api_key="any", base_url=f"{server.url}/cohere")
    server.fails_once(failure)
    with pytest.raises(error) as raised:
        client.rerank(model="any", query="q", documents=["a"], request_options={"max_retries": 0})
    assert raised.value.body["message"] == "what to do"


def test_cohere_tries_again_after_a_full_queue_when_retry_after_says(server, monkeypatch):
    waits = []
    monkeypatch.setattr("cohere.core.http_client.time.sleep", waits.append)
    client = cohere.ClientV2(api_key="any", base_url=f"{server.url}/cohere")
    server.fails_once("overloaded")
    answer = client.rerank(model="any", query="q", documents=["abc"], request_options={"max_retries": 2})
    assert answer.results[0].relevance_score == 3.0
    assert len(waits) == 1
    assert 1 <= waits[0] < 2


def test_openai_lists_the_models(server):
    client = openai.OpenAI(api_key="any", base_url=f"{server.url}/vllm/v1", max_retries=0)
    (model,) = client.models.list().data
    assert (model.id, model.created, model.owned_by) == ("tiny", 7, "plaudit")


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_openai_reads_rewards_as_embeddings(server, options):
    """Without an option, OpenAI's client asks for base64 and decodes it."""
    client = openai.OpenAI(api_key="any", base_url=f"{server.url}/sglang/v1", max_retries=0)
    answer = client.embeddings.create(model="any", input=["a", "abc"], **options)
    assert [each.embedding for each in answer.data] == [[1.0], [3.0]]
    assert answer.usage.total_tokens == 21


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ("invalid", openai.BadRequestError),
        ("too_long", openai.BadRequestError),
        ("unauthorized", openai.AuthenticationError),
        ("forbidden", openai.PermissionDeniedError),
        ("unknown_model", openai.NotFoundError),
        ("overloaded", openai.InternalServerError),
        ("model_fault", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_openai_knows_the_errors(server, dialect, failure, error):
    client = openai.OpenAI(api_key="any", base_url=f"{server.url}/{dialect}", max_retries=0)
    server.fails_once(failure)
    with pytest.raises(error, match="what to do"):
        client.post("/classify", body={"input": "a", "text": "a"}, cast_to=object)


@pytest.fixture
def online(monkeypatch):
    """huggingface_hub, which the tests keep offline, may reach this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_huggingface_hub_classifies(server, online):
    client = InferenceClient(base_url=f"{server.url}/huggingface", token="any")
    (element,) = client.text_classification("abc", function_to_apply="none")
    assert (element.label, element.score) == ("LABEL_0", 3.0)
    with pytest.raises(HfHubHTTPError, match="422"):
        client.text_classification("abc", function_to_apply="softmax")


def test_huggingface_hub_reads_the_predictions_of_tei(server, online):
    client = InferenceClient(base_url=f"{server.url}/tei/predict", token="any")
    element = client.text_classification("abc")
    assert (element.label, element.score) == ("LABEL_0", 3.0)


# Clients of reinforcement learning. Each sends one sample or one batch, and looks at one place of the answer.


def test_verl_reads_the_last_probability_of_vllm(server):
    payload = {"model": "/models/any", "input": "abc", "use_activation": False}
    answer = requests.post(f"{server.url}/vllm/classify", json=payload, timeout=10).json()
    assert answer["data"][-1]["probs"][-1] == 3.0


def test_verl_reads_the_last_number_of_the_embedding_of_sglang(server):
    payload = {"model": "/models/any", "input": "abc"}
    answer = requests.post(f"{server.url}/sglang/v1/embeddings", json=payload, timeout=10).json()
    assert answer["data"][-1]["embedding"][-1] == 3.0


def test_openrlhf_reads_rewards_scores_and_logs(server):
    data = {"query": ["ab", "abc"], "prompts": ["a", "a"], "labels": ["x", None]}
    answer = requests.post(f"{server.url}/openrlhf/get_reward", json=data, timeout=10).json()
    assert (answer["rewards"], answer["scores"], answer["extra_logs"]) == ([2.0, 3.0], [2.0, 3.0], {})


@pytest.mark.parametrize(("prompt", "reward"), [("a", 3.0), ([{"role": "user", "content": "a"}], 2.0)])
def test_slime_reads_a_bare_number(server, prompt, reward):
    payload = {"prompt": prompt, "response": "bc", "label": {"answer": 1}}
    assert requests.post(f"{server.url}/slime", json=payload, timeout=10).json() == reward


def test_llama_factory_reads_scores_without_a_look_at_the_status(server):
    payload = {"model": "model", "messages": ["ab", "abc"]}
    response = requests.post(f"{server.url}/llama_factory/v1/score/evaluation", json=payload, timeout=10)
    assert json.loads(response.text)["scores"] == [2.0, 3.0]


@pytest.mark.parametrize("path", ["vllm/classify", "sglang/v1/embeddings", "openrlhf/get_reward", "slime"])
def test_a_client_that_gives_up_after_a_4xx_gets_a_503_when_the_queue_is_full(server, path):
    server.fails_once("overloaded")
    assert requests.post(f"{server.url}/{path}", json={}, timeout=10).status_code == 503
