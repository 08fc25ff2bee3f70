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
from plaudit.evaluation.chart_numbers import (
    comparison_rows,
    length_deciles,
    margin_bins,
    reward_bins,
    reward_length_cells,
)

try:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path
    from matplotlib.ticker import LogLocator
except ImportError as error:
    raise ConfigError(f"the pictures need matplotlib ({error}). Install it: pip install 'plaudit[report]'") from error

__all__ = [
    "accuracy_by_coverage",
    "accuracy_by_length_difference",
    "accuracy_by_spread",
    "best_of_n",
    "comparison_forest",
    "dots",
    "error_correlations",
    "learning_curve",
    "margin_histogram",
    "probe_forest",
    "reliability_diagram",
    "reliability_with_spread",
    "reward_against_length",
    "reward_distribution",
    "training_log",
]

# Blue, vermilion and green of M. Okabe and K. Ito's palette.
FIRST, SECOND, BASELINE = "#0072b2", "#d55e00", "#009e73"
INK, MUTED, GRID = "#1f2937", "#6b7280", "#e1e4e8"

_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold", "color": INK, "parse_math": False}
_SHADES = 5
_ENDS = ("", "_low", "_high")


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
    lines = {"rewards as they are": (1.0, "o-", FIRST), f"divided by {temperature:.3g}": (temperature, "s--", SECOND)}
    for label, (divisor, style, colour) in lines.items():
        if 0 < divisor < math.inf:
            confidence, right, _ = calibration_bins(np.asarray(differences) / divisor, labels, weights).T
            ax.plot(confidence, right, style, color=colour, markersize=4, label=label)
    ax.set_xlim(0.49, 1.01)
    return _finish(ax, "xy")


