"""The HTTP application: the routes of the dialects, health, metrics and the page, over a `ScoringService`."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from plaudit.serving.authentication import ApiKeys
from plaudit.serving.dialects.dialect import Dialect, Endpoint, Information
from plaudit.serving.dialects.native import NATIVE
from plaudit.serving.dialects.registry import DIALECTS
from plaudit.serving.guards import Guards
from plaudit.serving.json_body import read_json, validate
from plaudit.serving.scoring_request import ScoringRequest
from plaudit.serving.scoring_service import ScoringService
from plaudit.serving.serving_errors import Failure, ServingError

__all__ = ["create_application"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0  # of the log, about failures of one kind

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_LARGE_BODY = 256 * 1024  # bytes; a larger one takes tens of milliseconds to read, in which others are answered
_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}
_MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def create_application(
    service: ScoringService,
    *,
    dialect: str = "vllm",
    keys: ApiKeys | None = None,
    allowed_hosts: Sequence[str] | None = None,
    admin: Sequence[Route] = (),
    admin_keys: ApiKeys | None = None,
) -> Starlette:
    """Return the ASGI application of a server.

    Args:
        service: The service that scores. It may still be loading.
        dialect: The dialect that has the paths which several dialects share, such as `/classify`.
        keys: The keys of which each request but those for health needs one; `None` for none.
        allowed_hosts: The names under which the server may be reached; `None` for any.
        admin: Routes of operators, below `/admin`.
        admin_keys: The keys of operators.
    """
    routes = _Routes(service, dialect)
    guards = Middleware(
        Guards, limits=service.limits, on_error=routes.refusal, keys=keys, admin_keys=admin_keys,
        trusted_hosts=allowed_hosts,
    )  # fmt: skip
    application = Starlette(
        routes=[*routes.table, *admin], middleware=[guards], exception_handlers={HTTPException: routes.http_failure}
    )
    application.router.redirect_slashes = False
    return application


class _Routes:
    """The routes of a server, and the dialect in which each of them reports errors."""

    def __init__(self, service: ScoringService, preferred: str) -> None:
        self._service = service
        # A single thread: several would take turns with the thread of the engine too often.
        self._reader = ThreadPoolExecutor(1, "reading")
        dialects = [NATIVE, DIALECTS[preferred], *(each for name, each in DIALECTS.items() if name != preferred)]
        self._prefixes = {f"/{each.name}": each for each in dialects}
        self._bare: dict[str, Dialect] = {}
        self._logged: dict[str, tuple[float, int]] = {}  # when a kind of failure was logged, and how many since
        self._preferred = DIALECTS[preferred]
        own: dict[str, _Handler] = {
            "/live": self._live,
            "/ready": self._ready,
            "/health": self._health,
            "/metrics": self._metrics,
        }
        own |= {path: _page_file(name) for path, name in _PAGE_FILES.items()}
        self._table: dict[tuple[str, str], _Handler] = {(path, "GET"): handler for path, handler in own.items()}
        for each in dialects:
            self._add_dialect(each)

    @property
    def table(self) -> list[Route]:
        """All routes, each of one method."""
        return [Route(path, handler, methods=[method]) for (path, method), handler in self._table.items()]

    def refusal(self, scope: Scope, error: ServingError) -> Response:
        """Return the response to a request that fails, in the words of the dialect of its path."""
        return self._failed(self._dialect_of(scope["path"]), error)

    async def http_failure(self, request: Request, error: Exception) -> Response:
        """Return the response to a request that no route answers."""
        assert isinstance(error, HTTPException)
        failure, message = _HTTP_FAILURES.get(error.status_code, ("invalid", "the request is malformed."))
        return self.refusal(request.scope, ServingError(failure, message))

    def _add_dialect(self, dialect: Dialect) -> None:
        routes: list[Endpoint | Information] = [*dialect.endpoints, *dialect.information]
        for route in routes:
            self._add(route.path, dialect, route)
            for path in {f"/{dialect.name}{route.path}", f"/{dialect.name}{route.path}".rstrip("/")}:
                self._add(path, dialect, route)
        for path, handler in (("/health", self._health), ("/metrics", self._metrics)):
            self._table.setdefault((f"/{dialect.name}{path}", "GET"), handler)

    def _add(self, path: str, dialect: Dialect, route: Endpoint | Information) -> None:
        """Add a route, unless a dialect before has its path and method."""
        if isinstance(route, Endpoint):
            handler, methods = self._scoring(dialect, route), route.methods
        else:
            handler, methods = self._informing(route), ("GET",)
        for method in methods:
            self._table.setdefault((path, method), handler)
        self._bare.setdefault(path, dialect)

    # Handlers

    def _scoring(self, dialect: Dialect, endpoint: Endpoint) -> _Handler:
        async def handle(request: Request) -> Response:
            started, service = time.monotonic(), self._service
            service.in_flight += 1
            try:
                data = await request.body()
                response = await _until_disconnect(request, self._score(request, endpoint, data))
            except ServingError as error:
                response = self._failed(dialect, error, endpoint.path)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it; the metrics do
            finally:
                service.in_flight -= 1
            seconds = time.monotonic() - started
            service.metrics.count_answer(dialect.name, endpoint.path, response.status_code, seconds)
            return response

        return handle

    async def _score(self, request: Request, endpoint: Endpoint, data: bytes) -> Response:
        service = self._service

        def read() -> tuple[Any, ScoringRequest]:
            body = validate(endpoint.body, read_json(data, service.limits))
            return body, endpoint.read(body)

        is_large = len(data) > _LARGE_BODY
        body, call = await asyncio.get_running_loop().run_in_executor(self._reader, read) if is_large else read()
        seconds = _seconds_allowed(request, service.limits.deadline_seconds)
        scored = await service.score(call, client=request.state.client, size=len(data), seconds=seconds)
        headers = {
            "X-Plaudit-Activation": call.activation,
            "X-Plaudit-Weight-Version": scored.weight_version,
            "X-Plaudit-Truncated": str(scored.truncated_items),
        }
        return _json(endpoint.answer(body, scored), headers=headers)

    def _informing(self, route: Information) -> _Handler:
        async def handle(_: Request) -> Response:
            return _json(route.answer(self._service.info()))

        return handle

    async def _live(self, _: Request) -> Response:
        return _json({"status": "live"})

    async def _ready(self, _: Request) -> Response:
        state = self._service.state
        return _json({"status": state}, status=200 if state == "ready" else 503)

    async def _health(self, _: Request) -> Response:
        try:
            await self._service.check()
        except ServingError:
            return Response(status_code=503)
        return Response(status_code=200)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._service.measure(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # Errors

    def _dialect_of(self, path: str) -> Dialect:
        first = "/" + path.split("/")[1] if "/" in path else path
        return self._prefixes.get(first) or self._bare.get(path) or NATIVE

    def _failed(self, dialect: Dialect, error: ServingError, route: str = "") -> Response:
        self._service.metrics.count_failure(error.failure)
        status, body = dialect.error(error)
        self._log_failure(f"{dialect.name}{route}: {status} {error.failure}", error.message)
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return _json(body, status=status, headers=headers)

    def _log_failure(self, kind: str, message: str) -> None:
        """Log a failure, whose message quotes nothing of the request; those of one kind at most every ten seconds."""
        now = time.monotonic()
        logged, unlogged = self._logged.get(kind, (-math.inf, 0))
        if now - logged < _SECONDS_BETWEEN_LINES:
            self._logged[kind] = (logged, unlogged + 1)
            return
        self._logged[kind] = (now, 0)
        logger.info("%s: %s%s", kind, message, f" ({unlogged} more before)" if unlogged else "")


_HTTP_FAILURES: dict[int, tuple[Failure, str]] = {
    404: ("unknown_route", "there is no such route. GET /info describes the server."),
    405: ("wrong_method", "the route takes another method."),
    413: ("body_too_large", "the body is too large. Send several requests."),
}


async def _until_disconnect(request: Request, answering: Any) -> Response:
    """Await an answer, and cancel it when the client goes away."""
    task = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _seconds_allowed(request: Request, most: float) -> float:
    given = request.headers.get("x-plaudit-deadline")
    if given is None:
        return most
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ServingError("invalid", "header X-Plaudit-Deadline: expected a number of seconds above 0.")
    return min(seconds, most)


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(content, status, headers, "application/json")


def _page_file(name: str) -> _Handler:
    content = (_PAGE / name).read_bytes()

    async def handle(_: Request) -> Response:
        return Response(content, media_type=_MEDIA_TYPES[Path(name).suffix])

    return handle
