"""The charts of a report: each is a picture, a text alternative, and its numbers as a table."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from plaudit.evaluation import plots
from plaudit.evaluation.chart_numbers import (
    comparison_rows,
    length_deciles,
    margin_bins,
    reward_bins,
    reward_length_cells,
)
from plaudit.evaluation.number_texts import cell, percent
from plaudit.evaluation.report.svg import draw_svg
from plaudit.evaluation.scores import Scores

__all__ = [
    "Chart",
    "accuracy_chart",
    "best_of_n_chart",
    "comparison_chart",
    "curve_chart",
    "figure_records",
    "probe_chart",
    "score_charts",
    "training_charts",
]

Records = list[dict[str, Any]]
_FIGURES = (
    "accuracy accuracy_low accuracy_high longer_wins length_balanced_accuracy log_loss calibration_error temperature "
    "comparisons prompts"
)


class Chart(NamedTuple):
    """A picture with the text and the table that stand for it."""

    title: str
    caption: str  # the result in numbers; the text alternative too
    svg: Markup
    records: Records


def score_charts(scores: Scores, evaluation: Mapping[str, Any], reference: Scores | None = None) -> Iterator[Chart]:
    """Yield the charts of a score file, beside the rewards of another one; its figures are those of `to_dict`."""
    pairs, figures = scores.comparisons, evaluation["overall"]
    margins = scores.margins
    longer = scores.lengths[pairs.better] - scores.lengths[pairs.worse]
    counted, measured = pairs.labels > 0.5, scores.lengths >= 1
    known = counted & np.isfinite(longer)
    yield _reliability((margins, pairs.labels, pairs.weights), figures, evaluation["calibration"])
    if counted.any():
        columns: tuple[Any, ...] = (margins[counted], pairs.weights[counted])
        caption = f"{percent(figures['accuracy'])} are right; the median margin is {np.median(columns[0]):.3g}."
        draw = partial(plots.margin_histogram, *columns)
        yield _chart("margins", "Margins", caption, margin_bins(*columns), draw)
    if known.any():
        columns = (margins[known], longer[known], pairs.weights[known], pairs.prompts[known])
        means = (percent(figures[f"{name}_accuracy"]) for name in ("longer", "shorter", "length_balanced"))
        caption = "Accuracy {} where the better response is longer, {} where it is shorter; mean {}.".format(*means)
        draw = partial(plots.accuracy_by_length_difference, *columns)
        yield _chart("length-differences", "Accuracy by length", caption, length_deciles(*columns), draw, 3.4)
    if measured.any():
        columns = (scores.rewards[measured], scores.lengths[measured])
        correlation = cell(figures["length_correlation"])
        caption = (
            f"{len(columns[0]):,} responses; the fuller a cell, the stronger its shade. The rank correlation of "
            f"differences in reward and in length is {correlation}."
        )
        draw = partial(plots.reward_against_length, *columns)
        yield _chart("length", "Reward and length", caption, reward_length_cells(*columns), draw)
    if reference is not None:
        rewards = {"now": scores.rewards, "reference": reference.rewards}
        parts = (f"{name}: mean {np.mean(each):.3g}, deviation {np.std(each):.3g}" for name, each in rewards.items())
        draw = partial(plots.reward_distribution, rewards)
        yield _chart("distribution", "Rewards", "; ".join(parts) + ".", reward_bins(rewards), draw)
    if evaluation["uncertainty"]:
        yield from _uncertainty_charts(evaluation["uncertainty"])
    if len(evaluation["subsets"]) > 1:
        yield accuracy_chart("subsets", "Accuracy by subset", evaluation["subsets"])


def _uncertainty_charts(uncertainty: Mapping[str, Any]) -> Iterator[Chart]:
    """Yield the charts of the members' spread: accuracy by it, coverage, probabilities, and the members' errors."""
    of_whom = "members" if uncertainty["kind"] == "members" else "sampled heads"
    mean = cell(uncertainty["error_correlation"])
    correlation = f"The errors of the {uncertainty['members']} {of_whom} have a mean correlation of {mean}."
    matrix = uncertainty["error_correlations"] if uncertainty["members"] > 2 else []
    if uncertainty["coverage"]:
        of = {"by spread": uncertainty["spread_bins"], "at equal differences": uncertainty["adjusted_bins"]}
        records = [{"tenths": name, **each} for name, bins in of.items() for each in bins]
        caption = uncertainty["verdict"] + ("" if matrix else f" {correlation}")
        draw = partial(plots.accuracy_by_spread, uncertainty)
        yield _chart("spread", "Accuracy by spread", caption, records, draw)
        aurocs = [cell(uncertainty[f"{name}_auroc"]) for name in ("spread", "margin")]
        texts = "{} by spread, {} by difference of rewards".format(*aurocs)
        caption = f"AUROC for errors: {texts}. The difference needs no members: what counts is what the spread adds."
        draw = partial(plots.accuracy_by_coverage, uncertainty)
        yield _chart("coverage", "Accuracy by coverage", caption, uncertainty["coverage"], draw)
    if uncertainty["reliability"]:
        parts = {"without spread": "", "with it": "_with_spread"}
        shown = [(words, *(uncertainty[f"{name}{end}"] for name in ("log_loss", "calibration_error")))
                 for words, end in parts.items()]  # fmt: skip
        texts = "; ".join(f"{words} {loss:.3f}, error {percent(error)}" for words, loss, error in shown)
        caption = f"Log loss and calibration error, fitted on other prompts: {texts}."
        records = [{"fit": words, **each} for words, end in parts.items() for each in uncertainty[f"reliability{end}"]]
        draw = partial(plots.reliability_with_spread, uncertainty)
        yield _chart("reliability-with-spread", "Reliability with spread", caption, records, draw)
    if matrix:
        records = [
            {"member": str(n), **{str(m): each for m, each in enumerate(row, 1)}} for n, row in enumerate(matrix, 1)
        ]
        draw = partial(plots.error_correlations, uncertainty)
        yield _chart("error-correlations", "Correlation of errors", correlation, records, draw)


def accuracy_chart(key: str, title: str, figures: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Return dots with intervals, the least accurate first: of subsets, of models, or of a model and baselines."""
    ranked = dict(sorted(figures.items(), key=lambda each: each[1]["accuracy"] or 0))
    ends = (f"{percent(ranked[name]['accuracy'])} ({name})" for name in (next(iter(ranked)), next(reversed(ranked))))
    caption = f"Accuracy from {' to '.join(ends)}, with 95% intervals."
    return _chart(key, title, caption, figure_records(ranked), partial(plots.dots, ranked, title=title))


