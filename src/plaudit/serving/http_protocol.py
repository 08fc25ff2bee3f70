"""HTTP connections with bounds on the size, the number and the time of headers, and on clients that do not read.

uvicorn and httptools have no such bounds. Its protocol's methods that are overridden here are held, by name and
parameters, in `tests/serving/test_uvicorn_contract.py`.
"""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from plaudit.serving.server_limits import ServerLimits

__all__ = ["BoundedHttpProtocol", "bounded_protocol"]

_FRAMING = 8  # bytes of chunk sizes and line ends that a byte of a chunked body may bring with it


class _RefusedError(Exception):
    """Raised inside a callback of httptools, which then stops."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Protocol of one connection, for the option `http` of `uvicorn.Config`, beside `ws="none"`.

    Too many or too large headers are answered with 431, late ones with 408, malformed requests with 400, each as JSON
    and on a connection that is then closed. A connection that sends nothing is closed in the same time. A client that
    does not read what it was sent, or goes on sending a body after its answer, loses the connection.
    """

    limits = ServerLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True  # from the end of one body to the end of the next headers
        self._outside_bodies = 0  # bytes since then, and bytes of a chunked body that are not its content
        self._header_bytes = 0
        self._refusal: tuple[HTTPStatus, str] | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first headers."""
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, unless headers or the framing of chunks have become too large."""
        self._outside_bodies += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._outside_bodies > self.limits.max_header_bytes:
            self._refuse(*self._too_large())
        elif self._in_head and self._reading is None and self._is_idle():  # bytes that begin no request
            self._wait_for_headers()

    def pause_writing(self) -> None:
        """Give the client a time in which to read."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """Stop that time, since the client has read; one that runs after the close goes on to the last byte."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_writing_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def on_response_complete(self) -> None:
        """Give the client a time for the rest of a body that was answered before its end."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif not self._in_head and self._is_idle():
            self._start_reading_timer(self._stop_unread_body)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._header_bytes = 0
        self._wait_for_headers()

    def on_url(self, url: bytes) -> None:
        """Count the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; one that follows a chunked body is counted and then dropped."""
        self._count(len(name) + len(value) + len(b": \r\n"))
        if len(self.headers) >= self.limits.max_headers:
            self._refusal = (
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"A request may have {self.limits.max_headers} headers.",
            )
            raise _RefusedError
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application.

        After a request for another protocol, which is answered in HTTP/1.1, the parser skips what follows. Such a
        request may therefore have no body, and the connection is closed after it.
        """
        self._stop_reading_timer()
        upgrade = self.parser.should_upgrade()
        if upgrade and not {b"content-length", b"transfer-encoding"}.isdisjoint(name for name, _ in self.headers):
            self._refusal = (HTTPStatus.BAD_REQUEST, "A request with a body may not have the header Upgrade.")
            raise _RefusedError
        self._in_head, self._outside_bodies = False, 0
        super().on_headers_complete()
        if upgrade:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._outside_bodies = max(0, self._outside_bodies - (1 + _FRAMING) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._stop_reading_timer()
        self._in_head, self._outside_bodies = True, 0
        super().on_message_complete()

    # Refusals

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that the parser cannot read."""
        self._refuse(*(self._refusal or (HTTPStatus.BAD_REQUEST, msg)))

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.limits.max_header_bytes:
            self._refusal = self._too_large()
            raise _RefusedError

    def _too_large(self) -> tuple[HTTPStatus, str]:
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"The request line and the headers may have {self.limits.max_header_bytes} bytes.",
        )

    def _is_idle(self) -> bool:
        """Say whether every request that has begun is answered."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer the request that is being read, unless an earlier one is not yet answered, and close."""
        own_body = not self._in_head and not self.pipeline and not self._is_idle() and not self.cycle.response_started
        if self._is_idle() or own_body:
            kind = "slow" if status == HTTPStatus.REQUEST_TIMEOUT else "invalid"
            body = json.dumps({"error": {"type": kind, "message": message, "param": None}}).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
            lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), *(b"%s: %s" % pair for pair in headers)]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
        if own_body:  # the application waits for this body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._abort_later()

    # Timers

    def _wait_for_headers(self) -> None:
        self._start_reading_timer(self._stop_late_headers)

    def _start_reading_timer(self, then: Callable[[], None]) -> None:
        self._stop_reading_timer()
        self._reading = self.loop.call_later(self.limits.header_seconds, then)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing_timer(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _stop_late_headers(self) -> None:
        if not self._is_idle():  # reading may have been paused until the earlier request is answered
            self._wait_for_headers()
        elif self._outside_bodies:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"The headers did not arrive within {self.limits.header_seconds:g} seconds."
            )
        else:
            self.transport.close()

    def _stop_unread_body(self) -> None:
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """Drop the connection if the client has not read everything after a time."""
        if self._writing is None:
            self._writing = self.loop.call_later(self.limits.response_seconds, self.transport.abort)


def bounded_protocol(limits: ServerLimits) -> type[BoundedHttpProtocol]:
    """Return the protocol class with given limits.

    Args:
        limits: Bounds on headers and times.
    """
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), {"limits": limits})
