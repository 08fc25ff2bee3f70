"""Connections, met with raw bytes: every one of them ends, in an answer or without."""

import asyncio
import json
import re
import socket
from contextlib import asynccontextmanager

import pytest
import requests
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.server import ServerState

from plaudit.serving.guards import Guards
from plaudit.serving.http_protocol import bounded_protocol
from plaudit.serving.server_limits import ServerLimits

LIMITS = ServerLimits(max_header_bytes=500, max_headers=10, header_seconds=0.3, response_seconds=0.2)
PATIENT = ServerLimits(max_header_bytes=500, max_headers=10, header_seconds=60)
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"


async def echo(scope, receive, send):
    """Answer with the body; "/early" does so before the body, "/large" with 32 MiB."""
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    if scope["path"] == "/large":
        body = b"x" * 2**25
    if scope["path"] == "/headers":
        body = json.dumps([name.decode() for name, _ in scope["headers"]]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(limits=LIMITS, app=echo):
    """The port of a server on this machine, and the connections that it has."""
    options = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    options["timeout_keep_alive"] = 60 if limits is PATIENT else 1
    config, state = uvicorn.Config(app, http=bounded_protocol(limits), **options), ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: bounded_protocol(limits)(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1], state.connections
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()


def talk(*pieces, limits=LIMITS):
    """What the server sends until it closes the connection, for pieces that are sent one after the other."""

    async def run():
        async with serving(limits) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.01)
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            return answer

    return asyncio.run(run())


def statuses(answer):
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answer)]


def post(body=b"hello", path=b"/"):
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)


CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


# Ordinary requests


def test_requests_of_one_connection_are_answered_in_order_however_they_are_cut():
    whole = post(b"one") + post(b"two") + CLOSE
    for pieces in [[whole], [post(b"one"), post(b"two"), CLOSE], [bytes([byte]) for byte in whole]]:
        answer = talk(*pieces, limits=PATIENT)
        assert statuses(answer) == [200, 200, 200]
        assert answer.index(b"one") < answer.index(b"two")


def test_a_chunked_body_may_come_in_single_bytes():
    body = b"".join(b"1\r\nx\r\n" for _ in range(2000))
    answer = talk(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", body, b"0\r\n\r\n", CLOSE, limits=PATIENT)
    assert statuses(answer) == [200, 200]
    assert b"x" * 2000 in answer


def test_a_body_may_be_larger_than_the_headers():
    assert b"x" * 10**6 in talk(post(b"x" * 10**6), CLOSE, limits=PATIENT)


def test_an_idle_connection_is_closed_after_the_keep_alive_time():
    assert statuses(talk(post())) == [200]


# Size and number of headers


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /" + b"x" * 600 + b" HTTP/1.1\r\nHost: a\r\n\r\n"],
        [HEAD + b"X: " + b"x" * 600 + b"\r\n\r\n"],
        [HEAD + b"X: " + b"x" * 600],
        [HEAD + b"X" * 600],
        [HEAD + b"X: " + b"x" * 300, b"x" * 300],
        [post() + HEAD + b"X: " + b"x" * 600 + b"\r\n\r\n"],
        [HEAD + b"".join(b"X: x\r\n" for _ in range(10)) + b"\r\n"],
        [b"\r\n" * 300],
    ],
)
def test_headers_that_are_too_large_or_too_many_are_431(pieces):
    answer = talk(*pieces, limits=PATIENT)
    if pieces[0].startswith(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length"):
        assert statuses(answer) in ([200, 431], []), "an earlier request of the connection may not be mixed up"
    else:
        assert statuses(answer) == [431]
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["type"] == "invalid"


def test_headers_below_the_limits_are_accepted():
    headers = b"".join(b"X: x\r\n" for _ in range(8)) + b"Y: " + b"y" * 350 + b"\r\n\r\n"
    assert statuses(talk(HEAD + headers + CLOSE, limits=PATIENT)) == [200, 200]


def test_headers_after_a_chunked_body_are_bounded_and_dropped():
    chunked = b"POST /headers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    answer = talk(chunked + b"Authorization: x\r\n\r\n" + CLOSE, limits=PATIENT)
    assert b'["host", "transfer-encoding"]' in answer
    assert statuses(talk(chunked + b"X: " + b"x" * 600 + b"\r\n\r\n", limits=PATIENT)) == [431]
    assert statuses(talk(chunked, b"X: " + b"x" * 600, limits=PATIENT)) == [431]


def test_extensions_of_chunks_are_bounded():
    assert statuses(talk(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 600, limits=PATIENT)) == [431]


# Time


def test_a_connection_that_sends_nothing_is_closed():
    assert talk() == b""


@pytest.mark.parametrize("pieces", [[b"G"], [HEAD], [HEAD, b"X: "], [b"\r\n"]])
def test_headers_that_stop_are_408(pieces):
    answer = talk(*pieces)
    assert statuses(answer) == [408]
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["type"] == "slow"


def test_headers_that_arrive_byte_by_byte_have_no_more_time():
    async def run():
        async with serving() as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answer = asyncio.create_task(reader.read())
            writer.write(HEAD + b"X: ")
            while not answer.done():
                writer.write(b"x")
                await asyncio.wait([answer], timeout=0.02)
            writer.close()
            return answer.exception() or answer.result()

    answer = asyncio.run(asyncio.wait_for(run(), 30))
    assert isinstance(answer, ConnectionError) or statuses(answer) == [408]


@pytest.mark.parametrize("rest", [b"GET / HT", b"\r\n"])
def test_later_headers_have_the_same_time(rest):
    assert statuses(talk(post(), rest)) == [200, 408]


def test_the_time_of_headers_does_not_cut_an_earlier_answer():
    async def slow(scope, receive, send):
        await asyncio.sleep(0.7)
        await echo(scope, receive, send)

    async def run():
        async with serving(app=slow) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post() + b"GET / HT")
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            return answer

    assert statuses(asyncio.run(run()))[0] == 200


