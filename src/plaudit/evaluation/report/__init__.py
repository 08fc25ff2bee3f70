"""The report on a reward model: one HTML file of verdicts, figures, pictures and examples."""

from plaudit.evaluation.report.html_report import Report, report_on_training, write_report

__all__ = ["Report", "report_on_training", "write_report"]
