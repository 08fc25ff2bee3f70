"""Look-ups on the Hugging Face hub that end soon where the hub does not answer.

The hub's client repeats a request that got no answer up to six times, and does so for each file of a model: a name that
is misspelt, or a model that lies in the cache, then takes minutes without a network. One request is enough to find out.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

__all__ = ["hub_or_cache", "reads_hub"]

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SECONDS = 6  # for the first answer, which a slow network gives in two or three
_SECONDS_REMEMBERED = 60  # for which an answer counts, so that a list of models asks once
_lock = Lock()
_answers: dict[str, tuple[bool, float]] = {}  # of each endpoint, and when it was given
_num_offline = 0  # contexts, over all threads, in which the hub's client is offline


@contextmanager
def hub_or_cache(names: Any) -> Iterator[None]:
    """Look up names on the hub within this context, or in its cache alone where the hub does not answer.

    The hub is asked once, by its own client and so through its proxies, at `HF_ENDPOINT`; every answer counts. A folder
    is never asked for. Without an answer, the hub's client is offline for all threads until the context ends.

    Args:
        names: A folder or a hub id, or several of them; anything else is no name, and nothing is asked.
    """
    from huggingface_hub import is_offline_mode

    is_the_users = is_offline_mode() and not _num_offline
    if is_the_users or not any(map(_may_be_on_hub, _listed(names))) or _hub_answers():
        yield
        return
    _count_offline(1)
    try:
        yield
    finally:
        _count_offline(-1)


def reads_hub(parameter: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Return a decorator that runs a function within `hub_or_cache`.

    Args:
        parameter: The parameter of the function that holds the name or the names.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        parameters = signature(function)

        @wraps(function)
        def decorated(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with hub_or_cache(parameters.bind_partial(*args, **kwargs).arguments.get(parameter)):
                return function(*args, **kwargs)

        return decorated

    return decorate


def _count_offline(change: int) -> None:
    """Take the hub's client offline with the first context that needs it, and back with the last."""
    global _num_offline
    from huggingface_hub import constants

    with _lock:
        _num_offline += change
        constants.HF_HUB_OFFLINE = _num_offline > 0  # the variable of the environment is read at import only


def _listed(names: Any) -> Iterable[Any]:
    return names if isinstance(names, (list, tuple)) else [names]


def _may_be_on_hub(name: Any) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    # Unlike Path.exists, os.path.exists takes any text.
    if not isinstance(name, (str, Path)) or os.path.exists(os.path.expanduser(name)):
        return False
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return True


def _hub_answers() -> bool:
    """Return whether the hub gives an answer of any kind, by an answer of the last minute if there is one."""
    from huggingface_hub import constants

    answer, when = _answers.get(constants.ENDPOINT, (False, -math.inf))
    if time.monotonic() - when > _SECONDS_REMEMBERED:
        answer = _asked(constants.ENDPOINT)
        _answers[constants.ENDPOINT] = answer, time.monotonic()
    return answer


def _asked(endpoint: str) -> bool:
    """Ask the hub, and warn where there is no answer."""
    from huggingface_hub import constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else _SECONDS
    outcome: SimpleQueue[str | None] = SimpleQueue()
    # In a thread, since the time that a look-up of the host's address may take has no limit in the client.
    Thread(target=lambda: outcome.put(_failure(endpoint, seconds)), daemon=True).start()
    try:
        failure = outcome.get(timeout=seconds)
    except Empty:
        failure = f"no answer within {seconds} seconds; HF_HUB_ETAG_TIMEOUT sets another limit"
    if failure is not None:
        logger.warning(
            "The hub cannot be reached at %s (%s): only what is in its cache on this machine can be loaded.",
            endpoint, failure,
        )  # fmt: skip
    return failure is None


def _failure(endpoint: str, seconds: float) -> str | None:
    """Return the reason for which two requests to the hub have no answer; `None` if one has."""
    from huggingface_hub import get_session

    failure = ""
    for _ in range(2):  # a working hub may drop one connection
        try:
            get_session().head(endpoint, timeout=2 * seconds, follow_redirects=False)
        except Exception as error:  # of the types of the client, which a program may have replaced
            failure = str(error) or type(error).__name__
        else:
            return None
    return failure
