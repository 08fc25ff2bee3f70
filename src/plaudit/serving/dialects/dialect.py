"""`Dialect`: what a wire dialect consists of. A dialect knows JSON, and neither models nor HTTP connections.

Beside it stand the parts that several dialects share: field types of bodies, the way from bodies to items, and the
parts of answers and errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from plaudit.serving.scoring_request import Item, Pair, Scored, ScoringRequest, ServerInfo, Text, TokenIds
from plaudit.serving.serving_errors import Failure, ServingError

__all__ = [
    "Body",
    "Dialect",
    "Endpoint",
    "Ids",
    "Information",
    "Input",
    "STATUSES",
    "Texts",
    "best_first",
    "input_items",
    "new_id",
    "only",
    "openai_error",
    "pair_items",
    "template_kwargs",
    "usage",
]


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
        describe_error: Makes the JSON value of an error from the error and its status.
        statuses: The statuses that differ from `STATUSES`.
        information: The routes that describe the server.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    describe_error: Callable[[ServingError, int], Any] = lambda error, _: {"error": error.message}
    statuses: Mapping[Failure, int] = field(default_factory=dict)
    information: tuple[Information, ...] = ()

    def error(self, error: ServingError) -> tuple[int, Any]:
        """Return the status and the JSON value of an error; the application sets the header Retry-After."""
        status = self.statuses.get(error.failure, STATUSES[error.failure])
        return status, self.describe_error(error, status)


# Bodies


class Body(BaseModel):
    """The base of all bodies: strict types, unknown fields ignored, and errors that do not quote the request."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)


def only(*values: Any, reason: str) -> BeforeValidator:
    """Make a validator that refuses every value but `None` and those given.

    It marks the fields of the original server that Plaudit reads and cannot do, so that none is ignored silently.

    Args:
        *values: The values that ask for nothing that Plaudit does not do.
        reason: What was expected, and what to do; for the error message.
    """

    def check(value: Any) -> Any:
        if value is None or value in values:
            return value
        raise PydanticCustomError("literal_error", "{reason}", {"reason": reason})

    return BeforeValidator(check)


Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Ids = _Ids | Annotated[list[_Ids], Field(min_length=1, fail_fast=True)]
Input = str | Texts | Ids

_RENDERING_ARGUMENTS = frozenset(
    {
        "chat_template", "conversation", "max_length", "messages", "padding", "return_assistant_tokens_mask",
        "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "truncation",
    }
)  # fmt: skip


def template_kwargs(given: dict[str, Any] | None, param: str) -> dict[str, Any]:
    """Return keyword arguments for the chat template.

    Args:
        given: What the request gives: variables of the template, and no template of its own.
        param: Name of the field, for the error.

    Raises:
        ServingError: ("invalid") An argument is one of rendering itself, or `tools` is no list of objects.
    """
    given = given or {}
    for name in sorted(_RENDERING_ARGUMENTS & given.keys()):
        raise ServingError(
            "invalid",
            f"{param} may not hold {name}: the model is scored with its own chat template and rendering. Leave it out.",
            param=f"{param}.{name}",
        )
    tools = given.get("tools") or []
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ServingError("invalid", "expected tools to be a list of objects.", param=f"{param}.tools")
    return given


# From bodies to items


def input_items(
    value: Any, name: str, special_tokens: Literal["added", "none", "exact"]
) -> tuple[list[Item], list[str]]:
    """Return the items of a text, of token ids, or of a list of either, and the names of their fields."""
    if isinstance(value, str):
        return [Text(value, special_tokens)], [name]
    if isinstance(value[0], int):
        return [TokenIds(value)], [name]
    items: list[Item] = [Text(each, special_tokens) if isinstance(each, str) else TokenIds(each) for each in value]
    return items, [f"{name}[{n}]" for n in range(len(value))]


def pair_items(query: str, documents: Sequence[str], name: str) -> tuple[list[Item], list[str]]:
    """Return a query and N documents as N pairs of prompt and response, and the names of the documents' fields.

    For a model that was trained on conversations, the query is the user's message and the document the assistant's.
    """
    items: list[Item] = [Pair(query, document, as_conversation=True) for document in documents]
    return items, [f"{name}[{n}]" for n in range(len(documents))]


# Answers


def best_first(scored: Scored, top_n: int | None = None) -> list[int]:
    """Return the indices of the `top_n` greatest raw rewards, best first; equal rewards keep the order given.

    The order never follows the values after an activation: a sigmoid in float32 turns all rewards above 17 into 1.
    """
    order = sorted(range(len(scored.rewards)), key=lambda n: -scored.rewards[n])
    return order[:top_n]


def usage(scored: Scored) -> dict[str, int]:
    """Return the numbers of tokens as OpenAI's API writes them. Nothing is generated: all tokens are of the prompt."""
    tokens = sum(scored.tokens)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def new_id(prefix: str) -> str:
    """Return a fresh identifier of an answer, such as "classify-" and 32 hexadecimal digits."""
    return f"{prefix}-{uuid4().hex}"


# Errors

STATUSES: dict[Failure, int] = {
    "invalid": 422,
    "too_long": 422,
    "unknown_model": 404,
    "unknown_route": 404,
    "wrong_method": 405,
    "unauthorized": 401,
    "forbidden": 403,
    "body_too_large": 413,
    "compressed": 415,
    "slow": 408,
    "overloaded": 503,  # clients of reinforcement learning try again after a 503; verl never does after a 429
    "late": 503,
    "draining": 503,
    "model_fault": 500,
    "dead": 503,
}

_OPENAI_TYPES = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


def openai_error(error: ServingError, status: int) -> dict[str, Any]:
    """Return the object that OpenAI's API, and vLLM, SGLang and infinity after it, describe an error with."""
    kind = "RateLimitError" if status == 429 else _OPENAI_TYPES.get(status, "BadRequestError")
    return {"message": error.message, "type": kind, "param": error.param, "code": status}
