"""The tables of a report, and numbers as text."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["Columns", "Table", "make_table", "number", "percent", "points", "words"]

Columns = dict[str, tuple[str, Callable[[Any], str]]]  # heading and format of each key of the records
_NONE = "-"


class Table(NamedTuple):
    """A table of text; the first cell of a row names the row."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def make_table(caption: str, columns: Columns, records: Iterable[Mapping[str, Any]]) -> Table:
    """Make a table of records; a figure with a `value`, such as that of a probe, counts as that value.

    Args:
        caption: The name of the table.
        columns: Heading and format of each key.
        records: A dictionary for each row; a key that is not there is a dash.
    """

    def cell(value: Any, as_text: Callable[[Any], str]) -> str:
        value = value["value"] if isinstance(value, Mapping) and "value" in value else value
        undefined = value is None or (isinstance(value, float) and not math.isfinite(value))
        return _NONE if undefined else as_text(value)

    rows = [[cell(each.get(key), as_text) for key, (_, as_text) in columns.items()] for each in records]
    return Table(caption, [heading for heading, _ in columns.values()], rows)


def percent(value: float) -> str:
    """Return a share as a percentage, with a dash where it is not defined.

    >>> percent(0.7014)
    '70.1%'
    """
    return _NONE if math.isnan(value) else f"{value:.1%}"


def points(value: float) -> str:
    """Return a difference of shares as a percentage with its sign."""
    return f"{value:+.1%}"


def number(value: float) -> str:
    """Return a number of three significant digits, or a whole one with all of them.

    >>> number(1234.0), number(0.69315)
    ('1,234', '0.693')
    """
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def words(name: Any) -> str:
    """Return the name of a figure or of a finding as words."""
    return str(name).replace("_", " ")
