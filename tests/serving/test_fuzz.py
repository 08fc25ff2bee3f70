"""Random and nearly valid requests to every route: no failure but a typed one, and none that repeats the request."""

import json
import re

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from plaudit.serving.application import create_application
from plaudit.serving.dialects.native import NATIVE
from plaudit.serving.dialects.registry import DIALECTS

MARKER = "Zq7marker"
PAGE_AND_METRICS = ("text/html", "text/css", "text/javascript", "image/svg+xml", "text/plain; version=0.0.4")
BODIES = {
    f"/{dialect.name}{endpoint.path}": endpoint.body
    for dialect in [NATIVE, *DIALECTS.values()]
    for endpoint in dialect.endpoints
}
_DOCUMENTS = {"model": "m", "query": "a", "documents": ["b", "c"]}
VALID = {
    "/native/v1/rewards": {"items": [{"text": "a"}, {"prompt": "a", "response": "b"}]},
    "/native/v1/rank": {"prompt": "a", "responses": ["b", "c"]},
    "/native/v1/prefix-rewards": {"item": {"text": "a b c"}},
    **{path: {"input": ["a", "b"]} for path in BODIES if path.endswith(("classify", "pooling", "embeddings"))},
    **{path: _DOCUMENTS for path in BODIES if path.endswith("rerank")},
    **{path: {"queries": "a", "documents": ["b"]} for path in BODIES if path.endswith("score")},
    **{path: {"inputs": "a"} for path in ("/huggingface/", "/tei/predict")},
    **{path: {"query": "a", "texts": ["b", "c"]} for path in ("/tei/", "/tei/invocations", "/tei/rerank")},
    "/sglang/classify": {"text": ["a", "b"]},
    "/openrlhf/get_reward": {"query": ["a"], "prompts": ["a"], "labels": [1]},
    "/slime/": {"prompt": "a", "response": "b", "label": 1},
    "/llama_factory/v1/score/evaluation": {"model": "m", "messages": ["a"]},
}
settings.register_profile(
    "fuzz", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=25, database=None
)
FUZZ = settings.get_profile("fuzz")


@pytest.fixture(scope="module")
def client(server):
    """A client of the whole application, without a socket between."""
    application = create_application(server.service)
    with TestClient(application, base_url="http://127.0.0.1", headers={"accept-encoding": "identity"}) as client:
        yield client


def check(response):
    """Hold what is true of every response, whatever the request was."""
    status, kind = response.status_code, response.headers.get("content-type", "")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert status < 500 or status == 503, response.text
    if response.content and not kind.startswith(PAGE_AND_METRICS):
        assert kind == "application/json"
        json.loads(response.content.decode("utf-8"), parse_constant=pytest.fail)
    if status >= 400:
        assert MARKER.lower() not in (response.text + str(response.headers)).lower()
        assert len(response.content) < 2000


# Strategies


texts = st.sampled_from(["", MARKER, "a\0\u202e\uffff𐀀", "<|im_end|>", "x " * 30]) | st.text(max_size=8)
scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", MARKER]), "content": texts | values}
    ),
    min_size=1,
    max_size=3,
)


def near(schema, definitions):
    """Values that a JSON schema allows, with others among them."""
    if "$ref" in schema:
        return st.deferred(lambda: near(definitions[schema["$ref"].split("/")[-1]], definitions))
    if "anyOf" in schema:
        return st.one_of([near(each, definitions) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]]) | texts
    match schema.get("type"):
        case "object" if "properties" in schema:
            return near_object(schema, definitions)
        case "object":
            return st.dictionaries(texts, values, max_size=3) | messages.map(lambda each: each[0])
        case "array":
            return st.lists(near(schema.get("items", {}), definitions), min_size=1, max_size=4) | messages
        case "string":
            return texts
        case "integer":
            return st.integers(-2, 30) | st.integers()
        case "number":
            return st.floats(allow_nan=False) | st.integers()
        case "boolean":
            return st.booleans()
    return st.none()  # for a field that holds what the original server reads and Plaudit cannot do


