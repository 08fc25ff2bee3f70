"""The server process: uvicorn, signals, the watch over the engines, and exit codes."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from plaudit.errors import ConfigError
from plaudit.serving.http_protocol import bounded_protocol
from plaudit.serving.scoring_service import ScoringService

__all__ = ["run"]

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 25.0  # for what was accepted; then whatever is left is dropped, so that the exit comes within 30 s
_EXIT_SECONDS = 29.0  # then the process ends, whatever still runs: a thread that loads other weights, say
_NOTICE_SECONDS = 1.0  # in which a load balancer sees that /ready answers 503, even where nothing is left to answer
_WATCH_SECONDS = 0.5


def run(
    application: Starlette,
    service: ScoringService,
    *,
    host: str,
    port: int,
    on_ready: Callable[[str], object] = lambda _: None,
) -> int:
    """Serve until a signal ends the server, and return the exit code of the process.

    SIGTERM and Ctrl-C drain: `/ready` answers 503 at once, new requests are refused, those accepted are answered, and
    the exit code is 0. A second signal ends at once. A dead engine ends the process with exit code 1.

    Args:
        application: The application of the service.
        service: The service, with its models.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        on_ready: Called with the server's URL once it listens.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    config = uvicorn.Config(
        application, host=host, port=port, http=bounded_protocol(service.limits), ws="none", lifespan="off",
        log_config=None, log_level="warning", access_log=False, server_header=False, date_header=True,
        proxy_headers=False, backlog=2048, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = _Server(config, service, on_ready)
    try:
        server.run()
    except SystemExit as error:
        raise ConfigError(f"--host, --port: cannot listen on {host}:{port}. Is the port in use?") from error
    finally:
        server.last_resort.cancel()
        service.close()
    return server.exit_code


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
        self._on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Begin to drain at the first signal, and end at the second."""
        if self._service.state in ("draining", "dead"):
            self.force_exit = self.should_exit = True
            self.exit_code = 128 + sig
            return
        if not self.started:
            self.should_exit = True
            return
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
        self.should_exit = True

    async def _watch(self) -> None:
        """End the process, with whatever hangs in it, once an engine is dead."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if reason := self._service.find_dead_model():
                self._service.die(reason)
                await asyncio.sleep(_NOTICE_SECONDS)  # the errors reach the clients
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)  # a thread that hangs inside a library would keep an ordinary exit waiting
