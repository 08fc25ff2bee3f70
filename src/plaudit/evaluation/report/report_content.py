"""The content of a report: results turned into alerts, tables and charts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.report import alerts, report_charts
from plaudit.evaluation.report.alerts import Alert
from plaudit.evaluation.report.report_charts import Chart
from plaudit.evaluation.report.report_tables import Columns, Table, make_table, number, percent, words
from plaudit.evaluation.score_files import Scores

__all__ = ["Content", "Scored", "fill_content", "first_of_datasets"]

_DETAILED = 4  # datasets with pictures and wrong pairs
_LEVELS = ("grave", "warning", "note")
_FIGURES: Columns = {
    "name": ("", str), "comparisons": ("comparisons", number), "prompts": ("prompts", number),
    "accuracy": ("accuracy", percent), "accuracy_low": ("95% from", percent), "accuracy_high": ("to", percent),
    "longer_wins": ("longer wins", percent), "length_balanced_accuracy": ("length-balanced", percent),
    "log_loss": ("log loss", lambda loss: f"{loss:.3f}"), "calibration_error": ("calibration error", percent),
    "temperature": ("temperature", lambda temperature: f"{temperature:.2f}"),
}  # fmt: skip
_PROBES: Columns = {
    "name": ("probe", words), "passed": ("passed", lambda passed: "yes" if passed else "no"),
    "flip_rate": ("flip rate", percent), "verdict": ("verdict", str), "description": ("change", str),
    "comparisons": ("comparisons", number),
}  # fmt: skip
_FINDINGS: Columns = {
    "kind": ("finding", words), "count": ("count", number), "grave": ("grave", lambda grave: "yes" if grave else "no"),
    "rows": ("first rows", lambda rows: "; ".join(" ".join(map(str, group[:6])) for group in rows[:4])),
    "why": ("why it matters", str), "advice": ("advice", str),
}  # fmt: skip
_BASELINES: Columns = {
    "name": ("baseline", words), "accuracy": ("accuracy", percent), "low": ("95% from", percent),
    "high": ("to", percent),
}  # fmt: skip
_SETTINGS: Columns = {"name": ("setting", str), "value": ("value", str)}


class Section(NamedTuple):
    """A section at the end of a report."""

    id: str
    heading: str
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
    """The parts of a report, but for the wrong pairs."""

    subtitle: str = ""
    alerts: list[Alert] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)  # checks, each with the command that makes it
    figures: list[Table] = field(default_factory=list)
    pictures: list[tuple[str, list[Chart]]] = field(default_factory=list)  # under their headings
    further: list[Section] = field(default_factory=list)


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
    content.alerts += alerts.run_alerts(metadata)
    _add_figures(content, scored, evaluations)
    _add_score_charts(content, scored, reference)
    if training := list(report_charts.training_charts(run.get("log_history") or [])):
        content.pictures.append(("Training", training))
    _add_results(content, probes or [], comparisons, learning_curve, best_of_n)
    if audit is not None:
        content.alerts += alerts.audit_alerts(audit)
        content.further.append(_audit_section(audit))
    content.further.append(_settings(scored, metadata))
    content.alerts = _merged(content.alerts)
    content.missing = [
        (name, command)
        for name, command, value in (
            ("the data", "plaudit audit", audit),
            ("rewards of single rows", "plaudit eval --scores", scored or None),
            ("probes of the model", "plaudit eval --probes", probes),
            ("whether more data would help", "plaudit train --learning_curve", learning_curve),
        )
        if value is None
    ]
    return content


def _merged(found: Iterable[Alert]) -> list[Alert]:
    """Return alerts, the gravest first, with those of the same verdict on several subjects in one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for alert in sorted(found, key=lambda alert: _LEVELS.index(alert.level)):
        line = f"{alert.subject}: {alert.advice}" if alert.subject else alert.advice
        groups.setdefault((alert.level, alert.verdict), []).append(line)
    return [Alert(level, verdict, "\n".join(lines)) for (level, verdict), lines in groups.items()]


