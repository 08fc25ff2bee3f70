"""The report: one HTML file without scripts that shows what a reward model learnt, and what is wrong with it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from plaudit.checkpoint.atomic import write_atomically
from plaudit.errors import DataError, PlauditError
from plaudit.evaluation.evaluate import evaluate_scores
from plaudit.evaluation.number_texts import cell
from plaudit.evaluation.report import alerts, report_charts
from plaudit.evaluation.report.report_charts import Chart
from plaudit.evaluation.report.report_inputs import name_scores, read_results, read_run
from plaudit.evaluation.report.wrong_pairs import load_texts, most_confidently_wrong, set_side_by_side
from plaudit.evaluation.scores import Scores

__all__ = ["Report", "report_on_training", "write_report"]

_MOST_BYTES = 1_000_000
_CHARACTERS = (2000, 1200, 700, 350, 150)  # of a response: the most with which a report is small enough
_RESULTS: dict[str, tuple[Callable[[Any], Iterable[alerts.Alert]], Callable[[str, Any], Chart]]] = {
    "probes": (alerts.probe_alerts, report_charts.probe_chart),
    "comparisons": (alerts.comparison_alerts, report_charts.comparison_chart),
    "learning_curve": (lambda _: (), report_charts.curve_chart),
    "best_of_n": (lambda _: (), report_charts.best_of_n_chart),
}


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: The file.
        size: Its size in bytes.
        alerts: The verdicts on its top, the gravest first.
    """

    path: Path
    size: int
    alerts: list[alerts.Alert]


def write_report(
    output: str | Path,
    *,
    run: str | Path | Mapping[str, Any] | None = None,
    scores: Sequence[Scores | str | Path] = (),
    rows: Sequence[Any] | None = None,
    audit: Any = None,
    probes: Any = None,
    comparisons: Sequence[Any] = (),
    learning_curve: Any = None,
    best_of_n: Any = None,
    reference: Scores | str | Path | None = None,
    examples: int = 20,
    title: str | None = None,
) -> Report:
    """Write one self-contained HTML file about a reward model, and return its alerts.

    Each result is an object with `to_dict`, such a dictionary, or the path of the JSON file that holds it. The same
    inputs give the same bytes. The file loads nothing, runs no script, and follows the light or dark mode of its
    reader.

    Args:
        output: The HTML file.
        run: The folder of a training run, of which `reward.json` and the log are read; or a dictionary of `name`,
            `metadata` (the content of `reward.json`) and `log_history`.
        scores: Score files, or their scores, of several datasets, seeds or members. All have figures and alerts; the
            first has the pictures of margins and rewards and the wrong pairs.
        rows: The rows of the first score file, for the texts of its wrong pairs; by default, they are loaded as the
            file names them.
        audit: An audit of the training data.
        probes: A list of results of probes.
        comparisons: Comparisons with other models.
        learning_curve: A learning curve.
        best_of_n: A best-of-n curve.
        reference: Scores of another model on the same rows, whose distribution is drawn beside.
        examples: The most wrong pairs.
        title: The title; by default, it names the run or the model.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: A file cannot be read, holds something else, or has no row with a preference.
    """
    scored = name_scores(scores)
    evaluations = {name: evaluate_scores(each).to_dict() for name, each in scored.items()}
    with _naming(run, "the folder of a run"):
        described = read_run(run)
        found = list(alerts.run_alerts(described["metadata"]))
        training = list(report_charts.training_charts(described["log_history"]))
    audited, baselines = None, dict[str, dict[str, float]]()
    if audit is not None:
        with _naming(audit, "the JSON of an audit"):
            (audited,) = read_results(audit, "audit")
            found += alerts.audit_alerts(audited)
            baselines = _baselines(audited)
    results = [("probes", probes), ("learning_curve", learning_curve), ("best_of_n", best_of_n)]
    charts: list[Chart] = []
    for verdicts, chart in _results([*results, *(("comparisons", each) for each in comparisons)]):
        found += verdicts
        charts.append(chart)
    for name, each in evaluations.items():
        here = [*alerts.evaluation_alerts(each), *alerts.baseline_alerts(each["overall"], baselines)]
        found += [replace(alert, advice=f"{name}: {alert.advice}") for alert in here] if len(scored) > 1 else here
    overall = {name: each["overall"] for name, each in evaluations.items()} | baselines
    pictures = [report_charts.accuracy_chart("models", "Accuracy", overall)] if len(overall) > 1 else []
    wrong = None
    if scored:
        first, *_ = scored.values()
        beside = None if reference is None else next(iter(name_scores([reference]).values()))
        pictures += report_charts.score_charts(first, next(iter(evaluations.values())), beside)
        wrong = _wrong_pairs(first, rows, examples)
    given = {"audit": audit, "eval --scores": scores, "eval --probes": probes, "train --learning_curve": learning_curve}
    model = described["name"] or next((each.header.get("model") for each in scored.values()), None)
    settings = {name: value for name, value in described["metadata"].items() if name != "fingerprint"}
    report = Report(Path(output), 0, alerts.merge_alerts(found))
    html = _render(
        title=title or f"Reward model: {model or 'evaluation'}",
        alerts=report.alerts,
        missing=[command for command, value in given.items() if not value],
        figures=report_charts.figure_records(overall),
        official={name: each["official"] for name, each in evaluations.items() if each["official"]},
        pictures=pictures + charts + training,
        wrong=wrong,
        audit=audited,
        settings={"The saved model": settings} | {f"Scores of {name}": each.header for name, each in scored.items()},
    )
    write_atomically(Path(output), html)
    return replace(report, size=len(html))


