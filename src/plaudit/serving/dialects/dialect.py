"""`Dialect`: what a wire dialect consists of. A dialect knows JSON, and neither models nor HTTP connections."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from plaudit.serving.scoring_request import Scored, ScoringRequest, ServerInfo
from plaudit.serving.serving_errors import ServingError

__all__ = ["Dialect", "Endpoint", "Information"]


@dataclass(frozen=True)
class Endpoint:
    """A route that scores.

    Attributes:
        path: Path without the prefix of the dialect, such as "/classify".
        body: pydantic model of the JSON body.
        read: Turns a valid body into a request; raises `ServingError` ("invalid") for what pydantic cannot see.
        answer: Makes the JSON value of the answer from the body and the rewards.
        methods: HTTP methods.
    """

    path: str
    body: type[BaseModel]
    read: Callable[[Any], ScoringRequest]
    answer: Callable[[Any, Scored], Any]
    methods: tuple[str, ...] = ("POST",)


@dataclass(frozen=True)
class Information:
    """A GET route that describes the server.

    Attributes:
        path: Path without the prefix of the dialect, such as "/v1/models".
        answer: Makes the JSON value of the answer.
    """

    path: str
    answer: Callable[[ServerInfo], Any]


@dataclass(frozen=True)
class Dialect:
    """A wire dialect.

    Attributes:
        name: Name for `--dialect`; the routes stand under `/<name>` always.
        endpoints: The routes that score.
        error: Status and JSON value of an error. (The header Retry-After is set by the application.)
        information: The routes that describe the server.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    error: Callable[[ServingError], tuple[int, Any]]
    information: tuple[Information, ...] = ()
