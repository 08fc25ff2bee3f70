"""The charts of a report: each is a picture, a text alternative, and its numbers as a table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from plaudit.calibration import calibration_bins
from plaudit.evaluation import plots
from plaudit.evaluation.chart_numbers import length_deciles, margin_bins, reward_bins, reward_quantiles
from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.report.report_tables import Columns, Table, make_table, number, percent, points, words
from plaudit.evaluation.report.svg import draw_svg
from plaudit.evaluation.score_files import Scores

__all__ = [
    "Chart",
    "accuracy_chart",
    "best_of_n_chart",
    "comparison_chart",
    "curve_chart",
    "probe_chart",
    "score_charts",
    "training_charts",
]

_RANGE: Columns = {"low": ("from", number), "high": ("to", number)}
_ACCURACY: Columns = {
    "accuracy": ("accuracy", percent), "accuracy_low": ("95% from", percent), "accuracy_high": ("to", percent),
    "comparisons": ("comparisons", number),
}  # fmt: skip


class Chart(NamedTuple):
    """A picture with the text that stands for it."""

    title: str
    caption: str  # the result in numbers; the text alternative too
    svg: str
    table: Table


def score_charts(key: str, scores: Scores, evaluation: Evaluation, reference: Scores | None = None) -> Iterator[Chart]:
    """Yield the charts of one score file.

    Args:
        key: The beginning of their identifiers, different for each file.
        scores: The scores.
        evaluation: Their figures.
        reference: Other scores, whose distribution is drawn beside.
    """
    compared, figures = scores.comparisons, evaluation.overall
    margins = scores.rewards[compared.better] - scores.rewards[compared.worse]
    longer = scores.lengths[compared.better] - scores.lengths[compared.worse]
    yield _reliability(f"{key}-reliability", (margins, compared.labels, compared.weights), figures)
    if (counted := compared.labels > 0.5).any():
        yield _margins(f"{key}-margins", margins[counted], compared.weights[counted], figures)
    if (known := counted & np.isfinite(longer)).any():
        columns = (margins[known], longer[known], compared.weights[known], compared.prompts[known])
        yield _length_differences(f"{key}-length-differences", columns, figures)
    if (measured := scores.lengths >= 1).any():
        yield _reward_and_length(f"{key}-length", scores.rewards[measured], scores.lengths[measured], figures)
    if reference is not None:
        yield _distribution(f"{key}-distribution", {"now": scores.rewards, "reference": reference.rewards})
    if len(evaluation.subsets) > 1:
        yield accuracy_chart(f"{key}-subsets", "Accuracy by subset", evaluation.subsets)


def accuracy_chart(key: str, title: str, figures: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Return dots with intervals: of subsets, or of the seeds or members that scored one dataset."""
    ranked = sorted(figures, key=lambda name: np.nan_to_num(figures[name]["accuracy"], nan=0.5))
    ends = " to ".join(f"{percent(figures[name]['accuracy'])} ({name})" for name in (ranked[0], ranked[-1]))
    caption = f"Accuracy from {ends}, with 95% intervals; crosses mark the accuracy of preferring the longer response."
    columns: Columns = {"name": ("name", str), **_ACCURACY, "longer_wins": ("longer wins", percent)}
    records = [{"name": name} | dict(each) for name, each in figures.items()]
    return _chart(key, title, caption, columns, records, partial(plots.dots, figures, title=title))


def _reliability(key: str, columns: tuple[Any, Any, Any], figures: Mapping[str, float]) -> Chart:
    temperature, loss = figures["temperature"], figures["calibrated_log_loss"]
    helps = f"divided by {temperature:.3g}, {loss:.3f}" if 0 < temperature < math.inf else "no temperature helps"
    caption = f"Calibration error {percent(figures['calibration_error'])}. Log loss {figures['log_loss']:.3f}; {helps}."
    names = ("confidence", "share that is right", "share of comparisons")
    bins = [dict(zip(names, each, strict=True)) for each in calibration_bins(*columns).tolist()]
    draw = partial(plots.reliability_diagram, *columns, temperature=temperature)
    return _chart(key, "Reliability", caption, {name: (name, percent) for name in names}, bins, draw)


def _margins(key: str, margins: Any, weights: Any, figures: Mapping[str, float]) -> Chart:
    caption = f"{percent(figures['accuracy'])} are right; the median margin is {np.median(margins):.3g}."
    columns: Columns = {**_RANGE, "share": ("share of comparisons", percent)}
    draw = partial(plots.margin_histogram, margins, weights)
    return _chart(key, "Margins", caption, columns, margin_bins(margins, weights), draw)


def _length_differences(key: str, columns: tuple[Any, ...], figures: Mapping[str, float]) -> Chart:
    longer, shorter = (figures[f"{side}_accuracy"] for side in ("longer", "shorter"))
    caption = (
        f"Accuracy {percent(longer)} where the better response is longer, {percent(shorter)} where it is shorter; "
        f"their mean is {percent(figures['length_balanced_accuracy'])}."
    )
    draw = partial(plots.accuracy_by_length_difference, *columns)
    return _chart(key, "Accuracy by length", caption, _RANGE | _ACCURACY, length_deciles(*columns), draw, 3.4)


