"""Preference data: rows of the accepted formats, loaded, converted and tokenised to columns of token ids.

The names below are imported when they are first used, so that `import plaudit.data` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit.data.dataset_conversion import convert
    from plaudit.data.loading import load_source
    from plaudit.data.published_layouts import CONVERTERS, arena, helpsteer, hh, ranked, ultrafeedback
    from plaudit.data.rankings import comparisons_of_ranking, ties_of_ranking
    from plaudit.data.splits import split_by_prompt

_HOMES = {
    "arena": "plaudit.data.published_layouts",
    "comparisons_of_ranking": "plaudit.data.rankings",
    "convert": "plaudit.data.dataset_conversion",
    "CONVERTERS": "plaudit.data.published_layouts",
    "helpsteer": "plaudit.data.published_layouts",
    "hh": "plaudit.data.published_layouts",
    "load_source": "plaudit.data.loading",
    "ranked": "plaudit.data.published_layouts",
    "split_by_prompt": "plaudit.data.splits",
    "ties_of_ranking": "plaudit.data.rankings",
    "ultrafeedback": "plaudit.data.published_layouts",
}

__all__ = [
    "CONVERTERS",
    "arena",
    "comparisons_of_ranking",
    "convert",
    "helpsteer",
    "hh",
    "load_source",
    "ranked",
    "split_by_prompt",
    "ties_of_ranking",
    "ultrafeedback",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plaudit.data' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
