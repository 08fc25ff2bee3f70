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
from plaudit.evaluation.chart_numbers import length_deciles, margin_bins, reward_bins, reward_length_cells
from plaudit.evaluation.plot_style import (
    BASELINE,
    FIRST,
    INK,
    MUTED,
    SECOND,
    Axes,
    add_bars,
    add_intervals,
    add_legend,
    add_rectangles,
    as_log,
    as_percent,
    name_rows,
    prepare,
    shorten_name,
)

__all__ = [
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
    ax = prepare(ax, "Reliability", "confidence of the rewards", "share that is right")
    temperature = best_temperature(differences, labels, weights) if temperature is None else temperature
    ax.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle=":", label="perfect")
    lines = [(1.0, FIRST, "o", "-", "rewards as they are")]
    if 0 < temperature < math.inf:
        lines.append((temperature, SECOND, "s", "--", f"divided by {temperature:.3g}"))
    for divisor, colour, marker, style, label in lines:
        confidence, right, _ = calibration_bins(np.asarray(differences) / divisor, labels, weights).T
        ax.plot(confidence, right, color=colour, marker=marker, markersize=4, linestyle=style, label=label)
    as_percent(ax.xaxis, ax.yaxis)
    ax.set_xlim(0.49, 1.01)
    add_legend(ax)
    return ax


