import asyncio
import base64
import hashlib

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from plaudit.serving.authentication import ApiKeys
from plaudit.serving.guards import OPEN_PATHS, Guards, is_trusted_host
from plaudit.serving.server_limits import ServerLimits
from plaudit.serving.serving_errors import ServingError

KEY, ADMIN_KEY = "key-of-the-test-client", "key-of-the-test-admin"
LIMITS = ServerLimits(max_body_bytes=10, max_queued_bytes=15, body_seconds=0.2)
PROMPT = "a secret prompt"
STATUS = {"unauthorized": 401, "forbidden": 403, "slow": 408, "body_too_large": 413, "compressed": 415}


def api_keys(key):
    return ApiKeys([hashlib.sha256(key.encode()).digest()])


def on_error(scope, error):
    content = {"failure": error.failure, "message": error.message, "path": scope["path"]}
    return JSONResponse(content, STATUS.get(error.failure, 500))


async def echo(request):
    return JSONResponse({"body": (await request.body()).decode(), "client": request.state.client})


async def fail(request):
    raise RuntimeError(PROMPT)


async def refuse(request):
    raise ServingError("forbidden", "Not that.")


ROUTES = [Route("/fail", fail), Route("/refuse", refuse), Route("/{path:path}", echo, methods=["GET", "POST"])]


def make_client(app=None, host="testserver", **options):
    app = app or Starlette(routes=ROUTES)
    guards = Guards(app, **{"limits": LIMITS, "on_error": on_error, **options})
    return TestClient(guards, base_url=f"http://{host}", raise_server_exceptions=False)


def failure(response):
    return response.json()["failure"]


# Headers of the response


@pytest.mark.parametrize("path", ["/v1/rewards", "/", "/fail", "/refuse"])
def test_every_response_is_kept_from_caches_sniffers_and_other_sites(path):
    headers = make_client().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert not [name for name in headers if name.startswith("access-control-") or name == "server"]


# Hosts


@pytest.mark.parametrize(
    "value",
    ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:1", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]:8000"],
)
def test_a_trusted_host_has_any_port_and_any_spelling(value):
    assert is_trusted_host(value, ["localhost", "127.0.0.1", "::1"])
    assert is_trusted_host(value, ["localhost", "127.0.0.1", "[::1]"])


@pytest.mark.parametrize(
    "value",
    [
        "", "evil.example", "localhost.evil.example", "evil@localhost", "localhost:80:80", "localhost:port", "::1",
        "[::1", "[::2]", "127.0.0.1.evil.example", "localhost/", "localhost, evil.example", " localhost", "127.1",
    ],
)  # fmt: skip
def test_another_host_is_not_trusted(value):
    assert not is_trusted_host(value, ["localhost", "127.0.0.1", "::1"])


def test_a_request_for_another_host_is_refused_but_for_the_health_routes():
    client = make_client(host="evil.example", trusted_hosts=["localhost"])
    refused = client.get("/v1/models")
    assert failure(refused) == "forbidden"
    assert "`--allowed_hosts`" in refused.text
    assert [client.get(path).status_code for path in sorted(OPEN_PATHS)] == [200, 200, 200]
    assert make_client(host="localhost:8000", trusted_hosts=["localhost"]).get("/v1/models").status_code == 200


@pytest.mark.parametrize("hosts", [[], [b"localhost", b"localhost"]])
def test_a_request_without_one_host_is_refused(hosts):
    answer = call({"headers": [(b"host", host) for host in hosts]}, trusted_hosts=["localhost"])
    assert answer[0]["status"] == 403


# Pages of other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "http://testserver:81"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site", "origin": "http://testserver"},
    ],
)
def test_a_page_of_another_site_can_post_nothing(headers):
    client = make_client()
    assert failure(client.post("/v1/rewards", headers=headers)) == "forbidden"
    assert client.get("/", headers=headers).status_code == 200, "a link to the page works"


@pytest.mark.parametrize(
    "headers", [{}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "http://testserver"}]
)
def test_the_own_page_and_programs_can_post(headers):
    assert make_client().post("/v1/rewards", headers=headers).status_code == 200