def margin_histogram(differences: ArrayLike, weights: ArrayLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the histogram of margins, rewards of the better minus those of the other responses [C], right and wrong."""
    ax = _prepare(ax, "Margins", "reward of the better minus the other response", "share of comparisons")
    low, high, share = np.array([list(each.values()) for each in margin_bins(differences, weights)]).T
    for label, colour, part in (("wrong", SECOND, high <= 0), ("right", FIRST, low >= 0)):
        style = {"color": colour, "label": f"{label} ({share[part].sum():.1%})"}
        ax.bar(low[part], share[part], width=0.94 * (high - low)[part], align="edge", linewidth=0, **style)
    ax.axvline(0, color=INK, linewidth=1)
    return _finish(ax, "y")


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
    middle, low, high = (np.array([each[f"accuracy{end}"] for each in groups]) for end in _ENDS)
    ax.errorbar(range(len(groups)), middle, np.abs([low - middle, high - middle]), color=FIRST, fmt="o")
    ax.axhline(0.5, color=MUTED, linestyle=":", label="chance")
    ends = ((f"{each[end]:+,.0f}" for end in ("shortest", "longest")) for each in groups)
    names = [" to ".join(dict.fromkeys(each)).replace("-", "\N{MINUS SIGN}").replace("+0", "0") for each in ends]
    ax.set_xticks(range(len(groups)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    return _finish(ax, "y")


def reward_against_length(rewards: ArrayLike, lengths: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw how many responses have which reward [N] and which length [N, at least 1], as a grid of shaded cells."""
    ax = _prepare(ax, "Reward and length", "characters of prompt and response", "reward")
    cells = np.array([list(each.values()) for each in reward_length_cells(rewards, lengths)])
    shades = np.ceil(_SHADES * np.sqrt(cells[:, -1] / cells[:, -1].max()))
    for shade in np.unique(shades):  # one path of many rectangles for each shade, which keeps a vector file small
        corners = [[(a, c), (b, c), (b, d), (a, d), (a, c)] for a, b, c, d, _ in cells[shades == shade]]
        path = Path.make_compound_path(*(Path(each, closed=True) for each in corners))
        ax.add_patch(PathPatch(path, linewidth=0, color=FIRST, alpha=shade / _SHADES))
    ax.set_xscale("log")
    ax.autoscale_view()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.tick_params(which="minor", labelbottom=False)
    return ax


def reward_distribution(rewards: Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Draw the distributions of named sets of rewards [N]: those of now, and those of a reference."""
    ax = _prepare(ax, "Rewards", "reward", "share of responses")
    bins = reward_bins(rewards)
    edges = [bins[0]["low"], *(each["high"] for each in bins)]
    for number, (name, values) in enumerate(rewards.items()):
        colour, style = (FIRST, SECOND, BASELINE, MUTED)[number % 4], ("-", "--", "-.", ":")[number % 4]
        label = f"{_shorten(name)} (mean {np.mean(np.asarray(values)):.2f})"
        ax.stairs([each[name] for each in bins], edges, linewidth=1.5, label=label, color=colour, linestyle=style)
    return _finish(ax, "y", above=True)


def dots(figures: Mapping[str, Mapping[str, Any]], *, title: str = "Accuracy", ax: Axes | None = None) -> Axes:
    """Draw the accuracy of subsets, datasets, seeds or baselines as dots with their 95% intervals.

    Args:
        figures: Name to figures with `accuracy`, `accuracy_low`, `accuracy_high`, and `longer_wins` where a cross shall
            mark the accuracy of preferring the longer response.
        title: Title of the axes.
        ax: The axes to draw on.
    """
    rows = {name: [each[f"accuracy{end}"] for end in _ENDS] for name, each in figures.items()}
    ax = _forest(ax, title, "accuracy and 95% interval", rows, (0.5, "chance"))
    longer = np.array([each.get("longer_wins") for each in figures.values()], dtype=np.float64)
    if np.isfinite(longer).any():
        ax.plot(longer, range(len(rows))[::-1], "x", color=SECOND, label="longer wins")
    return _finish(ax, "x", above=True)


def probe_forest(probes: Sequence[Any], *, ax: Axes | None = None) -> Axes:
    """Draw the mean shift of the reward that each probe causes, in standard deviations, with its 95% interval.

    Args:
        probes: Results of probes, `ProbeResult` or their JSON; those without a shift are left out.
        ax: The axes to draw on.
    """
    records = [_as_dict(each) for each in probes]
    shown = [each for each in records if each["shift"]["value"] is not None]
    rows = {each["name"].replace("_", " "): list(each["shift"].values()) for each in shown}
    looks = {True: (FIRST, "o", "passed"), None: (MUTED, "D", "cannot tell"), False: (SECOND, "s", "failed")}
    label = "shift of the reward (standard deviations), 95% interval"
    ax = _forest(ax, "Probes", label, rows, (0, None), [looks[each["passed"]] for each in shown])
    return _finish(ax, above=True)


def comparison_forest(comparison: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the difference in accuracy of two models, overall and by subset, with its 95% interval.

    Args:
        comparison: A comparison of the models a and b, a `Comparison` or its JSON.
        ax: The axes to draw on.
    """
    comparison = _as_dict(comparison)
    shown = comparison_rows(comparison)
    rows = {name: [each[key] for key in ("difference", "low", "high")] for name, each in shown.items()}
    title = f"Against {_shorten(comparison['b'])}"
    ax = _forest(ax, title, "difference in accuracy, 95% interval", rows, (0, "equal"))
    return _finish(ax, "x", above=True)


def training_log(log_history: Sequence[Mapping[str, Any]], metric: str = "loss", *, ax: Axes | None = None) -> Axes:
    """Draw a metric of a training run against the step, with the same metric of the evaluations.

    Args:
        log_history: `trainer.state.log_history`, or that list in `trainer_state.json`.
        metric: "loss" or "accuracy".
        ax: The axes to draw on.
    """
    ax = _prepare(ax, f"Training: {metric}", "step", metric)
    for name, style, colour, label in (
        (metric, "-", FIRST, "training"),
        (f"eval_{metric}", "s-", SECOND, "evaluation"),
    ):
        points = [(each["step"], each[name]) for each in log_history if each.get(name) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), style, color=colour, linewidth=1.2, markersize=4, label=label)
    ax.axhline({"loss": math.log(2), "accuracy": 0.5}[metric], color=MUTED, linestyle=":", label="guessing")
    return _finish(ax, "y" if metric == "accuracy" else "")


def learning_curve(curve: Any, *, ceiling: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw held-out log loss against the number of training rows, with its fit and the prediction for twice the data.

    Args:
        curve: A learning curve, a `LearningCurve` or its JSON.
        ceiling: The least log loss that can be reached, if it is known, such as that of the true reward.
        ax: The axes to draw on.
    """
    curve = _as_dict(curve)
    ax = _prepare(ax, "Would more data help?", "training rows", "held-out log loss")
    sizes, fit, predicted = curve["sizes"], curve["fit"], curve["predicted"]
    spread = np.abs(np.array([curve["loss_low"], curve["loss_high"]]) - curve["losses"])
    ax.errorbar(sizes, curve["losses"], spread, color=FIRST, fmt="o", label="measured")
    ticks = [*sizes, *([predicted["size"]] if predicted else [])]
    if fit:
        n = np.geomspace(ticks[0], ticks[-1], 60)
        ax.plot(n, fit["a"] + fit["b"] * n ** -fit["c"], "--", color=FIRST, label="fit a + b / n^c")
    if predicted:
        ends = np.abs([[predicted["low"] - predicted["loss"]], [predicted["high"] - predicted["loss"]]])
        ax.errorbar(ticks[-1:], [predicted["loss"]], ends, color=SECOND, fmt="s", label="twice the data")
    if ceiling is not None:
        ax.axhline(ceiling, color=BASELINE, linestyle=":", label="least possible")
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{each:,}" for each in ticks])
    return _finish(ax)


def best_of_n(curve: Any, *, ax: Axes | None = None) -> Axes:
    """Draw gold score and reward of the best of n responses against the root of the KL divergence from the policy.

    Both are shown as gains over a random response, in units of the greatest gain that the gold score itself would
    bring, or of the greatest gain of the reward, so that one axis serves both.

    Args:
        curve: A best-of-n curve, a `BestOfN` or its JSON.
        ax: The axes to draw on.
    """
    curve = _as_dict(curve)
    ax = _prepare(ax, "Best of n", "√KL from the policy (√nats)", "share of the greatest gain")
    for name, label, colour, style, greatest in (
        ("proxy", "reward", SECOND, "s--", np.ptp(curve["proxy"])),
        ("gold", "gold", FIRST, "o-", np.ptp(curve["oracle"])),
    ):
        middle, low, high = ((np.array(curve[name + end]) - curve[name][0]) / (greatest or 1) for end in _ENDS)
        ax.plot(curve["sqrt_kl"], middle, style, color=colour, markersize=4, label=label)
        ax.fill_between(curve["sqrt_kl"], low, high, color=colour, alpha=0.15, linewidth=0)
    return _finish(ax, "y")


def accuracy_by_spread(uncertainty: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy in tenths of the comparisons by the members' spread, and by it at equal differences of rewards.

    Args:
        uncertainty: The figures of an uncertainty, `UncertaintyFigures` or their JSON.
        ax: The axes to draw on.
    """
    uncertainty = _as_dict(uncertainty)
    ax = _prepare(ax, "Accuracy by spread", "comparisons, least spread first", "accuracy")
    series = {"spread_bins": (FIRST, "o", "by spread"), "adjusted_bins": (SECOND, "s", "at equal differences")}
    for shift, (name, (colour, marker, label)) in zip((-0.006, 0.006), series.items(), strict=True):
        bins = uncertainty[name]
        counts = np.array([each["comparisons"] for each in bins])
        middle, low, high = (np.array([each[f"accuracy{end}"] for each in bins]) for end in _ENDS)
        places = (np.cumsum(counts) - counts / 2) / counts.sum() + shift
        ends = np.abs([low - middle, high - middle])
        ax.errorbar(places, middle, ends, color=colour, fmt=marker, markersize=4, linewidth=1.2, label=label)
    return _finish(ax, "xy", above=True)


def accuracy_by_coverage(uncertainty: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of the share of comparisons that a ranking by spread or by difference is surest of.

    Arguments are those of `accuracy_by_spread`.
    """
    records = _as_dict(uncertainty)["coverage"]
    ax = _prepare(ax, "Accuracy by coverage", "share of comparisons that is answered", "accuracy")
    columns = {name: np.array([each[name] for each in records], dtype=np.float64) for name in records[0]}
    lines = {"spread": (FIRST, "o-", "by spread"), "margin": (BASELINE, "^:", "by difference")}
    for name, (colour, style, label) in lines.items():
        ax.plot(columns["coverage"], columns[name], style, color=colour, markersize=4, label=label)
    ends = columns["spread_low"], columns["spread_high"]
    ax.fill_between(columns["coverage"], *ends, color=FIRST, alpha=0.15, linewidth=0)
    return _finish(ax, "xy", above=True)


def error_correlations(uncertainty: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the correlation of the errors of each two members, of up to 12 members, as a matrix.

    Arguments are those of `accuracy_by_spread`.
    """
    matrix = np.array(_as_dict(uncertainty)["error_correlations"], dtype=np.float64)
    ax = _prepare(ax, "Correlation of errors", "member", "member")
    ax.grid(visible=False)
    ax.set_axisbelow(True)
    for (row, column), value in np.ndenumerate(matrix):
        shade = 0.45 * max(float(np.nan_to_num(value)), 0.0)  # light enough for the number in either mode of a page
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, color=FIRST, alpha=shade))
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=INK)
    ticks, names = range(len(matrix)), [str(number) for number in range(1, len(matrix) + 1)]
    ax.set_xticks(ticks, names)
    ax.set_yticks(ticks, names)
    ax.set_xlim(-0.5, len(matrix) - 0.5)
    ax.set_ylim(len(matrix) - 0.5, -0.5)
    return ax