def report_on_training(folder: str | Path, log_history: Sequence[Mapping[str, Any]], **results: Any) -> Report:
    """Write `report.html` into the folder of a run, with its log and further arguments of `write_report`."""
    run = read_run(folder) | {"log_history": list(log_history)}
    return write_report(Path(folder, "report.html"), run=run, **results)


@contextmanager
def _naming(source: Any, expected: str) -> Iterator[None]:
    """Turn the errors of a malformed result into one that names the source of the result."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, PlauditError):
            raise
        name = source if isinstance(source, (str, Path)) else "report"
        raise DataError(f"{name}: expected {expected} ({type(error).__name__}: {error}).") from error


def _results(sources: Iterable[tuple[str, Any]]) -> Iterator[tuple[Iterable[alerts.Alert], Chart]]:
    """Yield the alerts and the chart of each result, of pairs of its kind and what holds it."""
    for place, (kind, source) in enumerate(sources):
        words = kind.replace("_", "-")
        with _naming(source, f"the JSON of {words}"):
            find, draw = _RESULTS[kind]
            for number, result in enumerate(read_results(source, kind)):
                yield list(find(result)), draw(f"{words}-{place}-{number}", result)


def _baselines(audit: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures of each baseline of an audit, by its name for readers."""
    names = ("accuracy", "accuracy_low", "accuracy_high")
    shares = {name: (share, *audit["baseline_intervals"][name]) for name, share in audit["baselines"].items() if share}
    return {
        f"{name.replace('_', ' ')} (training data)": dict(zip(names, each, strict=True))
        for name, each in shares.items()
    }


def _wrong_pairs(scores: Scores, rows: Sequence[Any] | None, examples: int) -> dict[str, Any]:
    """Return the wrong pairs of a score file with their texts, or with the reason why there are none."""
    pairs = most_confidently_wrong(scores, examples)
    try:
        return {"pairs": pairs, "texts": load_texts(scores, [pair.row for pair in pairs], rows)}
    except PlauditError as error:
        return {"pairs": pairs, "texts": {}, "problem": str(error).rstrip(".")}


def _render(**content: Any) -> bytes:
    """Return the file, with so many characters of each response that it is small."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "json": partial(json.dumps, indent=1, ensure_ascii=False)}
    template = files("plaudit.evaluation.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template, {"version": version("plaudit"), "side_by_side": set_side_by_side})
    html = b""
    for characters in _CHARACTERS:
        html = page.render(characters=characters, **content).encode(
            errors="replace"
        )  # lone surrogates cannot be encoded
        if len(html) <= _MOST_BYTES:
            break
    return html