def _add_figures(content: Content, scored: Sequence[Scored], evaluations: Iterable[Mapping[str, Any]]) -> None:
    """Add the figures and the alerts of score files; where there are none, those of evaluations."""
    every = {each.name: each.evaluation.to_dict() for each in scored}
    every = every or {str(each["dataset"]): dict(each) for each in evaluations}
    for name, each in every.items():
        subject = name if len(every) > 1 else ""
        content.alerts += [replace(alert, subject=subject) for alert in alerts.evaluation_alerts(each)]
    detailed = {each.name: each.data for each in first_of_datasets(scored)} or {name: name for name in every}
    sizes = [(detailed[name], every[name]["overall"]) for name in detailed]
    subtitle = ["{}: {comparisons:,} comparisons of {prompts:,} prompts".format(name, **size) for name, size in sizes]
    models = list(dict.fromkeys(each.model for each in scored))
    content.subtitle = "; ".join(subtitle + ([f"models {', '.join(models)}"] if len(models) > 1 else []))
    if every:
        overall = {name: each["overall"] for name, each in every.items()}
        content.figures.append(_named_table("Figures of each dataset", overall))
    for name, each in every.items():
        if official := each.get("official"):
            shares = {"overall": official["overall"]} | official["parts"] | dict.fromkeys(official["missing"])
            records = [{"name": part, "figure": share} for part, share in shares.items()]
            caption = f"{name} by its own rule: {official['rule']}"
            parts: Columns = {"name": ("part", str), "figure": ("figure", percent)}
            content.figures.append(make_table(caption, parts, records))
        if name in detailed and len(each["subsets"]) > 1:
            ranked = dict(sorted(each["subsets"].items(), key=lambda subset: subset[1]["accuracy"] or 0))
            content.figures.append(_named_table(f"Subsets of {name}, the least accurate first", ranked))


def _named_table(caption: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    return make_table(caption, _FIGURES, [{"name": name} | dict(each) for name, each in figures.items()])


def _add_score_charts(content: Content, scored: Sequence[Scored], reference: Scores | None) -> None:
    """Add the charts of the first score file of each dataset, and all files of a dataset beside each other."""
    datasets = first_of_datasets(scored)
    for place, each in enumerate(datasets, 1):
        other = reference if place == 1 else None
        charts = list(report_charts.score_charts(f"data-{place}", each.scores, each.evaluation, other))
        members = {one.model: one.evaluation.overall for one in scored if one.dataset == each.dataset}
        if len(members) > 1:
            charts.append(report_charts.accuracy_chart(f"data-{place}-models", "Seeds or members", members))
        content.pictures.append((each.name if len(datasets) > 1 else "", charts))


def _add_results(
    content: Content,
    probes: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    learning_curve: Mapping[str, Any] | None,
    best_of_n: Mapping[str, Any] | None,
) -> None:
    """Add probes, comparisons and curves: their alerts, and their pictures under one heading."""
    charts = []
    if probes:
        content.alerts += alerts.probe_alerts(probes)
        content.further.append(Section("probes", "Probes", [make_table("Probes of the model", _PROBES, probes)]))
        if any(each["shift"]["value"] is not None for each in probes):
            charts.append(report_charts.probe_chart(probes))
    for place, comparison in enumerate(comparisons, 1):
        content.alerts += alerts.comparison_alerts(comparison)
        charts.append(report_charts.comparison_chart(f"comparison-{place}", comparison))
    if learning_curve is not None:
        content.alerts += alerts.curve_alerts(learning_curve)
        charts.append(report_charts.curve_chart(learning_curve))
    if best_of_n is not None:
        charts.append(report_charts.best_of_n_chart(best_of_n))
    if charts:
        kinds = {"Probes": probes, "Comparisons": comparisons, "Curves": learning_curve or best_of_n}
        content.pictures.append((", ".join(name for name, value in kinds.items() if value), charts))


def _audit_section(audit: Mapping[str, Any]) -> Section:
    tables = [make_table(f"Findings in {audit['rows']:,} rows", _FINDINGS, audit["findings"])]
    intervals = audit.get("baseline_intervals") or {}
    if records := [
        dict(zip(_BASELINES, (name, share, *intervals.get(name, (None, None))), strict=True))
        for name, share in (audit.get("baselines") or {}).items()
    ]:
        tables.append(make_table("Accuracy without a model, cross-validated", _BASELINES, records))
    return Section("audit", "Data", tables)


def _settings(scored: Sequence[Scored], metadata: Mapping[str, Any]) -> Section:
    every = {"The saved model": {name: each for name, each in metadata.items() if name != "fingerprint"}}
    every |= {f"Scores of {each.name}": each.scores.header for each in scored}
    tables = [make_table(name, _SETTINGS, _flatten(each)) for name, each in every.items() if each]
    return Section("settings", "Settings and versions", tables)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[dict[str, str]]:
    """Yield the names and values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif value not in (None, []) and name not in ("format", "version"):
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            yield {"name": prefix + name, "value": text[:200]}
