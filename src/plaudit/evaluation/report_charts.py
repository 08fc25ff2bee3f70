"""The charts of a report: each is a picture, a text alternative, and its numbers as a table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.calibration import calibration_bins
from plaudit.evaluation import plots
from plaudit.evaluation.chart_numbers import (
    accuracy_with_interval,
    length_deciles,
    margin_bins,
    reward_bins,
)
from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.score_files import Scores
from plaudit.evaluation.svg import draw_svg

__all__ = [
    "Chart",
    "accuracy_chart",
    "best_of_n_chart",
    "comparison_chart",
    "curve_chart",
    "interval",
    "number",
    "percent",
    "probe_chart",
    "score_charts",
    "training_charts",
]

Draw = Callable[[Any], object]  # on the axes that it is given


@dataclass(frozen=True)
class Chart:
    """A picture with the text that stands for it.

    Attributes:
        name: An identifier that occurs once in a report.
        title: The name of the picture.
        caption: The result that the picture shows, in numbers; the text alternative too.
        svg: The picture.
        head: Names of the columns of the table.
        rows: The numbers of the picture as text.
    """

    name: str
    title: str
    caption: str
    svg: str
    head: list[str]
    rows: list[list[str]]


def score_charts(key: str, scores: Scores, evaluation: Evaluation, reference: Scores | None = None) -> Iterator[Chart]:
    """Yield the charts of one score file.

    Args:
        key: The beginning of their names.
        scores: The scores.
        evaluation: Their figures.
        reference: Other scores whose distribution is drawn beside.
    """
    compared, figures = scores.comparisons, evaluation.overall
    margins = scores.rewards[compared.better] - scores.rewards[compared.worse]
    counted = compared.labels > 0.5
    yield _reliability(f"{key}-reliability", margins, compared.labels, compared.weights, figures)
    yield _margins(f"{key}-margins", margins[counted], compared.weights[counted])
    longer = scores.lengths[compared.better] - scores.lengths[compared.worse]
    known = counted & np.isfinite(longer)
    if known.any():
        columns = (margins[known], longer[known], compared.weights[known], compared.prompts[known])
        yield _length_differences(f"{key}-length-differences", columns, figures)
    measured = scores.lengths >= 1
    if measured.any():
        yield _reward_and_length(f"{key}-length", scores.rewards[measured], scores.lengths[measured], figures)
    if reference is not None:
        names = {"now": scores.rewards, "reference": reference.rewards}
        yield _distribution(f"{key}-distribution", names)
    if len(evaluation.subsets) > 1:
        yield accuracy_chart(f"{key}-subsets", "Accuracy by subset", evaluation.subsets)


def accuracy_chart(key: str, title: str, figures: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Return dots with intervals: of subsets, or of the seeds or members that scored one dataset."""
    values = {name: each["accuracy"] for name, each in figures.items()}
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    caption = (
        f"Accuracy from {percent(values[least])} ({least}) to {percent(values[most])} ({most}), with 95% intervals; "
        "crosses mark the accuracy of preferring the longer response."
    )
    rows = [
        [name, percent(each["accuracy"]), interval(each["accuracy_low"], each["accuracy_high"]),
         percent(each.get("longer_wins")), number(each["comparisons"])]
        for name, each in figures.items()
    ]  # fmt: skip
    head = ["name", "accuracy", "95% interval", "longer wins", "comparisons"]
    height = 1.3 + 0.26 * len(figures)
    return _chart(key, title, caption, head, rows, lambda ax: plots.dots(figures, title=title, ax=ax), height)


def _reliability(key: str, margins: Any, labels: Any, weights: Any, figures: Mapping[str, float]) -> Chart:
    temperature = figures["temperature"]
    bins = calibration_bins(margins, labels, weights)
    caption = f"Calibration error {percent(figures['calibration_error'])}, log loss {figures['log_loss']:.3f}; "
    if 0 < temperature < math.inf:
        caption += f"divided by {temperature:.3g}, the rewards have a log loss of {figures['calibrated_log_loss']:.3f}."
    else:
        caption += "no temperature improves it."
    rows = [[percent(confidence), percent(right), percent(share)] for confidence, right, share in bins.tolist()]
    head = ["confidence", "share that is right", "share of comparisons"]

    def draw(ax: Any) -> None:
        plots.reliability_diagram(margins, labels, weights, temperature=temperature, ax=ax)

    return _chart(key, "Reliability", caption, head, rows, draw)


