"""Pictures of evaluations, for notebooks, papers and the report.

Each function takes results and an `ax`, draws, and returns the `ax`; without one it makes a new figure. Results are
arrays of shape [C], one value for each comparison, or the dictionaries that `to_dict` of a result returns.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from plaudit.calibration import best_temperature, calibration_bins
from plaudit.errors import ConfigError
from plaudit.evaluation.chart_numbers import length_deciles, margin_bins, reward_bins, reward_length_cells

try:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.ticker import FuncFormatter, LogLocator
except ImportError as error:
    raise ConfigError(f"the pictures need matplotlib ({error}). Install it: pip install 'plaudit[report]'") from error

__all__ = [
    "BASELINE",
    "FIRST",
    "GRID",
    "INK",
    "MUTED",
    "SECOND",
    "accuracy_by_length_difference",
    "best_of_n",
    "comparison_forest",
    "dots",
    "learning_curve",
    "margin_histogram",
    "probe_forest",
    "reliability_diagram",
    "reward_against_length",
    "reward_distribution",
    "training_log",
]

# Blue, vermilion and green of M. Okabe and K. Ito's palette, which colour-blind readers can tell apart.
FIRST, SECOND, BASELINE = "#0072b2", "#d55e00", "#009e73"
INK, MUTED, GRID = "#1f2937", "#6b7280", "#e1e4e8"

_LONGEST_LABEL = 26
_SHADES = 5


def reliability_diagram(
    differences: ArrayLike,
    labels: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    temperature: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often the greater reward is right against the confidence `sigmoid(|difference|)` of the rewards.

    Args:
        differences: Rewards of the first minus those of the second responses, shape [C].
        labels: Probability that the first response is the better one, shape [C]; 1 where `None`.
        weights: Weight of each comparison, shape [C]; 1 where `None`.
        temperature: Divisor of the rewards for the second line; the one with the least log loss where `None`.
        ax: The axes to draw on.
    """
    ax = _prepare(ax, "Reliability", "confidence of the rewards", "share that is right")
    temperature = best_temperature(differences, labels, weights) if temperature is None else temperature
    ax.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle=":", label="perfect")
    lines = [(1.0, FIRST, "o", "-", "rewards as they are")]
    if 0 < temperature < math.inf:
        lines.append((temperature, SECOND, "s", "--", f"divided by {temperature:.3g}"))
    for divisor, colour, marker, style, label in lines:
        confidence, right, _ = calibration_bins(np.asarray(differences) / divisor, labels, weights).T
        ax.plot(confidence, right, color=colour, marker=marker, markersize=4, linestyle=style, label=label)
    _percent(ax.xaxis, ax.yaxis)
    ax.set_xlim(0.49, 1.01)
    _legend(ax)
    return ax


