"""The style that the pictures have in common: a palette that colour-blind readers can tell apart, and a quiet frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import ConfigError

try:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.ticker import FuncFormatter, LogLocator
except ImportError as error:
    raise ConfigError(f"the pictures need matplotlib ({error}). Install it: pip install 'plaudit[report]'") from error

__all__ = [
    "Axes",
    "BASELINE",
    "FIRST",
    "GRID",
    "INK",
    "MUTED",
    "SECOND",
    "add_bars",
    "add_intervals",
    "add_legend",
    "add_rectangles",
    "as_log",
    "as_percent",
    "name_rows",
    "prepare",
    "shorten_name",
]

# Blue, vermilion and green of M. Okabe and K. Ito's palette.
FIRST, SECOND, BASELINE = "#0072b2", "#d55e00", "#009e73"
INK, MUTED, GRID = "#1f2937", "#6b7280", "#e1e4e8"

_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold", "color": INK, "parse_math": False}
_POINTS: dict[str, Any] = {"color": FIRST, "marker": "o", "markersize": 5, "linestyle": "", "linewidth": 1.5}
_LONGEST_NAME = 26


def prepare(ax: Axes | None, title: str, x: str, y: str) -> Axes:
    """Return the axes, or new ones, with a title, the names of both quantities and a quiet frame."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(5, 3.1), layout="constrained")
    ax.set_title(title, **_TITLE)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)
    ax.grid(color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    return ax


def name_rows(ax: Axes, names: Sequence[str]) -> NDArray[np.int64]:
    """Make a row for each name, the first on top, and return the places of the rows."""
    places = np.arange(len(names))[::-1]
    ax.set_yticks(places, [shorten_name(name) for name in names], parse_math=False)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(visible=False, axis="y")
    return places


def add_intervals(ax: Axes, places: ArrayLike, columns: Sequence[Sequence[float]], **style: Any) -> None:
    """Add dots with intervals in rows; the columns are the values, the lower and the upper ends."""
    middle, low, high = np.array(columns, dtype=np.float64)
    ax.errorbar(middle, places, xerr=np.abs([low - middle, high - middle]), **(_POINTS | style))


def add_bars(ax: Axes, bins: Sequence[Mapping[str, float]], **style: Any) -> None:
    """Add a bar for the `share` of each bin."""
    low, high, share = np.array([[each[name] for name in ("low", "high", "share")] for each in bins]).reshape(-1, 3).T
    ax.bar(low, share, width=0.94 * (high - low), align="edge", linewidth=0, **style)


def add_rectangles(ax: Axes, corners: Sequence[tuple[float, float, float, float]], **style: Any) -> None:
    """Add rectangles (left, bottom, right, top) as one path, which keeps a vector file small."""
    paths = [Path([(a, b), (c, b), (c, d), (a, d), (a, b)], closed=True) for a, b, c, d in corners]
    ax.add_patch(PathPatch(Path.make_compound_path(*paths), linewidth=0, **style))


def add_legend(ax: Axes, *, above: bool = False) -> None:
    """Add a legend where there is anything to name, inside the axes or between them and their title."""
    if not ax.get_legend_handles_labels()[0]:
        return
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": INK}
    if above:
        style |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "ncols": 3, "columnspacing": 1}
        ax.set_title(ax.get_title(loc="left"), pad=20, **_TITLE)
    for text in ax.legend(**style).get_texts():
        text.set_parse_math(False)


def as_percent(*directions: Any) -> None:
    """Write the shares along one or both axes as percentages."""
    for axis in directions:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def as_log(axis: Any) -> None:
    """Write the numbers along a logarithmic axis in full."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_tick_params(which="minor", labelbottom=False)


def shorten_name(name: str) -> str:
    """Return a name that fits beside the axes."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
