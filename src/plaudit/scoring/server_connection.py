"""The connection to a `plaudit serve`: a session for each process, retries within a deadline, and errors."""

import logging
import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util import Retry

from plaudit.errors import ConfigError, DataError, ModelError, PlauditError, ServerError

__all__ = ["API_KEY_VARIABLE", "ServerConnection", "is_server_url"]

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "PLAUDIT_API_KEY"
_RETRIED = (429, 502, 503, 504)
_SECONDS_TO_CONNECT = 10.0
_IS_IT_RUNNING = "Is `plaudit serve` running there, and is this the address that it printed?"


def is_server_url(path: object) -> bool:
    """Return whether a path of a model is the address of a server."""
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


class ServerConnection:
    """A connection to a server, which threads may share; a process that it is copied or pickled into opens its own.

    Args:
        url: Address of the server, such as "http://127.0.0.1:8000".
        key: Key for the server; that of the environment variable PLAUDIT_API_KEY if `None`. A key that is given is
            pickled with the connection, one of the environment is not.
        timeout: Seconds for one request, all its tries and waits included.
        retries: How many times a request is tried again after a failed connection or the status 429, 502, 503 or 504.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 110.0, retries: int = 100) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout: expected a number of seconds above 0, got {timeout!r}.")
        if retries < 0:
            raise ConfigError(f"retries: expected a whole number of 0 or more, got {retries!r}.")
        self.url, self.timeout, self.retries = _checked_url(url), timeout, retries
        self._key = None if key is None else _checked_key(key, "key")
        self._session: requests.Session | None = None
        self._process = 0

    def __repr__(self) -> str:
        return f"ServerConnection({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object that the server gives for a path; the errors are those of `post`."""
        return self._request("GET", path, None, ())

    def post(self, path: str, body: bytes, names: Sequence[str]) -> dict[str, Any]:
        """Send a JSON body, and return the JSON object of the answer.

        Args:
            path: Path below the address, such as "/v1/rewards".
            body: The body.
            names: Names for the items of the body in error messages.

        Raises:
            DataError: The server refuses the body; the message names the item.
            ConfigError: The server refuses the key, does not know the model or the path, or cannot do what is asked.
            ModelError: The model fails on this request.
            ServerError: The server cannot be reached in time, is busy, or answers something else than a JSON object.
        """
        return self._request("POST", path, body, names)

    def _request(self, method: str, path: str, body: bytes | None, names: Sequence[str]) -> dict[str, Any]:
        answer = self._answer(method, path, body)
        if answer.status_code != requests.codes.ok:
            raise self._refusal(answer, names)
        content = _json_object(answer)
        if content is None:
            raise ServerError(f"{self.url}{path} answers with something else than rewards. {_IS_IT_RUNNING}")
        return content

    def _answer(self, method: str, path: str, body: bytes | None) -> requests.Response:
        """Return the first answer that is no reason to try again, or the last one."""
        retry = Retry(
            self.retries, allowed_methods=None, status_forcelist=_RETRIED, backoff_factor=0.5, backoff_jitter=0.5,
            backoff_max=10,
        )  # fmt: skip
        end = time.monotonic() + self.timeout
        for tries in count(1):
            answer, problem = self._try(method, path, body, max(end - time.monotonic(), 0.01))
            if answer is not None and not retry.is_retry(method, answer.status_code):
                return answer
            try:
                retry = retry.increment(method, path, None if answer is None else answer.raw, problem)
                wait = _seconds_to_wait(retry, answer)
            except MaxRetryError:
                wait = math.inf
            if time.monotonic() + wait >= end:
                if answer is not None:
                    return answer
                raise ServerError(
                    f"cannot reach {self.url} ({_root(problem)}, in {tries} tries). {_IS_IT_RUNNING}"
                ) from problem
            if tries == 1 and answer is None:
                logger.warning("%s: %s. Trying again for up to %.0f s", self.url, _root(problem), self.timeout)
            time.sleep(wait)
        raise AssertionError  # the tries do not end by themselves

    def _try(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> tuple[requests.Response | None, Exception | None]:
        headers = {"X-Plaudit-Deadline": str(max(int(seconds), 1))}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            # A redirected POST would arrive as a GET.
            return self._open_session().request(
                method, self.url + path, data=body, headers=headers, allow_redirects=False,
                timeout=(min(seconds, _SECONDS_TO_CONNECT), seconds),
            ), None  # fmt: skip
        except requests.exceptions.SSLError as error:
            raise ServerError(f"{self.url}: the connection is not secure ({_root(error)}).") from error
        except requests.RequestException as error:
            return None, error

    def _open_session(self) -> requests.Session:
        if self._session is None or self._process != os.getpid():  # a forked process must not share a socket
            key = self._key or _checked_key(os.environ.get(API_KEY_VARIABLE, ""), API_KEY_VARIABLE)

            def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
                if key:
                    request.headers["Authorization"] = f"Bearer {key}"
                return request

            session = requests.Session()
            session.auth = authorize  # a header alone would give way to a password in ~/.netrc
            self._session, self._process = session, os.getpid()
        return self._session

    def _refusal(self, answer: requests.Response, names: Sequence[str]) -> PlauditError:
        """Return the error that a status and its body mean to the caller."""
        status, error = answer.status_code, (_json_object(answer) or {}).get("error")
        error = error if isinstance(error, dict) else {}
        kind, param = error.get("type"), str(error.get("param") or "")
        message = _with_names(str(error.get("message") or answer.reason or "no reason given"), param, names)
        reason = message.rstrip(".")  # where another sentence follows
        if status == requests.codes.unauthorized:
            return ConfigError(f"{self.url} refuses the key. Give `key=` or set {API_KEY_VARIABLE}. ({message})")
        if status in _RETRIED:
            return ServerError(f"{self.url} gives no rewards: {status}, {reason}. It may need more time or replicas.")
        if kind == "model_fault":
            return ModelError(f"{self.url}: {message}")
        if kind in ("unknown_model", "forbidden") or param in ("normalize", "calibrated"):
            return ConfigError(f"{self.url}: {message}")
        if kind in ("invalid", "too_long", "body_too_large"):
            return DataError(message)
        return ServerError(f"{self.url} answers {status}: {reason}. {_IS_IT_RUNNING}")


def _checked_url(url: str) -> str:
    if "@" in url:
        raise ConfigError(
            f"url: expected an address without a name and a password, since addresses are printed and logged. Give "
            f"`key=`, or set {API_KEY_VARIABLE}."
        )
    try:
        parts = urlsplit(url)
        is_valid = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:  # no port
        is_valid = False
    if not is_valid or not is_server_url(url):
        raise ConfigError(f"url: expected an address such as http://127.0.0.1:8000, got {url!r}.")
    return url.rstrip("/")


def _checked_key(key: str, name: str) -> str:
    """Return a key without the newline that a file may have given it; errors do not show it."""
    key = key.strip()
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"{name}: expected a key of visible ASCII characters without spaces.")
    return key


def _json_object(answer: requests.Response) -> dict[str, Any] | None:
    try:
        content = answer.json()
    except requests.exceptions.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def _seconds_to_wait(retry: Retry, answer: requests.Response | None) -> float:
    """Return the time that the answer asks for, else one that grows from try to try."""
    asked = None
    if answer is not None:
        with suppress(InvalidHeader):
            asked = retry.get_retry_after(answer.raw)
    return retry.get_backoff_time() if asked is None else asked


def _with_names(message: str, param: str, names: Sequence[str]) -> str:
    """Replace the place of an item in the request by the caller's name of it."""
    place = re.match(r"items\[(\d+)\]", param)
    if place is None or int(place[1]) >= len(names):
        return message
    name = names[int(place[1])]
    return message.replace(place[0], name) if place[0] in message else f"{name}: {message}"


def _root(error: BaseException | None) -> str:
    """Return the innermost reason of an error, without the wrappings of the libraries around it."""
    while error is not None and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    return f"{error}" if str(error) else type(error).__name__