def figure_records(figures: Mapping[str, Mapping[str, Any]]) -> Records:
    """Return the rows of a table of figures."""
    return _pick(({"name": name, **each} for name, each in figures.items()), f"name {_FIGURES}")


def _reliability(columns: tuple[Any, Any, Any], figures: Mapping[str, Any], records: Records) -> Chart:
    temperature = math.inf if figures["temperature"] is None else figures["temperature"]
    helps = 0 < temperature < math.inf
    less = f"{figures['calibrated_log_loss']:.3f} if divided by {temperature:.3g}" if helps else "no temperature helps"
    caption = f"Calibration error {percent(figures['calibration_error'])}. Log loss {figures['log_loss']:.3f}; {less}."
    draw = partial(plots.reliability_diagram, *columns, temperature=temperature)
    return _chart("reliability", "Reliability", caption, records, draw)


def training_charts(log_history: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield the course of the loss and of the accuracy in a training log, where it has them."""
    for metric in ("loss", "accuracy"):
        names = {metric: "training", f"eval_{metric}": "evaluation"}
        last = {name: each[name] for each in log_history for name in names if name in each}
        if last:
            ends = (f"{names[name]} {cell(value, metric)}" for name, value in last.items())
            logged = [each for each in log_history if names.keys() & each.keys()]
            records = _pick(logged[:: len(logged) // 100 + 1], f"step {metric} eval_{metric}")
            caption, draw = f"At the end: {', '.join(ends)}.", partial(plots.training_log, log_history, metric)
            yield _chart(f"training-{metric}", f"Training: {metric}", caption, records, draw)


def curve_chart(key: str, curve: Mapping[str, Any]) -> Chart:
    """Return the chart of a learning curve."""
    names = {"sizes": "rows", "losses": "loss", "loss_low": "low", "loss_high": "high", "accuracies": "accuracy"}
    records = _turn(curve, names) + ([{**curve["predicted"], "rows": "twice the data"}] if curve["predicted"] else [])
    return _chart(key, "Would more data help?", curve["verdict"], records, partial(plots.learning_curve, curve))


def best_of_n_chart(key: str, curve: Mapping[str, Any]) -> Chart:
    """Return the chart of a best-of-n curve."""
    names = {"n": "n", "sqrt_kl": "√KL", "proxy": "reward", "gold": "gold", "oracle": "gold, chosen by gold"}
    return _chart(key, "Best of n", curve["verdict"], _turn(curve, names), partial(plots.best_of_n, curve))


def probe_chart(key: str, probes: Sequence[Mapping[str, Any]]) -> Chart:
    """Return the forest plot of probes, with their verdicts in the table."""
    failed = [each["name"].replace("_", " ") for each in probes if each["passed"] is False]
    caption = f"{len(probes)} probes; failed: {', '.join(failed) or 'none'}."
    records = _pick(probes, "name shift flip_rate prefers_changed comparisons verdict description")
    return _chart(key, "Probes", caption, records, partial(plots.probe_forest, probes))


def comparison_chart(key: str, comparison: Mapping[str, Any]) -> Chart:
    """Return the forest plot of a comparison of two models: overall, by a benchmark's rule, and by subset."""
    rows = ({"name": name, **each} for name, each in comparison_rows(comparison).items())
    records = _pick(rows, "name accuracy_a accuracy_b difference low high p_value")
    caption = "a: {a}; b: {b}. Accuracy {difference:+.1%} ({low:+.1%} to {high:+.1%}).".format(**comparison)
    return _chart(key, f"Against {comparison['b']}", caption, records, partial(plots.comparison_forest, comparison))


def _pick(records: Iterable[Mapping[str, Any]], names: str) -> Records:
    return [{name: each.get(name) for name in names.split()} for each in records]


def _turn(columns: Mapping[str, Sequence[Any]], names: Mapping[str, str]) -> Records:
    """Return records of columns, with other names."""
    return [dict(zip(names.values(), each, strict=True)) for each in zip(*map(columns.__getitem__, names), strict=True)]


def _chart(
    key: str, title: str, caption: str, records: Records, draw: Callable[..., object], height: float | None = None
) -> Chart:
    """Draw a chart; one with a name in each row is as high as its rows need."""
    height = height or (1.3 + 0.26 * len(records) if "name" in records[0] else 3.1)
    return Chart(title, caption, draw_svg(draw, key, title, caption, height), records)