def test_a_body_that_goes_on_after_its_answer_is_cut_off():
    async def run():
        async with serving() as (port, connections):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            answer = await reader.readuntil(b"\r\n\r\n")
            while connections:
                writer.write(b"5\r\nhello\r\n")
                await asyncio.sleep(0.01)
            writer.close()
            return answer

    assert statuses(asyncio.run(asyncio.wait_for(run(), 30))) == [200]


def test_a_client_may_send_the_rest_of_a_body_that_was_answered_early():
    head = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234"
    assert statuses(talk(head, b"56789" + CLOSE, limits=PATIENT)) == [200, 200]


def test_a_client_that_sends_a_body_which_is_too_large_reads_why():
    limit = 10**5

    def on_error(scope, error):
        return JSONResponse({"failure": error.failure}, 413)

    async def run(send):
        limits = ServerLimits(max_body_bytes=limit, header_seconds=60)
        async with serving(limits, Guards(echo, limits=limits, on_error=on_error)) as (port, _):
            return await asyncio.to_thread(send, f"http://127.0.0.1:{port}/")

    for body in (b"x" * (20 * limit), iter([b"x" * limit] * 20)):
        answer = asyncio.run(run(lambda url, body=body: requests.post(url, data=body, timeout=30)))
        assert answer.status_code == 413
        assert answer.json() == {"failure": "body_too_large"}


@pytest.mark.parametrize("request_of_it", [post(path=b"/large"), CLOSE.replace(b"/ ", b"/large ")])
def test_a_client_that_does_not_read_is_dropped(request_of_it):
    async def run():
        async with serving() as (port, connections):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(request_of_it)
            while not connections:
                await asyncio.sleep(0.01)
            while connections:
                await asyncio.sleep(0.01)
            client.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_client_that_reads_slowly_gets_everything():
    async def run():
        async with serving(PATIENT) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(CLOSE.replace(b"/ ", b"/large "))
            size = 0
            while piece := await reader.read(2**20):
                size += len(piece)
                await asyncio.sleep(0.005)
            writer.close()
            return size

    assert asyncio.run(asyncio.wait_for(run(), 30)) > 2**25


# What is no request


@pytest.mark.parametrize(
    "request_of_it",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    ],
)
def test_what_is_malformed_is_400_and_the_connection_is_closed(request_of_it):
    answer = talk(request_of_it, limits=PATIENT)
    assert statuses(answer) == [400]
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["type"] == "invalid"
    assert b"connection: close" in answer


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"other"])
def test_a_request_for_another_protocol_is_answered_in_this_one_and_the_connection_is_closed(upgrade):
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %s\r\n" % upgrade
    assert statuses(talk(request + b"\r\n" + CLOSE, limits=PATIENT)) == [200]
    answer = talk(request + b"Content-Length: 5\r\n\r\nhello" + CLOSE, limits=PATIENT)
    assert statuses(answer) == [400]
    assert b"may not have the header Upgrade" in answer


def test_the_application_learns_that_a_body_is_malformed():
    left = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            pass
        left.append(message["type"])

    async def run():
        async with serving(PATIENT, app) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await asyncio.sleep(0.02)
            writer.write(b"nonsense\r\n")
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            return answer

    assert statuses(asyncio.run(run())) == [400]
    assert left == ["http.disconnect"]
