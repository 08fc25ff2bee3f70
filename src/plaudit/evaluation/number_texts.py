"""Numbers of a report as text."""

import math
from collections.abc import Mapping
from typing import Any

from plaudit.evaluation.figures import SHARES

__all__ = ["accuracy_text", "cell", "percent"]

_SHARES = {*SHARES, "share", "flip_rate", "prefers_changed", "accuracy_a", "accuracy_b"}


def percent(share: float | None) -> str:
    """Return a share as a percentage, with a dash where it is not defined.

    >>> percent(0.7014), percent(None)
    ('70.1%', '-')
    """
    return "-" if share is None or math.isnan(share) else f"{share:.1%}"


def accuracy_text(figures: Mapping[str, Any]) -> str:
    """Return an accuracy with its interval.

    >>> accuracy_text({"accuracy": 0.7, "accuracy_low": 0.65, "accuracy_high": 0.75})
    '70.0% (95% interval 65.0% to 75.0%)'
    """
    share, low, high = (percent(figures[f"accuracy{end}"]) for end in ("", "_low", "_high"))
    return f"{share} (95% interval {low} to {high})"


def cell(value: Any, name: str = "") -> str:
    """Return the text of a value in a table: a figure of a share as a percentage, others with three significant digits.

    >>> cell(0.69315), cell(0.69315, "accuracy"), cell(1234), cell(None), cell("text")
    ('0.693', '69.3%', '1,234', '-', 'text')
    """
    value = value["value"] if isinstance(value, Mapping) else value  # of a probe, with its interval
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "-"
    if name in _SHARES:
        return percent(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