def _margins(key: str, margins: Any, weights: Any) -> Chart:
    right = accuracy_with_interval(margins, weights)["accuracy"]
    median = float(np.median(margins))
    caption = f"{percent(right)} of the comparisons have a positive margin: they are right. The median is {median:.3g}."
    rows = [
        [number(each["low"]), number(each["high"]), percent(each["share"])] for each in margin_bins(margins, weights)
    ]
    head = ["margin from", "to", "share of comparisons"]
    return _chart(key, "Margins", caption, head, rows, lambda ax: plots.margin_histogram(margins, weights, ax=ax))


def _length_differences(key: str, columns: tuple[Any, ...], figures: Mapping[str, float]) -> Chart:
    groups = length_deciles(*columns)
    caption = (
        f"Accuracy {percent(figures['longer_accuracy'])} where the better response is longer, "
        f"{percent(figures['shorter_accuracy'])} where it is shorter; their mean is "
        f"{percent(figures['length_balanced_accuracy'])}."
    )
    rows = [
        [number(each["low"]), number(each["high"]), percent(each["accuracy"]),
         interval(each["accuracy_low"], each["accuracy_high"]), number(each["comparisons"])]
        for each in groups
    ]  # fmt: skip
    head = ["longer by, from", "to", "accuracy", "95% interval", "comparisons"]
    return _chart(
        key, "Accuracy by length", caption, head, rows,
        lambda ax: plots.accuracy_by_length_difference(*columns, ax=ax), 3.4,
    )  # fmt: skip


def _reward_and_length(key: str, rewards: Any, lengths: Any, figures: Mapping[str, float]) -> Chart:
    correlation = figures["length_correlation"]
    caption = (
        f"{len(rewards):,} responses; the fuller a cell, the stronger its shade. Differences in reward and in length have a rank "
        f"correlation of {correlation:+.2f}." if math.isfinite(correlation) else f"{len(rewards):,} responses."
    )  # fmt: skip
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 11)))
    place = np.searchsorted(edges[1:-1], lengths, side="left")
    rows = [
        [number(low), number(high), *(number(each) for each in np.quantile(rewards[place == group], [0.1, 0.5, 0.9]))]
        for group, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
        if (place == group).any()
    ] or [[number(edges[0]), number(edges[0]), *(number(each) for each in np.quantile(rewards, [0.1, 0.5, 0.9]))]]
    head = ["characters from", "to", "10% of the rewards below", "median reward", "90% below"]
    draw = lambda ax: plots.reward_against_length(rewards, lengths, ax=ax)  # noqa: E731
    return _chart(key, "Reward and length", caption, head, rows, draw)


def _distribution(key: str, rewards: Mapping[str, Any]) -> Chart:
    spread = [
        f"{name}: mean {np.mean(each):.3g}, standard deviation {np.std(each):.3g}" for name, each in rewards.items()
    ]
    rows = [
        [number(each["low"]), number(each["high"]), *(percent(each[name]) for name in rewards)]
        for each in reward_bins(rewards)
    ]
    head = ["reward from", "to", *(f"share, {name}" for name in rewards)]
    return _chart(
        key, "Rewards", "; ".join(spread) + ".", head, rows, lambda ax: plots.reward_distribution(rewards, ax=ax)
    )  # fmt: skip