def margin_histogram(differences: ArrayLike, weights: ArrayLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the histogram of margins, rewards of the better minus those of the other responses [C], right and wrong."""
    ax = prepare(ax, "Margins", "reward of the better minus the other response", "share of comparisons")
    bins = margin_bins(differences, weights)
    for colour, label, part in (
        (SECOND, "wrong", [each for each in bins if each["high"] <= 0]),
        (FIRST, "right", [each for each in bins if each["low"] >= 0]),
    ):
        share = sum(each["share"] for each in part)
        add_bars(ax, part, color=colour, label=f"{label} ({share:.1%})")
    ax.axvline(0, color=INK, linewidth=1)
    as_percent(ax.yaxis)
    add_legend(ax)
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
    ax = prepare(ax, "Accuracy by length", "characters by which the better response is longer", "accuracy")
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
    as_percent(ax.yaxis)
    add_legend(ax, above=True)
    return ax


def reward_against_length(rewards: ArrayLike, lengths: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw how many responses have which reward [N] and which length [N, at least 1], as a grid of shaded cells."""
    ax = prepare(ax, "Reward and length", "characters of prompt and response", "reward")
    cells = reward_length_cells(rewards, lengths)
    most = max(each["responses"] for each in cells)
    shades: dict[int, list[tuple[float, float, float, float]]] = {}
    for each in cells:
        shade = math.ceil(_SHADES * math.sqrt(each["responses"] / most))
        shades.setdefault(shade, []).append((each["shortest"], each["low"], each["longest"], each["high"]))
    for shade, corners in sorted(shades.items()):
        add_rectangles(ax, corners, color=FIRST, alpha=shade / _SHADES)
    ax.set_xscale("log")
    ax.autoscale_view()
    as_log(ax.xaxis)
    return ax


def reward_distribution(rewards: Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Draw the distributions of named sets of rewards [N]: those of now, and those of a reference."""
    ax = prepare(ax, "Rewards", "reward", "share of responses")
    bins = reward_bins(rewards)
    colours = (FIRST, SECOND, BASELINE, MUTED)
    for number, (name, values) in enumerate(rewards.items()):
        edges = [bins[0]["low"], *(each["high"] for each in bins)]
        label = f"{shorten_name(name)} (mean {np.mean(np.asarray(values)):.2f})"
        colour, style = colours[number % 4], ("-", "--", "-.", ":")[number % 4]
        ax.stairs([each[name] for each in bins], edges, color=colour, linestyle=style, linewidth=1.5, label=label)
    as_percent(ax.yaxis)
    add_legend(ax)
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
    ax = prepare(ax, title, "accuracy and 95% interval", "")
    places = name_rows(ax, list(figures))
    add_intervals(ax, places, [[each[f"accuracy{end}"] for each in figures.values()] for end in _ENDS])
    marks = [each.get(baseline) for each in figures.values()] if baseline else []
    there = [(mark, place) for mark, place in zip(marks, places, strict=False) if mark is not None]
    if there and baseline:
        label = baseline.replace("_", " ")
        ax.plot(*zip(*there, strict=True), color=SECOND, marker="x", linestyle="", label=label)
    ax.axvline(0.5, color=MUTED, linestyle=":", label="chance")
    if ceiling is not None:
        ax.axvline(ceiling, color=BASELINE, linestyle="--", label="ceiling")
    as_percent(ax.xaxis)
    add_legend(ax, above=True)
    return ax


def probe_forest(probes: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Draw the mean shift of the reward that each probe causes, in standard deviations, with its 95% interval.

    Args:
        probes: Results of probes, as `ProbeResult.to_dict` returns them.
        ax: The axes to draw on.
    """
    ax = prepare(ax, "Probes", "shift of the reward (standard deviations), 95% interval", "")
    shown = [each for each in probes if each["shift"]["value"] is not None]
    places = name_rows(ax, [each["name"].replace("_", " ") for each in shown])
    for passed, colour, marker, label in (
        (True, FIRST, "o", "passed"),
        (None, MUTED, "D", "cannot tell"),
        (False, SECOND, "s", "failed"),
    ):
        part = [(place, each["shift"]) for place, each in zip(places, shown, strict=True) if each["passed"] is passed]
        if part:
            columns = [[shift[end] for _, shift in part] for end in ("value", "low", "high")]
            add_intervals(ax, [place for place, _ in part], columns, color=colour, marker=marker, label=label)
    ax.axvline(0, color=MUTED, linestyle=":")
    add_legend(ax, above=True)
    return ax


def comparison_forest(comparison: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw the difference in accuracy of two models, overall and in each subset, with its 95% interval.

    Args:
        comparison: A comparison of the models a and b, as `Comparison.to_dict` returns it.
        ax: The axes to draw on.
    """
    ax = prepare(ax, f"Against {shorten_name(comparison['b'])}", "difference in accuracy, 95% interval", "")
    shown = {"overall": comparison} | comparison.get("subsets", {})
    add_intervals(
        ax,
        name_rows(ax, list(shown)),
        [[each[name] for each in shown.values()] for name in ("difference", "low", "high")],
    )
    ax.axvline(0, color=MUTED, linestyle=":", label="equal")
    as_percent(ax.xaxis)
    add_legend(ax, above=True)
    return ax


def training_log(log_history: Sequence[Mapping[str, Any]], metric: str = "loss", *, ax: Axes | None = None) -> Axes:
    """Draw a metric of a training run against the step, with the same metric of the evaluations.

    Args:
        log_history: `trainer.state.log_history`, or that list in `trainer_state.json`.
        metric: A name in the log, such as "loss" or "accuracy".
        ax: The axes to draw on.
    """
    ax = prepare(ax, f"Training: {metric.replace('_', ' ')}", "step", metric.replace("_", " "))
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
        as_percent(ax.yaxis)
    add_legend(ax)
    return ax


def learning_curve(curve: Mapping[str, Any], *, ceiling: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw held-out log loss against the number of training rows, with its fit and the prediction for twice the data.

    Args:
        curve: A learning curve, as `LearningCurve.to_dict` returns it.
        ceiling: The least log loss that can be reached, if it is known, such as that of the true reward.
        ax: The axes to draw on.
    """
    ax = prepare(ax, "Would more data help?", "training rows", "held-out log loss")
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
        ax.axhline(ceiling, color=BASELINE, linestyle=":", label="least possible")
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks := [*sizes, *([predicted["size"]] if predicted else [])], [f"{each:,}" for each in ticks])
    add_legend(ax)
    return ax


def best_of_n(curve: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw gold score and reward of the best of n responses against the root of the KL divergence from the policy.

    Both are shown as gains over a random response, in units of the greatest gain that the gold score itself would
    bring, or of the greatest gain of the reward, so that one axis serves both.

    Args:
        curve: A best-of-n curve, as `BestOfN.to_dict` returns it.
        ax: The axes to draw on.
    """
    ax = prepare(ax, "Best of n", "√KL from the policy (√nats)", "share of the greatest gain")
    for name, colour, marker, style, scale in (
        ("proxy", SECOND, "s", "--", np.ptp(curve["proxy"])),
        ("gold", FIRST, "o", "-", np.ptp(curve["oracle"])),
    ):
        middle, low, high = ((np.array(curve[name + end]) - curve[name][0]) / (scale or 1) for end in _ENDS)
        label = "reward" if name == "proxy" else name
        ax.plot(curve["sqrt_kl"], middle, color=colour, marker=marker, markersize=4, linestyle=style, label=label)
        ax.fill_between(curve["sqrt_kl"], low, high, color=colour, alpha=0.15, linewidth=0)
    as_percent(ax.yaxis)
    add_legend(ax)
    return ax


def _range(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{end:+,.0f}".replace("-", "\N{MINUS SIGN}").replace("+0", "0") for end in (low, high))
    return " to ".join(ends)
