"""`ServerLimits`: the bounds of a server, each in the unit that its name says."""

from dataclasses import dataclass, fields

from plaudit.errors import ConfigError

__all__ = ["ServerLimits"]


@dataclass(frozen=True)
class ServerLimits:
    """Bounds on a connection, on the body of a request and on the queue. All are positive.

    Attributes:
        max_header_bytes: Bytes of the request line and all headers.
        max_headers: Number of headers.
        header_seconds: Time from the connection, or from the first byte of a later request, to the end of the headers.
        body_seconds: Time from the end of the headers to the end of the body.
        response_seconds: Time in which a client reads what was sent to it.
        max_body_bytes: Bytes of a body, chunked or not.
        max_json_depth: Lists and objects inside one another; at most 199, where the parser stops.
        max_json_values: Values in a body: strings, numbers (token ids, say), lists and objects.
        max_string_length: Characters of a string.
        max_items: Items of a request: texts, conversations, pairs or lists of token ids.
        max_queued_items: Items that wait at once, of all requests.
        max_queued_tokens: Tokens that wait at once, of all requests.
        max_queued_bytes: Bytes of the bodies of all requests that have begun and are not yet answered.
        deadline_seconds: Time from the arrival of a request to its answer, unless the request asks for less.

    Raises:
        ConfigError: A bound is not positive, or of a wrong type.
    """

    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    response_seconds: float = 60.0
    max_body_bytes: int = 64 * 1024**2
    max_json_depth: int = 32
    max_json_values: int = 2_000_000
    max_string_length: int = 4_000_000
    max_items: int = 10_000
    max_queued_items: int = 100_000
    max_queued_tokens: int = 50_000_000
    max_queued_bytes: int = 256 * 1024**2
    deadline_seconds: float = 110.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = (int, float) if field.name.endswith("_seconds") else int
            if isinstance(value, bool) or not isinstance(value, number) or not 0 < value < float("inf"):
                kind = "number" if field.name.endswith("_seconds") else "whole number"
                raise ConfigError(f"{field.name} must be a positive {kind}, not {value!r}.")
        if self.max_json_depth > 199:
            raise ConfigError(f"max_json_depth must be at most 199, not {self.max_json_depth}.")
        if self.max_queued_bytes < self.max_body_bytes:
            raise ConfigError(
                f"max_queued_bytes ({self.max_queued_bytes}) must be at least max_body_bytes ({self.max_body_bytes}): "
                "otherwise a body of the size that is allowed would never be taken."
            )
