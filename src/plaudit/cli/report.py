"""`plaudit report`: one HTML file about a reward model, from a run, score files and other results."""

from typing import TYPE_CHECKING

import click
from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.output_files import check_output

if TYPE_CHECKING:
    from plaudit.evaluation.report import Report

__all__ = ["command", "show_report"]

_COLOURS = {"grave": "red", "warning": "yellow", "note": "cyan"}


@click.command("report")
@click.argument("inputs", metavar="[RUN] [FILE ...]", nargs=-1, required=True)
@click.option(
    "--compare", multiple=True, metavar="FILE",
    help="Score file of another model, or what `plaudit compare --output` wrote. May be repeated.",
)  # fmt: skip
@click.option("--output", default="report.html", show_default=True, help="HTML file to write.")
@click.option(
    "--examples", type=click.IntRange(0), default=20, show_default=True, help="Most wrong pairs that are shown."
)
@click.option("--title", help="Title of the report.  [default: the name of the run or the model]")
def command(inputs: tuple[str, ...], compare: tuple[str, ...], output: str, examples: int, title: str | None) -> None:
    """Write a report on RUN, the folder of a trained model, and on result FILES, in any order.

    A FILE is a score file (`plaudit eval --scores`), or the JSON of `plaudit audit`, of `plaudit eval --output` with
    probes or a best-of-n curve, of `plaudit compare --output`, or of a learning curve; those in the folder are read
    too. The report is one HTML file that needs no network and runs no script.
    """
    from plaudit.evaluation.report import write_report
    from plaudit.evaluation.report.report_inputs import read_report_inputs

    check_output("--output", output, ".html", ".htm")
    display.show_log_messages()
    report = write_report(output, **read_report_inputs(inputs, compare), examples=examples, title=title)
    show_report(report)


def show_report(report: "Report") -> None:
    """Print the verdicts of a report, and its place."""
    for alert in report.alerts:
        colour = _COLOURS[alert.level]
        display.console.print(f"[{colour}]{alert.level}[/{colour}]", escape(alert.verdict), soft_wrap=True)
    found = f"{len(report.alerts)} alerts" if len(report.alerts) != 1 else "1 alert"
    size = f"{report.size / 1000:,.0f} kB, {found}"
    display.console.print(f"The report is in [bold]{escape(str(report.path))}[/bold] ({size})", soft_wrap=True)
