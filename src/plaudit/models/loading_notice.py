"""The notice that the weights of a model load, which a program may show: the commands show a spinner."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

__all__ = ["loading_notice", "show_loading"]

Notice = Callable[[str], AbstractContextManager[object]]

_notice: Notice = nullcontext


def show_loading(notice: Notice) -> None:
    """Set the notice of this process.

    Args:
        notice: Takes the folder or hub id of a model, and returns the context in which its weights are loaded.
    """
    global _notice  # one screen for the whole process
    _notice = notice


def loading_notice(name: str) -> AbstractContextManager[object]:
    """Return the context in which the weights of a model are loaded.

    Args:
        name: The folder or hub id of the model.
    """
    return _notice(name)