# Keys


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def basic(key):
    return {"authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


def test_every_path_but_the_health_routes_needs_a_key():
    client = make_client(keys=api_keys(KEY))
    for path in ["/", "/v1/rewards", "/metrics", "/vllm/classify", "/live/", "//live", "/nowhere"]:
        assert failure(client.get(path)) == "unauthorized", path
        assert failure(client.get(path, headers=bearer(KEY + "x"))) == "unauthorized", path
        assert client.get(path, headers=bearer(KEY)).status_code == 200, path
    assert [client.get(path).status_code for path in sorted(OPEN_PATHS)] == [200, 200, 200]


def test_a_browser_is_asked_to_sign_in_and_a_program_is_not():
    client = make_client(keys=api_keys(KEY))
    assert client.get("/").headers["www-authenticate"] == "Bearer"
    assert client.get("/", headers={"accept": "text/html,*/*"}).headers["www-authenticate"].startswith("Basic ")


def test_a_browsers_sign_in_works_for_the_own_page_alone():
    client = make_client(keys=api_keys(KEY))
    assert client.get("/", headers=basic(KEY)).status_code == 200
    assert client.post("/", headers=basic(KEY) | {"sec-fetch-site": "same-origin"}).status_code == 200
    assert failure(client.get("/", headers=basic(KEY) | {"sec-fetch-site": "cross-site"})) == "unauthorized"
    assert failure(client.post("/", headers=basic(KEY) | {"origin": "http://evil.example"})) == "forbidden"


def test_administration_needs_its_own_key_as_a_bearer():
    client = make_client(keys=api_keys(KEY), admin_keys=api_keys(ADMIN_KEY))
    for wrong in [{}, bearer(KEY), basic(ADMIN_KEY)]:
        assert failure(client.post("/admin/reload", headers=wrong)) == "unauthorized"
    assert client.post("/admin/reload", headers=bearer(ADMIN_KEY)).status_code == 200
    assert failure(client.get("/v1/models", headers=bearer(ADMIN_KEY))) == "unauthorized"
    assert client.get("/administration", headers=bearer(KEY)).status_code == 200


def test_administration_is_closed_without_keys_of_its_own():
    assert failure(make_client().post("/admin/reload")) == "forbidden"
    assert failure(make_client(keys=api_keys(KEY)).post("/admin/reload", headers=bearer(KEY))) == "forbidden"


def test_the_client_is_named_after_its_key_or_its_connection():
    named = make_client(keys=api_keys(KEY)).get("/", headers=bearer(KEY)).json()["client"]
    assert named == hashlib.sha256(KEY.encode()).hexdigest()[:8]
    assert make_client().get("/").json()["client"] == "testclient:50000"


# Bodies


def test_the_application_sees_the_whole_body():
    assert make_client().post("/", content=b"0123456789").json()["body"] == "0123456789"
    assert make_client().post("/", content=iter([b"012", b"", b"345"])).json()["body"] == "012345"


@pytest.mark.parametrize("content", [b"01234567890", [b"01234", b"567890"], [b"0" * 100]])
def test_a_body_that_is_too_large_is_refused_chunked_or_not(content):
    content = content if isinstance(content, bytes) else iter(content)
    assert failure(make_client().post("/", content=content)) == "body_too_large"


def test_a_large_content_length_is_refused_before_the_body_is_read():
    def received():
        raise AssertionError("the body was read")

    answer = call({"headers": [(b"content-length", b"9" * 30)]}, receive=received)
    assert answer[0]["status"] == 413


@pytest.mark.parametrize(
    "headers", [{"content-encoding": "gzip"}, {"content-encoding": "br, gzip"}, {"transfer-encoding": "gzip, chunked"}]
)
def test_a_compressed_body_is_refused(headers):
    assert failure(make_client().post("/", content=b"x", headers=headers)) == "compressed"


def test_identity_is_no_compression():
    assert make_client().post("/", content=b"x", headers={"content-encoding": "identity"}).status_code == 200


def call(scope, *, receive=None, app=None, guards=None, **options):
    """The messages that a request gets, whose body comes from an async function."""
    guards = guards or Guards(app or Starlette(routes=ROUTES), limits=LIMITS, on_error=on_error, **options)
    return asyncio.run(answer(guards, scope, receive))


async def answer(guards, scope, receive=None):
    messages = []

    async def send(message):
        messages.append(message)

    async def empty():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", **scope}
    await guards(scope, receive or empty, send)
    return messages


def test_a_body_that_never_ends_is_slow_however_often_a_piece_comes():
    async def drop():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"", "more_body": True}

    assert call({}, receive=drop)[0]["status"] == 408


def test_the_application_does_not_run_where_the_client_leaves_during_the_body():
    async def leave():
        return {"type": "http.disconnect"}

    assert call({}, receive=leave) == []


def test_bodies_of_all_requests_together_are_bounded_until_they_are_answered():
    async def run():
        enough = asyncio.Event()

        async def wait(scope, receive, send):
            await enough.wait()
            await JSONResponse({})(scope, receive, send)

        async def body():
            return {"type": "http.request", "body": b"0123456789", "more_body": False}

        guards = Guards(wait, limits=LIMITS, on_error=on_error)
        first = asyncio.create_task(answer(guards, {}, body))
        await asyncio.sleep(0)
        second = await answer(guards, {}, body)
        enough.set()
        await first
        return second, await answer(guards, {}, body)

    second, third = asyncio.run(run())
    assert b"overloaded" in second[1]["body"]
    assert third[0]["status"] == 200


def test_after_the_body_the_application_learns_that_the_client_has_left():
    messages = [{"type": "http.request", "body": b"x", "more_body": False}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def listen(scope, receive, send):
        await receive()
        await JSONResponse((await receive())["type"])(scope, receive, send)

    assert call({}, receive=receive, app=listen)[1]["body"] == b'"http.disconnect"'


# Failures of the application


def test_an_exception_is_answered_and_logged_without_its_message(caplog):
    async def app(scope, receive, send):
        raise RuntimeError(PROMPT)

    response = make_client(app).get("/v1/rewards")
    assert failure(response) == "model_fault"
    assert "secret" not in response.text + caplog.text
    assert "RuntimeError" in caplog.text
    assert "test_guards.py" in caplog.text


def test_an_exception_that_starlette_has_answered_is_logged_without_its_message(caplog):
    assert make_client().get("/fail").status_code == 500
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_is_written_in_the_words_of_the_path():
    async def app(scope, receive, send):
        raise ServingError("forbidden", "Not that.")

    response = make_client(app).get("/tei/predict")
    assert response.json() == {"failure": "forbidden", "message": "Not that.", "path": "/tei/predict"}


# Other protocols


def test_web_sockets_are_closed_at_once():
    with pytest.raises(WebSocketDisconnect), make_client().websocket_connect("/"):
        pass


def test_the_application_starts_and_stops():
    with make_client() as client:
        assert client.get("/").status_code == 200


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_the_body_of_a_request_without_a_key_is_not_read(path):
    async def answer(scope, receive, send):
        await JSONResponse({})(scope, receive, send)

    async def receive():
        raise AssertionError("the body was read")

    sent = []

    async def send(message):
        sent.append(message)

    guards = Guards(answer, limits=LIMITS, on_error=on_error, keys=api_keys(KEY))
    asyncio.run(guards({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send))
    assert sent[0]["status"] == 200