def near_object(schema, definitions):
    """Objects with the required fields, some of the others, and at times a field that is wrong or unknown."""
    fields = {name: near(each, definitions) for name, each in schema["properties"].items()}
    required = {name: fields[name] for name in schema.get("required", [])}
    likely = st.fixed_dictionaries(required, optional={name: fields[name] for name in fields if name not in required})
    other = st.dictionaries(texts | st.sampled_from(sorted(fields)), values, max_size=1)
    return likely | st.tuples(likely, other).map(lambda pair: pair[0] | pair[1])


def bodies(path):
    """Bodies that differ from a valid one in a few fields, that the schema of the route allows, or that it does not."""
    schema = BODIES[path].model_json_schema(mode="validation")
    allowed = near(schema, schema.get("$defs", {}))
    shorter = st.sets(st.sampled_from(sorted(VALID[path])), max_size=1).map(
        lambda names: {name: each for name, each in VALID[path].items() if name not in names}
    )
    changed = st.tuples(shorter, allowed.filter(lambda each: isinstance(each, dict)), st.integers(0, 2)).map(
        lambda drawn: drawn[0] | dict(list(drawn[1].items())[: drawn[2]])
    )
    return changed | allowed | values


HEADERS = st.dictionaries(
    st.sampled_from([
        "x-plaudit-deadline", "content-type", "content-encoding", "authorization", "accept", "origin", "sec-fetch-site",
        "range", "if-none-match", "expect", "x-request-id", "host", "content-length", "transfer-encoding", "cookie",
        "x-forwarded-for", "upgrade",
    ]),
    st.sampled_from(["", "1", "-1", "nan", "1e999", "gzip", "bytes=0-1", "bytes=9-", "*", "text/html", MARKER])
    | st.from_regex(re.compile(r"[\x21-\x7e\xa0-\xff]{0,12}"), fullmatch=True),
    max_size=4,
)  # fmt: skip


# Tests


@pytest.mark.parametrize("path", sorted(BODIES))
def test_nearly_valid_bodies(client, path):
    answer = client.post(path, json=VALID[path])
    assert answer.status_code == 200, answer.text

    @FUZZ
    @given(bodies(path))
    def send(body):
        check(client.post(path, content=json.dumps(body).encode()))

    send()


@settings(FUZZ, max_examples=150)
@given(
    st.sampled_from(sorted(BODIES)),
    st.binary(max_size=30)
    | values.map(lambda each: json.dumps(each).encode()[:-1])
    | st.sampled_from([
        b"NaN", b'{"input": NaN}', b'{"items": [{"text": "\\ud800"}]}', b"[" * 10**5, b"9" * 5000,
        b'{"input": [1e999]}', b'{"inputs": "\xff"}', b"\xef\xbb\xbf{}", b"{}", b'{"input": "a", "input": []}',
    ]),
)  # fmt: skip
def test_bytes_that_are_no_body(client, path, content):
    response = client.post(path, content=content)
    check(response)
    assert 400 <= response.status_code < 500 or content.startswith(b"{}")


@settings(FUZZ, max_examples=300)
@given(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", MARKER.upper()]),
    st.sampled_from([*sorted(BODIES), "/", "/live", "/ready", "/metrics", "/info", "/page.js", "/classify"])
    | st.text(st.characters(codec="ascii", exclude_characters="?#", min_codepoint=32), max_size=12).map(
        lambda each: "/" + each
    )
    | st.sampled_from([f"/{MARKER}", f"/vllm/{MARKER}", "//", "/%00", "/../x", "/vllm", "/admin/reload", "/%ff%fe"]),
    HEADERS,
    st.sampled_from([b"", b"{}", b'{"input": "a"}', b'{"text": "a"}', MARKER.encode()]),
)
def test_any_method_path_and_headers(client, method, path, headers, content):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    try:
        response = client.request(method, path, headers=headers, content=content)
    except httpx2.InvalidURL:  # a path that the client itself cannot send
        return
    check(response)