def reliability_with_spread(uncertainty: Any, *, ax: Axes | None = None) -> Axes:
    """Draw how often the greater reward is right against its confidence, fitted without and with the members' spread.

    Arguments are those of `accuracy_by_spread`.
    """
    uncertainty = _as_dict(uncertainty)
    ax = _prepare(ax, "Reliability with spread", "confidence, fitted on other prompts", "share that is right")
    ax.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle=":", label="perfect")
    lines = {"reliability": ("o-", FIRST, "without spread"), "reliability_with_spread": ("s--", SECOND, "with spread")}
    for name, (style, colour, label) in lines.items():
        bins = uncertainty[name]
        columns = ([each[end] for each in bins] for end in ("confidence", "accuracy"))
        ax.plot(*columns, style, color=colour, markersize=4, label=label)
    ax.set_xlim(0.49, 1.01)
    return _finish(ax, "xy")


def _as_dict(result: Any) -> Any:
    return result.to_dict() if hasattr(result, "to_dict") else result


def _prepare(ax: Axes | None, title: str, x: str, y: str) -> Axes:
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


def _forest(
    ax: Axes | None,
    title: str,
    x: str,
    rows: Mapping[str, Sequence[float]],
    line: tuple[float, str | None],
    looks: Sequence[tuple[str, str, str | None]] = (),
) -> Axes:
    """Draw a row for each name, with a dot and its interval (value, low, high), of some colour, marker and label."""
    ax = _prepare(ax, title, x, "")
    places = np.arange(len(rows))[::-1]
    ax.set_yticks(places, [_shorten(name) for name in rows], parse_math=False)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.grid(visible=False, axis="y")
    ax.axvline(line[0], color=MUTED, linestyle=":", label=line[1])
    values, looks = np.array(list(rows.values()), dtype=np.float64), looks or [(FIRST, "o", None)] * len(rows)
    for look in dict.fromkeys(looks):
        here = [place for place, each in enumerate(looks) if each == look]
        middle, low, high = values[here].T
        style: dict[str, Any] = dict(zip(("color", "fmt", "label"), look, strict=True))
        ax.errorbar(middle, places[here], xerr=np.abs([low - middle, high - middle]), markersize=5, **style)
    return ax


def _finish(ax: Axes, shares: str = "", *, above: bool = False) -> Axes:
    """Write shares along some axes as percentages, and add a legend in the picture, or between it and its title."""
    for name in shares:
        getattr(ax, f"{name}axis").set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    if ax.get_legend_handles_labels()[0]:
        style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": INK}
        if above:
            style |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "ncols": 3, "columnspacing": 1}
            ax.set_title(ax.get_title(loc="left"), pad=20, **_TITLE)
        for text in ax.legend(**style).get_texts():
            text.set_parse_math(False)
    return ax


def _shorten(name: str) -> str:
    """Return a name that fits beside the axes."""
    return name if len(name) <= 30 else name[:29] + "…"