def training_charts(log_history: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield the course of the loss and of the accuracy in a training log, where it has them."""
    for metric in ("loss", "accuracy"):
        names = (metric, f"eval_{metric}")
        points = [each for each in log_history if any(each.get(name) is not None for name in names)]
        if points:
            last = [next((each[name] for each in reversed(points) if name in each), None) for name in names]
            caption = f"Last value {number(last[0])} in training, {number(last[1])} in evaluation."
            shown = points[:: max(1, len(points) // 100)]
            rows = [[f"{each['step']:,}", *(number(each.get(name)) for name in names)] for each in shown]
            yield _chart(
                f"training-{metric}", f"Training: {metric}", caption, ["step", "training", "evaluation"], rows,
                lambda ax, metric=metric: plots.training_log(log_history, metric, ax=ax),
            )  # fmt: skip


def curve_chart(curve: Mapping[str, Any]) -> Chart:
    """Return the chart of a learning curve."""
    rows = [
        [f"{size:,}", f"{loss:.4f}", f"{low:.4f} to {high:.4f}", percent(accuracy)]
        for size, loss, low, high, accuracy in zip(
            *(curve[name] for name in ("sizes", "losses", "loss_low", "loss_high", "accuracies")), strict=True
        )
    ]
    if predicted := curve.get("predicted"):
        ends = f"{predicted['low']:.4f} to {predicted['high']:.4f}"
        rows.append([f"{predicted['size']:,} (predicted)", f"{predicted['loss']:.4f}", ends, "–"])
    head = ["training rows", "log loss", "95% interval", "accuracy"]
    title = "Would more data help?"
    return _chart("learning-curve", title, curve["verdict"], head, rows, lambda ax: plots.learning_curve(curve, ax=ax))


def best_of_n_chart(curve: Mapping[str, Any]) -> Chart:
    """Return the chart of a best-of-n curve."""
    names = ("n", "sqrt_kl", "proxy", "gold", "oracle")
    rows = [[number(each) for each in row] for row in zip(*(curve[name] for name in names), strict=True)]
    head = ["n", "√KL", "reward", "gold", "gold, chosen by gold"]
    return _chart("best-of-n", "Best of n", curve["verdict"], head, rows, lambda ax: plots.best_of_n(curve, ax=ax))


def probe_chart(probes: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Return the forest plot of probes; `None` where none has a shift."""
    shown = [each for each in probes if each["shift"]["value"] is not None]
    if not shown:
        return None
    failed = [each["name"].replace("_", " ") for each in shown if each["passed"] is False]
    caption = f"{len(shown)} probes; " + (f"failed: {', '.join(failed)}." if failed else "none failed.")
    rows = [
        [each["name"].replace("_", " "), number(each["shift"]["value"]),
         f"{number(each['shift']['low'])} to {number(each['shift']['high'])}", percent(each["flip_rate"]["value"]),
         percent(each["prefers_changed"]["value"])]
        for each in shown
    ]  # fmt: skip
    head = ["probe", "shift (standard deviations)", "95% interval", "flip rate", "prefers the changed text"]
    height = 1.3 + 0.24 * len(shown)
    return _chart("probes", "Probes", caption, head, rows, lambda ax: plots.probe_forest(shown, ax=ax), height)


def comparison_chart(key: str, comparison: Mapping[str, Any]) -> Chart:
    """Return the forest plot of a comparison of two models."""
    shown = {"overall": comparison} | comparison.get("subsets", {})
    rows = [
        [name, percent(each["accuracy_a"]), percent(each["accuracy_b"]), f"{each['difference']:+.1%}",
         f"{each['low']:+.1%} to {each['high']:+.1%}", f"{each['p_value']:.3f}"]
        for name, each in shown.items()
    ]  # fmt: skip
    head = ["", "accuracy of a", "accuracy of b", "difference", "95% interval", "p-value"]
    caption = f"a: {comparison['a']}; b: {comparison['b']}. Overall {rows[0][3]} (95% interval {rows[0][4]})."
    height = 1.3 + 0.24 * len(shown)
    return _chart(
        key, "Comparison", caption, head, rows, lambda ax: plots.comparison_forest(comparison, ax=ax), height
    )  # fmt: skip


def percent(value: float | None) -> str:
    """Return a share as a percentage of one decimal; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def number(value: float | None) -> str:
    """Return a number of three significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """Return the ends of an interval of shares."""
    return f"{percent(low)} to {percent(high)}"


def _chart(
    key: str, title: str, caption: str, head: list[str], rows: list[list[str]], draw: Draw, height: float = 3.1
) -> Chart:
    return Chart(key, title, caption, draw_svg(draw, key, title, caption, height), head, rows)
