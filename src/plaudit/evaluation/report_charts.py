"""The charts of a report: each is a picture, a text alternative, and its numbers as a table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.evaluation import plots
from plaudit.evaluation.chart_numbers import (
    accuracy_with_interval,
    length_deciles,
    margin_bins,
    reward_bins,
    reward_length_cells,
)
from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.score_files import Scores
from plaudit.evaluation.svg import draw_svg

__all__ = ["Chart", "best_of_n_chart", "comparison_chart", "curve_chart", "member_chart", "probe_chart", "score_charts",
           "training_charts"]  # fmt: skip

_Format = Callable[[Any], str]


@dataclass(frozen=True)
class Chart:
    """A picture with the text that stands for it.

    Attributes:
        name: An identifier that occurs once in a report.
        title: The name that readers see.
        caption: What the picture shows, in numbers; the text alternative too.
        svg: The picture.
        head: Names of the columns of the table.
        rows: The table, in the order of the picture.
    """

    name: str
    title: str
    caption: str
    svg: str
    head: list[str]
    rows: list[list[str]]


def percent(value: float | None) -> str:
    """Return a share as a percentage of one decimal; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.1%}"


def number(value: float | None) -> str:
    """Return a number of three significant digits, with a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """Return the ends of an interval of shares."""
    return f"{percent(low)} to {percent(high)}"
