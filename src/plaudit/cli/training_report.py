"""The data and the result of `plaudit train`, judged: grave findings before it trains, a report with `--report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.report import show_report

__all__ = ["check_report", "show_grave_findings", "write_training_report"]


def check_report() -> None:
    """Refuse `--report` where its pictures cannot be drawn, before anything trains.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    import plaudit.evaluation.plots  # noqa: F401  # its import is what checks


def show_grave_findings(train: Any, test: Any = None) -> None:
    """Print one line if the training rows, or the held-out rows, have something grave that is quickly found."""
    from plaudit.auditing.audit import cheap_findings

    if _has_texts(train):
        found = cheap_findings(train, test if _has_texts(test) else None)
        if listed := "; ".join(f"{each.title}: {each.count:,}" for each in found if each.grave):
            line = f"Look at the training data: {listed}. `plaudit audit` shows the rows."
            display.console.print(f"[yellow]{escape(line)}[/yellow]", soft_wrap=True)


def write_training_report(output_dir: str, log_history: Sequence[Mapping[str, Any]], splits: tuple[Any, Any]) -> None:
    """Audit the training rows, score the held-out rows with the saved model, and write both with the report.

    Args:
        output_dir: The folder of the run, with the saved model.
        log_history: The log of the training.
        splits: The training rows, and the held-out rows or `None`.
    """
    from plaudit.auditing.audit import audit
    from plaudit.auditing.audit_files import write_audit
    from plaudit.checkpoint.atomic import staged_file
    from plaudit.cli.learning_curve import FILE_NAME
    from plaudit.evaluation.evaluate import evaluate
    from plaudit.evaluation.report import report_on_training
    from plaudit.evaluation.score_files import write_scores

    train, test = splits
    folder, results = Path(output_dir), dict[str, Any]()
    if _has_texts(train):
        display.console.print("Auditing the training rows ...")
        results["audit"] = audit(train, test if _has_texts(test) else None)
        write_audit(folder / "audit.json", results["audit"])
    if _has_texts(test):
        display.console.print("Scoring the held-out rows with the saved model ...")
        with staged_file(folder / "held-out.jsonl") as file:  # a later report, comparison or probe needs the texts
            test.to_json(file)
        scores = evaluate(output_dir, folder / "held-out.jsonl").scores
        write_scores(folder / "scores.jsonl", scores)
        results["scores"] = [scores]
    if (folder / FILE_NAME).is_file():
        results["learning_curve"] = folder / FILE_NAME
    show_report(report_on_training(folder, log_history, **results))


def _has_texts(rows: Any) -> bool:
    """Return whether rows are all at hand, and hold texts rather than token ids."""
    return hasattr(rows, "num_rows") and bool({"chosen", "completions"} & set(rows.column_names))
