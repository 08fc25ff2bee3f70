"""A bounded load on an HTTP server: clients in a closed loop, or arrivals at a fixed rate.

`generate(address, loads)` runs this file as a process of its own, so that the load costs the measuring process nothing,
and returns the answers. In the closed loop, each client sends its next request when the last one is answered. In the
open loop, requests arrive at a fixed rate whether the server keeps up or not; their latency counts from the moment at
which they were due, and `lag` says how much of it was the generator's own delay. Connections are kept alive.

The client speaks just enough HTTP/1.1 for a server that sends Content-Length, and costs about 0.1 ms of CPU a request:
on two cores, what a load generator takes is missing in the server.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import urllib.parse
from dataclasses import asdict, dataclass, field
from pathlib import Path

MOST_CONNECTIONS = 4000  # of one load; an arrival beyond them is not sent
IDLE_SECONDS = 2.0  # a connection that was idle for longer is opened anew: servers close theirs after a few seconds
PATIENCE = 180.0  # seconds that a request waits for its answer

NOT_SENT, LOST = -1, 0  # in place of a status: no connection was left; the connection broke or the answer never came


@dataclass(frozen=True)
class Request:
    """A request, and the JSON value of its body."""

    path: str
    body: object
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """Requests, and when they are sent. Bounded by `seconds`, by the requests, or by the other loads of the run.

    Attributes:
        name: Name of the load, by which its answers are found.
        requests: What is sent, in this order.
        clients: Clients of the closed loop, if it is one.
        rate: Arrivals a second of the open loop, if it is one.
        seconds: Time after which nothing more is sent; `None` for no such bound.
        repeats: Start from the first request again after the last.
        background: Send nothing more once all loads that are not in the background have ended.
        delay: Seconds before the first request.
    """

    name: str
    requests: list[Request]
    clients: int = 0
    rate: float = 0.0
    seconds: float | None = None
    repeats: bool = False
    background: bool = False
    delay: float = 0.0

    def __post_init__(self):
        if bool(self.clients) == bool(self.rate):
            raise ValueError("a load has either clients or a rate")
        if self.repeats and self.seconds is None and not self.background:
            raise ValueError("a load that repeats its requests needs an end: seconds, or the background")


@dataclass(frozen=True)
class Answer:
    """An answer, or what came in its place.

    Attributes:
        index: Index of the request in its load.
        status: HTTP status, `LOST` or `NOT_SENT`.
        sent: Seconds from the beginning of the run to the sending of the request.
        latency: Seconds to the end of the answer: from the sending (closed loop), or from when it was due (open loop).
        lag: Seconds by which the request was sent too late (open loop).
        size: Bytes of the body.
        body: The body.
    """

    index: int
    status: int
    sent: float
    latency: float
    lag: float
    size: int
    body: str

    @property
    def ended(self):
        """Seconds from the beginning of the run to the end of the answer."""
        return self.sent + self.latency - self.lag

    def json(self):
        """The JSON value of the body, or `None`."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def percentile(values, share):
    """The least value that is at least as great as this share of the values; NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def generate(address, loads):
    """Run the loads together in a process of their own; return their answers by name, in the order of their ends."""
    with tempfile.TemporaryDirectory() as folder:
        plan, result = Path(folder, "plan.json"), Path(folder, "result.json")
        plan.write_text(json.dumps({"address": address, "loads": [asdict(load) for load in loads]}))
        subprocess.run([sys.executable, __file__, str(plan), str(result)], check=True)
        answers = json.loads(result.read_text())
    return {name: [Answer(*columns) for columns in found] for name, found in answers.items()}


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self):
        self.transport, self.answer, self.received, self.used = None, None, bytearray(), 0.0

    def connection_made(self, transport):
        """Keep the transport."""
        self.transport = transport

    def connection_lost(self, exc):  # noqa: ARG002
        """Give up the request that waits, if one does."""
        self._settle((LOST, b""))

    def data_received(self, data):
        """Settle the request that waits once its answer is complete."""
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.received[:end]).lower()
        start = head.find(b"content-length:")
        if start < 0:
            self.transport.abort()
            raise RuntimeError(f"expected an answer with Content-Length, got {head.decode('latin-1')}")
        length = int(head[start + 15 :].split(b"\r\n", 1)[0])
        if len(self.received) < end + 4 + length:
            return
        status, body = int(head[9:12]), bytes(self.received[end + 4 : end + 4 + length])
        self.received.clear()
        if b"connection: close" in head:
            self.transport.close()
        self._settle((status, body))

    def _settle(self, answer):
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)

    async def ask(self, message):
        """Send a request; return the status and the body of its answer."""
        self.answer = asyncio.get_running_loop().create_future()
        if self.transport.is_closing():
            return LOST, b""
        self.transport.write(message)
        try:
            answer = await asyncio.wait_for(self.answer, PATIENCE)
        except TimeoutError:
            self.transport.abort()
            return LOST, b""
        self.used = asyncio.get_running_loop().time()
        return answer


class Generator:
    """Runs one load against a server."""

    def __init__(self, host, port, load, began):
        self.host, self.port, self.load, self.began = host, port, load, began
        self.messages = [message_of(request, f"{host}:{port}") for request in load.requests]
        self.idle, self.open, self.answers, self.stopped = [], 0, [], False
        self.now = asyncio.get_running_loop().time
        self.sent = 0

    async def run(self):
        """Send the load, and wait for all answers."""
        await asyncio.sleep(self.load.delay)
        self.start = self.now()
        if self.load.clients:
            await asyncio.gather(*(self._client() for _ in range(self.load.clients)))
        else:
            await self._arrivals()

    def _next(self):
        """Index of the next request, or `None` at the end of the load."""
        over = self.load.seconds is not None and self.now() - self.start >= self.load.seconds
        if over or self.stopped or (self.sent >= len(self.messages) and not self.load.repeats):
            return None
        self.sent += 1
        return (self.sent - 1) % len(self.messages)

    async def _client(self):
        while (index := self._next()) is not None:
            await self._ask(index, None)

    async def _arrivals(self):
        waiting = set()
        while (index := self._next()) is not None:
            due = self.start + (self.sent - 1) / self.load.rate
            if (early := due - self.now()) > 0:
                await asyncio.sleep(early)
            task = asyncio.create_task(self._ask(index, due))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.gather(*waiting)

    async def _ask(self, index, due):
        connection = self._idle_connection()
        if connection is None and self.open >= MOST_CONNECTIONS:
            self.answers.append((index, NOT_SENT, self.now() - self.began, 0.0, 0.0, 0, ""))
            return
        self.open += 1
        try:
            if connection is None:
                _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
            sent = self.now()
            status, body = await connection.ask(self.messages[index])
        except OSError:
            sent, status, body = self.now(), LOST, b""
        finally:
            self.open -= 1
        since = sent if due is None else due
        text = body.decode("utf-8", "replace")
        self.answers.append((index, status, sent - self.began, self.now() - since, sent - since, len(body), text))
        if status != LOST:
            self.idle.append(connection)

    def _idle_connection(self):
        """The connection that was used last, so that the others grow old and are closed."""
        while self.idle:
            connection = self.idle.pop()
            if self.now() - connection.used < IDLE_SECONDS and not connection.transport.is_closing():
                return connection
            connection.transport.close()
        return None


def message_of(request, host):
    """The bytes of a request."""
    body = json.dumps(request.body).encode()
    fields = {"Host": host, "Content-Type": "application/json", "Content-Length": str(len(body))} | request.headers
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {request.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


async def run_loads(address, loads):
    """Run loads together; the background ones end with the others."""
    url = urllib.parse.urlsplit(address)
    began = asyncio.get_running_loop().time()
    generators = [Generator(url.hostname, url.port, load, began) for load in loads]
    for generator in generators:
        generator.began = asyncio.get_running_loop().time()  # once all bodies are encoded
    tasks = {asyncio.create_task(each.run()): each for each in generators}
    await asyncio.gather(*(task for task, each in tasks.items() if not each.load.background))
    for each in generators:
        each.stopped = True
    await asyncio.gather(*tasks)
    return {each.load.name: each.answers for each in generators}


def main():
    plan = json.loads(Path(sys.argv[1]).read_text())
    loads = [Load(**load | {"requests": [Request(**each) for each in load["requests"]]}) for load in plan["loads"]]
    answers = asyncio.run(run_loads(plan["address"], loads))
    Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
