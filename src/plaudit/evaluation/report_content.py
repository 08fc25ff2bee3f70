"""The content of a report: results turned into alerts, tables and charts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from plaudit.evaluation.alerts import (
    Alert,
    audit_alerts,
    comparison_alerts,
    curve_alerts,
    evaluation_alerts,
    probe_alerts,
    run_alerts,
)
from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.score_files import Scores

__all__ = ["Content", "Scored", "Section", "Table", "fill_content", "first_of_datasets"]

_DETAILED = 4  # datasets with pictures and wrong pairs
_MOST_SUBSETS = 60
_LEVELS = ("grave", "warning", "note")


class Table(NamedTuple):
    """A table; the first cell of a row names the row."""

    caption: str
    head: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    """A section at the end of a report."""

    id: str
    heading: str
    paragraphs: list[str]
    tables: list[Table]


@dataclass(frozen=True)
class Scored:
    """A score file with its figures, and names for readers."""

    scores: Scores
    evaluation: Evaluation
    model: str
    data: str
    name: str  # of the data, of the model, or of both, by what tells the files of a report apart

    @property
    def dataset(self) -> tuple[Any, ...]:
        """The properties by which datasets are told apart."""
        named = self.scores.header.get("dataset") or {}
        return self.scores.header.get("benchmark"), named.get("path"), named.get("split"), named.get("hash")


@dataclass
class Content:
    """The parts of a report, but for the wrong pairs.

    Attributes:
        subtitle: The size of the report's data, in a sentence.
        alerts: Verdicts, the gravest first; what is said of several subjects is one alert.
        missing: Checks that the report knows nothing of, each with the command that makes it.
        figures: Tables of figures.
        pictures: Charts under their headings.
        further: Sections after the wrong pairs.
    """

    subtitle: str = ""
    alerts: list[Alert] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Table] = field(default_factory=list)
    pictures: list[tuple[str, list[Any]]] = field(default_factory=list)
    further: list[Section] = field(default_factory=list)

    def sections(self, with_pairs: bool) -> list[tuple[str, str]]:
        """Return the identifiers and headings of the sections that are not empty."""
        first = [("alerts", "What is wrong", True), ("figures", "Figures", bool(self.figures))]
        first += [("pictures", "Pictures", bool(self.pictures)), ("pairs", "Most confidently wrong", with_pairs)]
        there = [(name, heading) for name, heading, is_there in first if is_there]
        return there + [(each.id, each.heading) for each in self.further]


def first_of_datasets(scored: Sequence[Scored]) -> list[Scored]:
    """Return the first score file of each dataset, of the few datasets that are shown in detail."""
    first: dict[tuple[Any, ...], Scored] = {}
    for each in scored:
        first.setdefault(each.dataset, each)
    return list(first.values())[:_DETAILED]


def fill_content(
    scored: Sequence[Scored],
    run: Mapping[str, Any],
    *,
    evaluations: Sequence[Mapping[str, Any]],
    audit: Mapping[str, Any] | None,
    probes: Sequence[Mapping[str, Any]] | None,
    comparisons: Sequence[Mapping[str, Any]],
    learning_curve: Mapping[str, Any] | None,
    best_of_n: Mapping[str, Any] | None,
    reference: Scores | None,
) -> Content:
    """Return the content of a report from the inputs of `plaudit.evaluation.report.write_report`, all read."""
    content = Content()
    metadata = run.get("metadata") or {}
    content.alerts += run_alerts(metadata)
    _add_figures(content, scored, evaluations)
    _add_pictures(content, scored, run.get("log_history") or [], reference)
    _add_results(content, probes, comparisons, learning_curve, best_of_n)
    if audit is not None:
        content.alerts += audit_alerts(audit)
        content.further.append(_audit_section(audit))
    content.further.append(_settings(scored, metadata))
    given = (
        ("the data", "plaudit audit", audit),
        ("rewards of single rows", "plaudit eval --scores", scored or None),
        ("probes of the model", "plaudit eval --probes", probes),
        ("whether more data would help", "plaudit train --learning_curve", learning_curve),
    )
    content.missing = [(name, command) for name, command, value in given if value is None]
    content.alerts = _merged(content.alerts)
    return content


def _merged(alerts: Sequence[Alert]) -> list[Alert]:
    """Return alerts, the gravest first, with those of the same verdict on several subjects in one."""
    groups: dict[tuple[str, str], list[Alert]] = {}
    for alert in sorted(alerts, key=lambda alert: _LEVELS.index(alert.level)):
        groups.setdefault((alert.level, alert.verdict), []).append(alert)
    return [
        Alert(level, verdict, "\n".join(": ".join(filter(None, (each.subject, each.advice))) for each in group))
        for (level, verdict), group in groups.items()
    ]


def _add_figures(content: Content, scored: Sequence[Scored], evaluations: Iterable[Mapping[str, Any]]) -> None:
    """Add the figures and the alerts of score files, and of evaluations without scores."""
    every = {each.name: each.evaluation.to_dict() for each in scored}
    every |= {str(each["dataset"]): dict(each) for each in evaluations if not scored}
    for name, evaluation in every.items():
        subject = name if len(every) > 1 else ""
        content.alerts += [replace(alert, subject=subject) for alert in evaluation_alerts(evaluation)]
    if every:
        rows = {name: each["overall"] for name, each in every.items()}
        content.figures.append(_figure_table("Figures of each dataset", rows))
    first = {each.name: each.data for each in first_of_datasets(scored)} or dict.fromkeys(every, "")
    counted = [(first[name] or name, each["overall"]) for name, each in every.items() if name in first]
    sizes = ["{}: {comparisons:,} comparisons of {prompts:,} prompts".format(name, **each) for name, each in counted]
    content.figures += [_official_table(name, each["official"]) for name, each in every.items() if each.get("official")]
    models = dict.fromkeys(each.model for each in scored)
    content.subtitle = "; ".join([*sizes, *([f"models {', '.join(models)}"] if len(models) > 1 else [])])
    for name in first:
        subsets = every[name]["subsets"]
        if len(subsets) > 1:
            caption = f"Subsets of {name}, the least accurate first"
            shown = dict(sorted(subsets.items(), key=lambda each: each[1]["accuracy"] or 0)[:_MOST_SUBSETS])
            content.figures.append(_figure_table(caption, shown))


def _add_pictures(content: Content, scored: Sequence[Scored], log: Sequence[Any], reference: Scores | None) -> None:
    from plaudit.evaluation.report_charts import accuracy_chart, score_charts, training_charts

    datasets = first_of_datasets(scored)
    for number, each in enumerate(datasets):
        other = reference if number == 0 else None
        charts = list(score_charts(f"data-{number + 1}", each.scores, each.evaluation, other))
        members = {one.model: one.evaluation.overall for one in scored if one.dataset == each.dataset}
        if len(members) > 1:
            charts.append(accuracy_chart(f"data-{number + 1}-models", "Seeds or members", members))
        content.pictures.append((each.name if len(datasets) > 1 else "", charts))
    if training := list(training_charts(log)):
        content.pictures.append(("Training", training))


def _add_results(
    content: Content,
    probes: Sequence[Mapping[str, Any]] | None,
    comparisons: Sequence[Mapping[str, Any]],
    learning_curve: Mapping[str, Any] | None,
    best_of_n: Mapping[str, Any] | None,
) -> None:
    """Add probes, comparisons and curves: their alerts, and their pictures under one heading."""
    from plaudit.evaluation.report_charts import best_of_n_chart, comparison_chart, curve_chart, probe_chart

    charts = []
    if probes:
        content.alerts += probe_alerts(probes)
        charts += [chart] if (chart := probe_chart(probes)) else []
        content.further.append(_probe_section(probes))
    for number, comparison in enumerate(comparisons, 1):
        content.alerts += comparison_alerts(comparison)
        charts.append(comparison_chart(f"comparison-{number}", comparison))
    if learning_curve is not None:
        content.alerts += curve_alerts(learning_curve)
        charts.append(curve_chart(learning_curve))
    if best_of_n is not None:
        charts.append(best_of_n_chart(best_of_n))
    if charts:
        content.pictures.append(("Probes, comparisons and curves" if content.pictures else "", charts))


def _figure_table(caption: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    from plaudit.evaluation.report_charts import interval, number, percent

    head = ["", "comparisons", "prompts", "accuracy", "95% interval", "longer wins", "length-balanced", "log loss",
            "calibration error", "temperature"]  # fmt: skip
    rows = []
    for name, each in figures.items():
        shares = (percent(each.get(share)) for share in ("longer_wins", "length_balanced_accuracy"))
        rows.append([
            name, f"{each['comparisons']:,}", f"{each['prompts']:,}", percent(each["accuracy"]),
            interval(each["accuracy_low"], each["accuracy_high"]), *shares, f"{each['log_loss']:.3f}",
            percent(each["calibration_error"]), _temperature(each["temperature"]),
        ])  # fmt: skip
    return Table(caption, head, rows)


def _official_table(name: str, official: Mapping[str, Any]) -> Table:
    """Return the figures of a benchmark by its own rule."""
    from plaudit.evaluation.report_charts import percent

    shares = {"overall": official["overall"]} | official["parts"] | dict.fromkeys(official["missing"])
    caption = f"{name} by its own rule: {official['rule']}"
    return Table(caption, ["part", "figure"], [[part, percent(share)] for part, share in shares.items()])


def _temperature(value: float | None) -> str:
    return "none helps" if value is None else f"{value:.2f}"


def _probe_section(probes: Sequence[Mapping[str, Any]]) -> Section:
    from plaudit.evaluation.report_charts import percent

    words = {True: "passed", False: "failed", None: "cannot tell"}
    rows = [
        [each["name"].replace("_", " "), words[each["passed"]], percent(each["flip_rate"]["value"]), each["verdict"],
         each["description"], f"{each['comparisons']:,}"]
        for each in probes
    ]  # fmt: skip
    head = ["probe", "verdict", "flip rate", "reason", "change", "comparisons"]
    return Section("probes", "Probes", [], [Table("Probes of the model", head, rows)])


def _audit_section(audit: Mapping[str, Any]) -> Section:
    from plaudit.evaluation.report_charts import number

    rows = [
        [str(each["kind"]).replace("_", " "), f"{each['count']:,}", "yes" if each["grave"] else "no",
         "; ".join(str(group).strip("[]") for group in each["rows"][:5]), each["why"], each["advice"]]
        for each in audit["findings"]
    ]  # fmt: skip
    tables = [Table("Findings", ["finding", "count", "grave", "first rows", "why it matters", "advice"], rows)]
    baselines = {name: each for name, each in (audit.get("baselines") or {}).items() if isinstance(each, (int, float))}
    if baselines:
        named = [[name.replace("_", " "), number(each)] for name, each in baselines.items()]
        tables.append(Table("Accuracy without a model", ["baseline", "accuracy"], named))
    return Section("audit", "Data", [f"{audit['rows']:,} rows were audited."], tables)


def _settings(scored: Sequence[Scored], metadata: Mapping[str, Any]) -> Section:
    tables = []
    shown = {name: each for name, each in metadata.items() if name != "fingerprint"}
    if shown:
        tables.append(Table("The saved model", ["setting", "value"], list(_flatten(shown))))
    for each in scored:
        tables.append(Table(f"Scores of {each.name}", ["setting", "value"], list(_flatten(each.scores.header))))
    return Section("settings", "Settings and versions", [], tables)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[list[str]]:
    """Yield the names and values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            yield [f"{prefix}{name}", str(value) if len(str(value)) <= 200 else f"{str(value)[:200]}…"]
