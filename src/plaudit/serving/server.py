"""The server process: uvicorn, signals, the watch over the engines, and exit codes."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from starlette.applications import Starlette

from plaudit.errors import ConfigError
from plaudit.serving.http_protocol import bounded_protocol
from plaudit.serving.scoring_service import ScoringService

__all__ = ["listen", "run"]

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 24.0  # for what was accepted; then whatever is left gets an error, so that the exit comes within 30 s
_EXIT_SECONDS = 29.0  # then the process ends, whatever still runs: a thread that loads other weights, say
_NOTICE_SECONDS = 1.0  # in which a load balancer sees that /ready answers 503, even where nothing is left to answer
_WATCH_SECONDS = 0.5
_CLOSE_SECONDS = 2.0  # for the steps that run at the end


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, which nobody can connect to before the server runs.

    Args:
        host: Address or name; an IPv6 address with or without brackets.
        port: Port; 0 for a free one.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"--host {host}, --port {port}: cannot listen there ({reason}). Try --port 0.") from error
    return bound


def run(
    application: Starlette,
    service: ScoringService,
    listener: socket.socket,
    *,
    on_ready: Callable[[str], object] = lambda _: None,
) -> int:
    """Serve until a signal ends the server, and return the exit code of the process.

    SIGTERM and Ctrl-C drain: `/ready` answers 503 at once, new requests are refused, those accepted are answered, and
    the exit code is 0. What is not answered after 24 seconds gets an error. A second signal ends the process at once. A
    dead engine ends the process with exit code 1.

    Args:
        application: The application of the service.
        service: The service, with its models.
        listener: The socket from `listen`.
        on_ready: Called with the server's URL once it listens.
    """
    config = uvicorn.Config(
        application, http=bounded_protocol(service.limits), ws="none", lifespan="off", log_config=None,
        log_level="critical", access_log=False, server_header=False, date_header=True, proxy_headers=False,
        backlog=2048, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = _Server(config, service, on_ready)
    # A full garbage collection looks at all that torch and transformers have made, and halts the process for 0.2 s.
    # What is there now stays until the end, so that no collection needs to look at it.
    gc.collect()
    gc.freeze()
    try:
        server.run(sockets=[listener])
    finally:
        server.last_resort.cancel()
        service.close()
        if not service.join(_CLOSE_SECONDS):
            _end_now(server.exit_code)  # Python aborts where a thread still runs a library's code
    return server.exit_code


def _end_now(code: int) -> NoReturn:
    """End the process without waiting for a thread that is inside a library."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Server(uvicorn.Server):
    """uvicorn's server, with a drain before the shutdown and a watch over the engines."""

    def __init__(self, config: uvicorn.Config, service: ScoringService, on_ready: Callable[[str], object]) -> None:
        super().__init__(config)
        self.exit_code = 0
        self.last_resort = threading.Timer(_EXIT_SECONDS, os._exit, (1,))
        self.last_resort.daemon = True
        self._service, self._on_ready = service, on_ready
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if not self.started:
            return
        self._loop = asyncio.get_running_loop()
        self._start(self._watch())
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # where this machine reaches it
        self._on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Begin to drain at the first signal, and end at the second."""
        if self._service.state != "ready":
            _end_now(128 + sig)
        self._service.state = "draining"
        self.last_resort.start()
        self._loop.call_soon_threadsafe(lambda: self._start(self._drain()))
        logger.info("%s: answering what was accepted", signal.Signals(sig).name)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.sleep(_NOTICE_SECONDS)
        while self._service.in_flight and loop.time() - started < _DRAIN_SECONDS:
            await asyncio.sleep(0.02)
        if self._service.in_flight:
            logger.warning("%d requests are not answered in time, and get an error", self._service.in_flight)
            self._service.close()
            await asyncio.sleep(_NOTICE_SECONDS)
        self.should_exit = True

    async def _watch(self) -> None:
        """End the process, with whatever hangs in it, once an engine is dead."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if reason := self._service.find_dead_model():
                self._service.die(reason)
                await asyncio.sleep(_NOTICE_SECONDS)  # the errors reach the clients
                _end_now(1)
