"""Look-ups on the Hugging Face hub that end soon where the hub does not answer.

The hub's client repeats a request that got no answer up to six times, and does so for each file of a model: a name that
is misspelt, or a model that lies in the cache, then takes minutes without a network. One request is enough to find out.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from inspect import signature
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

__all__ = ["hub_or_cache", "reads_hub"]

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SECONDS = 6  # for the first answer, which a slow network gives in two or three
_MEMORY = 60  # seconds for which an answer counts, so that a list of models asks once


@contextmanager
def hub_or_cache(names: Any) -> Iterator[None]:
    """Look up names on the hub within this context, or in its cache alone where the hub does not answer.

    The hub is asked once, by its own client and so through its proxies, at `HF_ENDPOINT`; every answer counts. A folder
    is never asked for. Without an answer, the hub's client is offline for all threads until the context ends.

    Args:
        names: A folder or a hub id, or several of them; anything else is no name, and nothing is asked.
    """
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode() or not any(map(_may_be_on_hub, _listed(names))) or _hub_answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True  # the variable of the environment is read at import only
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def reads_hub(parameter: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Return a decorator that runs a function within `hub_or_cache`.

    Args:
        parameter: The parameter of the function that holds the name or the names.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        parameters = signature(function)

        @wraps(function)
        def decorated(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with hub_or_cache(parameters.bind(*args, **kwargs).arguments.get(parameter)):
                return function(*args, **kwargs)

        return decorated

    return decorate


def _listed(names: Any) -> Iterable[Any]:
    return names if isinstance(names, (list, tuple)) else [names]


def _may_be_on_hub(name: Any) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not isinstance(name, (str, Path)) or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return True


def _hub_answers() -> bool:
    from huggingface_hub import constants

    return _answers(constants.ENDPOINT, time.monotonic() // _MEMORY)


@lru_cache(maxsize=1)
def _answers(endpoint: str, _period: float) -> bool:
    """Return whether there is an answer of any kind, and warn where there is none."""
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
            "The hub cannot be reached at %s (%s): what is not in its cache on this machine is not found.",
            endpoint, failure,
        )  # fmt: skip
    return failure is None


def _failure(endpoint: str, seconds: float) -> str | None:
    """Return the reason for which a request to the hub has no answer; `None` if it has one."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=2 * seconds, follow_redirects=False)
    except Exception as error:  # of the types of the client, which a program may have replaced
        return str(error) or type(error).__name__
    return None