def _reward_and_length(key: str, rewards: Any, lengths: Any, figures: Mapping[str, float]) -> Chart:
    caption = f"{len(rewards):,} responses; the fuller a cell, the stronger its shade."
    if math.isfinite(figures["length_correlation"]):
        correlation = figures["length_correlation"]
        caption += f" Differences in reward and in length have a rank correlation of {correlation:+.2f}."
    columns: Columns = {
        "shortest": ("characters from", number), "longest": ("to", number), "low": ("a tenth below", number),
        "median": ("median reward", number), "high": ("a tenth above", number),
    }  # fmt: skip
    draw = partial(plots.reward_against_length, rewards, lengths)
    return _chart(key, "Reward and length", caption, columns, reward_quantiles(rewards, lengths), draw)


def _distribution(key: str, rewards: Mapping[str, Any]) -> Chart:
    spread = [f"{name}: mean {np.mean(each):.3g}, deviation {np.std(each):.3g}" for name, each in rewards.items()]
    columns: Columns = {**_RANGE, **{name: (name, percent) for name in rewards}}
    draw = partial(plots.reward_distribution, rewards)
    return _chart(key, "Rewards", "; ".join(spread), columns, reward_bins(rewards), draw)


def training_charts(log_history: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield the course of the loss and of the accuracy in a training log, where it has them."""
    for metric in ("loss", "accuracy"):
        held_out = f"eval_{metric}"
        columns: Columns = {"step": ("step", number), metric: ("training", number), held_out: ("evaluation", number)}
        if logged := [each for each in log_history if metric in each or held_out in each]:
            last = {name: each[name] for each in logged for name in columns if name in each}
            ends = [f"{heading} {as_text(last[name])}" for name, (heading, as_text) in columns.items() if name in last]
            shown = logged[:: len(logged) // 100 + 1]
            title, caption = f"Training: {metric}", f"At the end: {', '.join(ends)}."
            draw = partial(plots.training_log, log_history, metric)
            yield _chart(f"training-{metric}", title, caption, columns, shown, draw)


def curve_chart(curve: Mapping[str, Any]) -> Chart:
    """Return the chart of a learning curve."""
    columns: Columns = {
        "size": ("training rows", number), "loss": ("log loss", number), "low": ("95% from", number),
        "high": ("to", number), "accuracy": ("accuracy", percent), "origin": ("", str),
    }  # fmt: skip
    measured = (curve[name] for name in ("sizes", "losses", "loss_low", "loss_high", "accuracies"))
    records = [dict(zip(columns, (*each, "measured"), strict=True)) for each in zip(*measured, strict=True)]
    records += [curve["predicted"] | {"origin": "predicted"}] if curve["predicted"] else []
    draw = partial(plots.learning_curve, curve)
    return _chart("learning-curve", "Would more data help?", curve["verdict"], columns, records, draw)


def best_of_n_chart(curve: Mapping[str, Any]) -> Chart:
    """Return the chart of a best-of-n curve."""
    columns: Columns = {
        "n": ("n", number), "sqrt_kl": ("√KL", number), "proxy": ("reward", number), "gold": ("gold", number),
        "oracle": ("gold, chosen by gold", number),
    }  # fmt: skip
    records = [dict(zip(columns, each, strict=True)) for each in zip(*(curve[name] for name in columns), strict=True)]
    return _chart("best-of-n", "Best of n", curve["verdict"], columns, records, partial(plots.best_of_n, curve))


def probe_chart(probes: Sequence[Mapping[str, Any]]) -> Chart:
    """Return the forest plot of the probes that have a shift."""
    shown = [dict(each) | each["shift"] for each in probes if each["shift"]["value"] is not None]
    failed = [words(each["name"]) for each in shown if each["passed"] is False]
    caption = f"{len(shown)} probes; failed: {', '.join(failed) or 'none'}."
    columns: Columns = {
        "name": ("probe", words), "value": ("shift (deviations)", number), "low": ("95% from", number),
        "high": ("to", number), "flip_rate": ("flip rate", percent), "prefers_changed": ("prefers the change", percent),
    }  # fmt: skip
    return _chart("probes-shift", "Probes", caption, columns, shown, partial(plots.probe_forest, shown))


def comparison_chart(key: str, comparison: Mapping[str, Any]) -> Chart:
    """Return the forest plot of a comparison of two models, overall and by subset."""
    columns: Columns = {
        "name": ("subset", str), "accuracy_a": ("accuracy of a", percent), "accuracy_b": ("accuracy of b", percent),
        "difference": ("difference", points), "low": ("95% from", points), "high": ("to", points),
        "p_value": ("p-value", number),
    }  # fmt: skip
    shown = [{"name": name} | dict(each) for name, each in {"overall": comparison, **comparison["subsets"]}.items()]
    interval = f"{points(comparison['low'])} to {points(comparison['high'])}"
    caption = f"a: {comparison['a']}; b: {comparison['b']}. a minus b: {points(comparison['difference'])} ({interval})."
    draw = partial(plots.comparison_forest, comparison)
    return _chart(key, f"Against {comparison['b']}", caption, columns, shown, draw)


def _chart(
    key: str,
    title: str,
    caption: str,
    columns: Columns,
    records: Sequence[Mapping[str, Any]],
    draw: Callable[..., object],
    height: float | None = None,
) -> Chart:
    """Draw a chart; one with a name in each row is as high as its rows need."""
    height = height or (1.3 + 0.26 * len(records) if "name" in columns else 3.1)
    return Chart(title, caption, draw_svg(draw, key, title, caption, height), make_table(title, columns, records))
