"""Guards: the checks that a request passes before the application sees it, and the headers of every response.

A request is refused if its host is not trusted, if a page of another site sent it, without a key, with a compressed
body, and if its body is too large or too slow. The application then finds the whole body in one message. The body of a
request for one of the health routes, which need no key, is not read.
"""

import asyncio
import ipaddress
import logging
import re
import traceback
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit.serving.authentication import ApiKeys, presented_key
from plaudit.serving.server_limits import ServerLimits
from plaudit.serving.serving_errors import ServingError

__all__ = ["Guards", "OPEN_PATHS", "is_trusted_host"]

_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/live", "/ready", "/health"})
"""Paths that need neither a key nor a trusted host, since load balancers and orchestrators ask by address."""

_ADMIN = "/admin"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:\[\]/?#@,]+)(:\d{1,5})?", re.IGNORECASE)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class _Body:
    """The body of a request while it arrives, and its size in bytes for as long as the request lasts."""

    def __init__(self) -> None:
        self.data, self.size = bytearray(), 0

    def replay(self, receive: Receive) -> Receive:
        """Return a `receive` that gives the whole body once, and then what the connection gives."""
        messages: list[Message] = [{"type": "http.request", "body": bytes(self.data), "more_body": False}]
        self.data.clear()  # no second copy stays while the application runs

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return receive_again


class Guards:
    """ASGI application that checks a request and hands it to another application.

    `scope["state"]["client"]` becomes the name by which the scheduler is fair: that of the key, or the address and
    the port of the connection where no keys are asked for. Any exception of the application is logged with its
    type and its place, without its message, which may quote a prompt.

    Args:
        app: The application.
        limits: Bounds on bodies.
        on_error: Writes the response to a request, given by its scope, that fails.
        keys: The keys that open all paths but `OPEN_PATHS` and `/admin`; `None` if no key is asked for.
        admin_keys: The keys that open the paths under `/admin`; nothing opens them if `None`.
        trusted_hosts: Names and addresses, without a port, that the header Host may hold; `None` for any.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: ServerLimits,
        on_error: Callable[[Scope, ServingError], Response],
        keys: ApiKeys | None = None,
        admin_keys: ApiKeys | None = None,
        trusted_hosts: Collection[str] | None = None,
    ) -> None:
        self._app, self._limits, self._on_error = app, limits, on_error
        self._keys, self._admin_keys, self._trusted_hosts = keys, admin_keys, trusted_hosts
        self._bytes_in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and run the application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with a refusal if a check fails."""
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        body = _Body()
        try:
            self._check_head(scope)
            if scope["path"] in OPEN_PATHS:  # needs no body; one without a key must not take the room of others
                await self._app(scope, receive, send_with_headers)
            elif await self._read(receive, body):
                await self._app(scope, body.replay(receive), send_with_headers)
        except ServingError as error:
            if not started:
                await self._refuse(error, scope, receive, send_with_headers)
        except Exception as error:
            places = "".join(traceback.format_tb(error.__traceback__))
            _log.error("A request failed with %s, raised here:\n%s", type(error).__name__, places)
            if not started:
                fault = ServingError("model_fault", "The server failed on this request; its log says where.")
                await self._refuse(fault, scope, receive, send_with_headers)
        finally:
            self._bytes_in_progress -= body.size

    async def _refuse(self, error: ServingError, scope: Scope, receive: Receive, send: Send) -> None:
        """Send an error in the words of the dialect; where a key is missing, say how one is sent."""
        response = self._on_error(scope, error)
        if error.failure == "unauthorized":
            typed = "text/html" in Headers(scope=scope).get("accept", "")
            response.headers["WWW-Authenticate"] = 'Basic realm="plaudit", charset="UTF-8"' if typed else "Bearer"
        await response(scope, receive, send)

    def _check_head(self, scope: Scope) -> None:
        """Check what the headers tell, and name the client."""
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in OPEN_PATHS:
            self._check_host(headers)
        elsewhere = _is_from_another_site(headers)
        if elsewhere and scope["method"] not in ("GET", "HEAD"):
            raise ServingError("forbidden", "Pages of other sites may not use this server.")
        peer = scope.get("client")
        name = f"{peer[0]}:{peer[1]}" if peer else "local"
        if path not in OPEN_PATHS:
            name = self._check_key(path, headers, basic=not elsewhere) or name
        scope.setdefault("state", {})["client"] = name
        encodings = {headers.get("content-encoding", "identity").strip().lower()} - {"", "identity"}
        transfers = {headers.get("transfer-encoding", "chunked").strip().lower()} - {"chunked"}
        if encodings or transfers:
            raise ServingError("compressed", "Compressed bodies are not accepted; send the JSON as it is.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._limits.max_body_bytes:
            raise self._too_large()

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if self._trusted_hosts is not None and not (len(hosts) == 1 and is_trusted_host(hosts[0], self._trusted_hosts)):
            raise ServingError(
                "forbidden",
                "The header Host names none of the hosts that this server trusts; its operator can add it to "
                "`--allowed_hosts`.",
            )

    def _check_key(self, path: str, headers: Headers, *, basic: bool) -> str | None:
        """Return the name of the key; `None` if none is asked for."""
        if path == _ADMIN or path.startswith(_ADMIN + "/"):
            if self._admin_keys is None:
                raise ServingError("forbidden", "This server was started without keys for administration.")
            keys, basic = self._admin_keys, False
        elif self._keys is None:
            return None
        else:
            keys = self._keys
        presented = presented_key(headers, basic=basic)
        name = keys.check(presented) if presented else None
        if name is None:
            raise ServingError(
                "unauthorized", "A valid key is needed: send it in the header `Authorization: Bearer KEY`."
            )
        return name

    async def _read(self, receive: Receive, body: _Body) -> bool:
        """Read the whole body; return `False` if the client left before its end."""
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return False
                    self._take(message.get("body", b""), body)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ServingError(
                "slow", f"The body did not arrive within {self._limits.body_seconds:g} seconds."
            ) from None
        return True

    def _take(self, piece: bytes, body: _Body) -> None:
        """Append a piece of a body to it, if neither this body nor all of them together become too large."""
        if body.size + len(piece) > self._limits.max_body_bytes:
            raise self._too_large()
        if self._bytes_in_progress + len(piece) > self._limits.max_queued_bytes:
            raise ServingError("overloaded", "The server holds as many bytes of requests as it may.", retry_after=1)
        self._bytes_in_progress += len(piece)
        body.size += len(piece)
        body.data += piece

    def _too_large(self) -> ServingError:
        return ServingError(
            "body_too_large",
            f"A body may have {self._limits.max_body_bytes} bytes; send several smaller requests.",
        )


def is_trusted_host(value: str, trusted: Collection[str]) -> bool:
    """Say whether the header Host holds one of some names or addresses, with any port.

    Args:
        value: The header.
        trusted: Names and addresses, IPv6 ones with or without brackets.
    """
    match = _HOST.fullmatch(value)
    return match is not None and _canonical_host(match[1]) in map(_canonical_host, trusted)


def _canonical_host(host: str) -> str:
    """Return a name in lower case without a final dot, or an address in its shortest form."""
    host = host.lower().removeprefix("[").removesuffix("]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _is_from_another_site(headers: Headers) -> bool:
    """Say whether a browser sent a request for a page of another origin.

    Browsers tell in Sec-Fetch-Site, but not to addresses without TLS other than the machine's own; there the header
    Origin, which they send with every POST to another origin, is compared with Host.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and _authority(origin) != headers.get("host", "").lower()


def _authority(origin: str) -> str:
    """Return host and port of an origin; an empty string for one that has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
