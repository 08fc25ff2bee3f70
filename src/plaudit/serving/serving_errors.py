"""`ServingError`: the ways in which a request fails, before a dialect gives one its status and its JSON."""

from typing import Literal

from plaudit.errors import PlauditError

__all__ = ["Failure", "ServingError"]

Failure = Literal[
    "invalid",  # the body or an item is malformed
    "too_long",  # a sequence has more tokens than the model or the option allows
    "unknown_model",  # several models are served, and none has this name
    "unknown_route",
    "wrong_method",
    "unauthorized",  # no key, or a wrong one
    "forbidden",  # a host or a folder that is not allowed
    "body_too_large",
    "compressed",  # a compressed body
    "slow",  # the body did not arrive in time
    "overloaded",  # the queue is full, or the wait would be longer than the deadline
    "late",  # accepted, and not answered before its deadline
    "draining",  # the server is shutting down
    "model_fault",  # the model failed on this request: out of memory, a reward that is not finite, an exception
    "dead",  # the engine has stopped
]


class ServingError(PlauditError, RuntimeError):
    """Raised when a request cannot be answered.

    A message never quotes the request: it may hold a prompt, and it is sent over the network.

    Attributes:
        failure: The kind of failure, from which each dialect derives status and type.
        message: What was expected and what to do, for a person.
        param: The field of the body that is wrong, such as "items[3].text"; `None` where no field is.
        retry_after: Whole seconds after which another try is worth while; `None` where it is not.
    """

    def __init__(
        self, failure: Failure, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.failure, self.message, self.param, self.retry_after = failure, message, param, retry_after