def margin_histogram(differences: ArrayLike, weights: ArrayLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the histogram of margins, rewards of the better minus those of the other responses [C], right and wrong."""
    ax = _prepare(ax, "Margins", "reward of the better minus the other response", "share of comparisons")
    bins = margin_bins(differences, weights)
    for colour, label, part in (
        (SECOND, "wrong", [each for each in bins if each["high"] <= 0]),
        (FIRST, "right", [each for each in bins if each["low"] >= 0]),
    ):
        share = sum(each["share"] for each in part)
        _bars(ax, part, "share", color=colour, label=f"{label} ({share:.1%})")
    ax.axvline(0, color=INK, linewidth=1)
    _percent(ax.yaxis)
    _legend(ax)
    return ax


def accuracy_by_length_difference(
    differences: ArrayLike,
    length_differences: ArrayLike,
    weights: ArrayLike | None = None,
    prompts: ArrayLike | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the accuracy by how much longer the better response is than the other one.

    Arguments are those of `plaudit.evaluation.chart_numbers.length_deciles`.
    """
    ax = _prepare(ax, "Accuracy by length", "characters by which the better response is longer", "accuracy")
    groups = length_deciles(differences, length_differences, weights, prompts)
    places = np.arange(len(groups))
    for shorter, colour, marker in ((True, SECOND, "s"), (False, FIRST, "o")):
        here = [place for place in places if (groups[place]["high"] <= 0) == shorter]
        middle = np.array([groups[place]["accuracy"] for place in here])
        ends = np.array([[groups[place][f"accuracy_{end}"] for place in here] for end in ("low", "high")])
        label = "not longer" if shorter else "longer or mixed"
        if here:
            ax.errorbar(here, middle, np.abs(ends - middle), color=colour, marker=marker, linestyle="", label=label)
    ax.axhline(0.5, color=MUTED, linestyle=":")
    names = [_range(each["low"], each["high"]) for each in groups]
    ax.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    _percent(ax.yaxis)
    _legend(ax, above=True)
    return ax


def reward_against_length(rewards: ArrayLike, lengths: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw how many responses have which reward [N] and which length [N, at least 1], as a grid of shaded cells."""
    ax = _prepare(ax, "Reward and length", "characters of prompt and response", "reward")
    cells = reward_length_cells(rewards, lengths)
    most = max(each["responses"] for each in cells)
    shades: dict[int, list[Path]] = {}
    for each in cells:
        shade = math.ceil(_SHADES * math.sqrt(each["responses"] / most))
        corners = [(each[x], each[y]) for x, y in _CORNERS]
        shades.setdefault(shade, []).append(Path(corners, closed=True))
    for shade, paths in sorted(shades.items()):  # one path for each shade, which keeps a vector file small
        patch = PathPatch(Path.make_compound_path(*paths), color=FIRST, alpha=shade / _SHADES, linewidth=0)
        ax.add_patch(patch)
    ax.set_xscale("log")
    ax.autoscale_view()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.tick_params(which="minor", labelbottom=False)
    return ax


_CORNERS = (
    ("shortest", "low"), ("longest", "low"), ("longest", "high"), ("shortest", "high"), ("shortest", "low")
)  # fmt: skip


def reward_distribution(rewards: Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Draw the distributions of named sets of rewards [N]: those of now, and those of a reference."""
    ax = _prepare(ax, "Rewards", "reward", "share of responses")
    bins = reward_bins(rewards)
    colours = (FIRST, SECOND, BASELINE, MUTED)
    for number, (name, values) in enumerate(rewards.items()):
        edges = [bins[0]["low"], *(each["high"] for each in bins)]
        label = f"{_short(name)} (mean {np.mean(np.asarray(values)):.2f})"
        colour, style = colours[number % 4], ("-", "--", "-.", ":")[number % 4]
        ax.stairs([each[name] for each in bins], edges, color=colour, linestyle=style, linewidth=1.5, label=label)
    _percent(ax.yaxis)
    _legend(ax)
    return ax


def dots(
    figures: Mapping[str, Mapping[str, Any]],
    *,
    baseline: str | None = "longer_wins",
    ceiling: float | None = None,
    title: str = "Accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw the accuracy of subsets, datasets, seeds or members as dots with their 95% intervals.

    Args:
        figures: Name to figures with `accuracy`, `accuracy_low` and `accuracy_high`.
        baseline: The figure that is drawn as a mark beside each dot, where it is there.
        ceiling: The greatest accuracy that can be expected, if it is known.
        title: Title of the axes.
        ax: The axes to draw on.
    """
    ax = _prepare(ax, title, "accuracy and 95% interval", "")
    places = np.arange(len(figures))[::-1]
    _intervals(ax, places, [[each[f"accuracy{end}"] for each in figures.values()] for end in _ENDS])
    marks = [each.get(baseline) for each in figures.values()] if baseline else []
    there = [(mark, place) for mark, place in zip(marks, places, strict=False) if mark is not None]
    if there and baseline:
        label = baseline.replace("_", " ")
        ax.plot(*zip(*there, strict=True), color=SECOND, marker="x", linestyle="", label=label)
    ax.axvline(0.5, color=MUTED, linestyle=":", label="chance")
    if ceiling is not None:
        ax.axvline(ceiling, color=BASELINE, linestyle="--", label="ceiling")
    _names(ax, places, list(figures))
    _percent(ax.xaxis)
    _legend(ax, above=True)
    return ax


def probe_forest(probes: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Draw the mean shift of the reward that each probe causes, in standard deviations, with its 95% interval.

    Args:
        probes: Results of probes, as `ProbeResult.to_dict` returns them.
        ax: The axes to draw on.
    """
    ax = _prepare(ax, "Probes", "shift of the reward (standard deviations), 95% interval", "")
    shown = [each for each in probes if each["shift"]["value"] is not None]
    places = np.arange(len(shown))[::-1]
    for passed, colour, marker, label in (
        (True, FIRST, "o", "passed"),
        (None, MUTED, "D", "cannot tell"),
        (False, SECOND, "s", "failed"),
    ):
        part = [(place, each["shift"]) for place, each in zip(places, shown, strict=True) if each["passed"] is passed]
        if part:
            columns = [[shift[end] for _, shift in part] for end in ("value", "low", "high")]
            _intervals(ax, [place for place, _ in part], columns, color=colour, marker=marker, label=label)
    ax.axvline(0, color=MUTED, linestyle=":")
    _names(ax, places, [each["name"].replace("_", " ") for each in shown])
    _legend(ax, above=True)
    return ax


def comparison_forest(comparison: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw the difference in accuracy of two models, overall and in each subset, with its 95% interval.

    Args:
        comparison: A comparison of the models a and b, as `Comparison.to_dict` returns it.
        ax: The axes to draw on.
    """
    ax = _prepare(ax, f"Against {_short(comparison['b'])}", "difference in accuracy, 95% interval", "")
    shown = {"overall": comparison} | comparison.get("subsets", {})
    places = np.arange(len(shown))[::-1]
    _intervals(ax, places, [[each[name] for each in shown.values()] for name in ("difference", "low", "high")])
    ax.axvline(0, color=MUTED, linestyle=":", label="equal")
    _names(ax, places, list(shown))
    _percent(ax.xaxis)
    _legend(ax, above=True)
    return ax


def training_log(log_history: Sequence[Mapping[str, Any]], metric: str = "loss", *, ax: Axes | None = None) -> Axes:
    """Draw a metric of a training run against the step, with the same metric of the evaluations.

    Args:
        log_history: `trainer.state.log_history`, or that list in `trainer_state.json`.
        metric: A name in the log, such as "loss" or "accuracy".
        ax: The axes to draw on.
    """
    ax = _prepare(ax, f"Training: {metric.replace('_', ' ')}", "step", metric.replace("_", " "))
    chance = {"loss": math.log(2), "accuracy": 0.5}.get(metric)
    for name, colour, style, label in (
        (metric, FIRST, {"linewidth": 1.2}, "training"),
        (f"eval_{metric}", SECOND, {"marker": "s", "markersize": 4}, "evaluation"),
    ):
        points = [(each["step"], each[name]) for each in log_history if each.get(name) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), color=colour, label=label, **style)
    if chance is not None:
        ax.axhline(chance, color=MUTED, linestyle=":", label="guessing")
    if metric == "accuracy":
        _percent(ax.yaxis)
    _legend(ax)
    return ax


def learning_curve(curve: Mapping[str, Any], *, ceiling: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw held-out log loss against the number of training rows, with its fit and the prediction for twice the data.

    Args:
        curve: A learning curve, as `LearningCurve.to_dict` returns it.
        ceiling: The least log loss that can be reached, if it is known, such as that of the true reward.
        ax: The axes to draw on.
    """
    ax = _prepare(ax, "Would more data help?", "training rows", "held-out log loss")
    sizes, fit, predicted = curve["sizes"], curve.get("fit"), curve.get("predicted")
    spread = np.abs(np.array([curve["loss_low"], curve["loss_high"]]) - curve["losses"])
    ax.errorbar(sizes, curve["losses"], spread, color=FIRST, marker="o", linestyle="", label="measured")
    if fit:
        n = np.geomspace(sizes[0], 2 * sizes[-1] if predicted else sizes[-1], 60)
        ax.plot(n, fit["a"] + fit["b"] * n ** -fit["c"], color=FIRST, linestyle="--", label="fit a + b / n^c")
    if predicted:
        ends = np.abs([[predicted["low"] - predicted["loss"]], [predicted["high"] - predicted["loss"]]])
        style: dict[str, Any] = {"color": SECOND, "marker": "s", "linestyle": "", "label": "twice the data"}
        ax.errorbar([predicted["size"]], [predicted["loss"]], ends, **style)
    if ceiling is not None:
        ax.axhline(ceiling, color=BASELINE, linestyle=":", label="ceiling")
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks := [*sizes, *([predicted["size"]] if predicted else [])], [f"{each:,}" for each in ticks])
    _legend(ax)
    return ax


def best_of_n(curve: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw gold score and reward of the best of n responses against the root of the KL divergence from the policy.

    Both are shown as gains over a random response, in units of the greatest gain that the gold score itself would
    bring, or of the greatest gain of the reward, so that one axis serves both.

    Args:
        curve: A best-of-n curve, as `BestOfN.to_dict` returns it.
        ax: The axes to draw on.
    """
    ax = _prepare(ax, "Best of n", "√KL from the policy (√nats)", "share of the greatest gain")
    for name, colour, marker, style, scale in (
        ("proxy", SECOND, "s", "--", np.ptp(curve["proxy"])),
        ("gold", FIRST, "o", "-", np.ptp(curve["oracle"])),
    ):
        middle, low, high = ((np.array(curve[name + end]) - curve[name][0]) / (scale or 1) for end in _ENDS)
        label = "reward" if name == "proxy" else name
        ax.plot(curve["sqrt_kl"], middle, color=colour, marker=marker, markersize=4, linestyle=style, label=label)
        ax.fill_between(curve["sqrt_kl"], low, high, color=colour, alpha=0.15, linewidth=0)
    _percent(ax.yaxis)
    _legend(ax)
    return ax


# Parts of the pictures

_ENDS = ("", "_low", "_high")
_TITLE: dict[str, Any] = {"fontsize": 11, "fontweight": "bold", "color": INK}


def _prepare(ax: Axes | None, title: str, x: str, y: str) -> Axes:
    """Return the axes, or new ones, with a title, the names of both quantities and a quiet frame."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(5, 3.1), layout="constrained")
    ax.set_title(title, loc="left", **_TITLE)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)
    ax.grid(color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    return ax


def _intervals(ax: Axes, places: ArrayLike, columns: Sequence[Sequence[float]], **style: Any) -> None:
    middle, low, high = np.array(columns, dtype=np.float64)
    spread = np.abs([low - middle, high - middle])
    defaults: dict[str, Any] = {"color": FIRST, "marker": "o", "markersize": 5, "linestyle": "", "linewidth": 1.5}

    ax.errorbar(middle, places, xerr=spread, **(defaults | style))


def _names(ax: Axes, places: ArrayLike, names: Sequence[str]) -> None:
    ax.set_yticks(places, [_short(name) for name in names], parse_math=False)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(visible=False, axis="y")


def _bars(ax: Axes, bins: Sequence[Mapping[str, float]], height: str, **style: Any) -> None:
    low, high, heights = np.array([[each["low"], each["high"], each[height]] for each in bins]).reshape(-1, 3).T
    ax.bar(low, heights, width=0.94 * (high - low), align="edge", linewidth=0, **style)


def _percent(*directions: Any) -> None:
    for axis in directions:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def _legend(ax: Axes, *, above: bool = False) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if not handles:
        return
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": INK}
    if above:
        style |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "ncols": 3, "columnspacing": 1}
        ax.set_title(ax.get_title(loc="left"), loc="left", pad=20, **_TITLE)
    for text in ax.legend(**style).get_texts():
        text.set_parse_math(False)


def _range(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{end:+,.0f}".replace("-", "\N{MINUS SIGN}").replace("+0", "0") for end in (low, high))
    return " to ".join(ends)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"
