"""`plaudit audit`: what is wrong with preference data before training, and an exit code for limits on findings."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.padding import Padding

from plaudit.cli import display
from plaudit.cli.dataset_options import dataset_options
from plaudit.cli.display import percent
from plaudit.cli.output_files import check_output
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.auditing.audit import Audit
    from plaudit.auditing.findings import Finding

__all__ = ["command"]

_BASELINES = {"longer": "the longer response", "style": "six features of style", "bag_of_words": "a bag of words"}


@click.command("audit")
@click.argument("data")
@click.option("--against", metavar="TEST", help="Test data, whose prompts must not be in DATA.")
@click.option("--model", metavar="TOKENIZER", help="Model or tokenizer, to count the rows that training would cut.")
@click.option("--max_length", default=1024, show_default=True, help="Most tokens of a sequence in training.")
@click.option("--scores", multiple=True, metavar="FILE", help="Score file of a model that did not train on the rows it "
              "scores; repeat for each fold. Finds wrong labels better than the built-in probe.")  # fmt: skip
@dataset_options("Split to audit.  [default: train, else the only one]")
@click.option("--against_split", help="Split of the test data.  [default: test, else validation, else the only one]")
@click.option("--output", metavar="FILE", help="File for the whole audit: .json, or .html for people.")
@click.option("--fix", metavar="FILE", help="JSON-lines file for the data without what is surely wrong.")
@click.option("--fail_on", multiple=True, metavar="KIND=N",
              help="Exit with 1 if N or more of a kind are found (leaked_exact=1). May be repeated.")  # fmt: skip
def command(
    data: str, against: str | None, model: str | None, output: str | None, fix: str | None, fail_on: tuple[str, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Look for what is wrong with DATA (a file, a folder or a hub id of pairs or ranked groups) before training.

    Findings are shown grave ones first, then by the harm that they do, and after them the accuracy of three baselines
    that need no model. Rows are numbered from 0.
    """
    from plaudit.auditing.audit import audit
    from plaudit.auditing.audit_files import write_audit

    limits = [_parse_limit(text) for text in fail_on]
    check_output("--output", output, ".json", ".html")
    check_output("--fix", fix, ".jsonl")
    for path in (output, fix):
        if path is not None and Path(path).resolve() == Path(data).resolve():
            raise ConfigError(f"{path} is the data itself, which is never changed. Name another file.")
    display.show_log_messages()
    result = audit(data, against, tokenizer=model, **options)
    _show(result)
    if output is not None:
        write_audit(Path(output), result)
        display.console.print(f"\nThe audit is in [bold]{escape(output)}[/bold]", soft_wrap=True)
    if fix is not None:
        _fix(result, data, Path(fix), options)
    counts = {finding.kind: finding.count for finding in result.findings}
    failed = [
        f"{kind}: {counts[kind]:,} found, --fail_on {most:,}" for kind, most in limits if counts.get(kind, 0) >= most
    ]
    for line in failed:
        display.console.print("[red]FAILED[/red]", escape(line), soft_wrap=True)
    sys.exit(1 if failed else 0)


def _parse_limit(text: str) -> tuple[str, int]:
    from plaudit.auditing.findings import KINDS

    kind, _, number = text.partition("=")
    if kind not in KINDS or not number.isdecimal():
        raise ConfigError(
            f"--fail_on {text}: expected KIND=N, such as leaked_exact=1; the kinds are {', '.join(KINDS)}."
        )
    return kind, max(1, int(number))


def _show(result: "Audit") -> None:
    grave = sum(finding.grave for finding in result.findings)
    found = f"{len(result.findings)} kinds of findings ({grave} grave)" if result.findings else "no findings"
    title = f"{result.dataset}: {result.rows:,} rows of {result.prompts:,} prompts, {found}"
    display.console.print(f"\n[bold]{escape(title)}[/bold]", soft_wrap=True)
    for finding in result.findings:
        _show_finding(finding)
    shares = [
        (_BASELINES[name], f"{percent(share)} ({percent(low)} to {percent(high)})")
        for (name, share), (low, high) in zip(result.baselines.items(), result.baseline_intervals.values(), strict=True)
    ]
    display.show_table("Accuracy of baselines that need no model (five folds by prompt)", shares)
    display.console.print(f"\nLabel noise: {escape(result.label_noise['verdict'])}.")
    if result.agreement:
        alpha, rows = result.agreement["alpha"], result.agreement["rows"]
        display.console.print(f"Raters: Krippendorff's alpha {alpha:.2f} over {rows:,} rows (1: all agree, 0: dice).")
    if result.truncation:
        shares = [(f"more than {int(length):,} tokens", percent(share)) for length, share in result.truncation.items()]
        display.show_table("Rows by the tokens of their longest sequence", shares)


def _show_finding(finding: "Finding") -> None:
    colour, word = ("red", "GRAVE") if finding.grave else ("yellow", "note ")
    headline = escape(f"{finding.title}: {finding.count:,}")
    display.console.print(f"\n[{colour} bold]{word}[/] [bold]{headline}[/bold] ({finding.kind})")
    for line in (finding.detail, _rows(finding), finding.why, f"-> {finding.advice}"):
        if line:
            display.console.print(Padding(escape(line), (0, 0, 0, 6), expand=False))
    for text in finding.example:
        for name, value in text.items():
            line = f"[dim]{name.replace('_', ' ')}: {escape(str(value))}[/dim]"
            display.console.print(Padding(line, (0, 0, 0, 8), expand=False))


def _rows(finding: "Finding", most: int = 8) -> str:
    """Return the numbers of the first rows, those of a group in brackets, as in the JSON."""
    groups = [
        f"[{','.join(map(str, group[:6]))}{',...' if len(group) > 6 else ''}]" if len(group) > 1 else str(group[0])
        for group in finding.rows[:most]
    ]
    names = "[training row,test row]" if finding.kind.startswith("leaked") else "rows"
    more = f", and {len(finding.rows) - most:,} more" if len(finding.rows) > most else ""
    return f"{names} {', '.join(groups)}{more}" if groups else ""


def _fix(result: "Audit", data: str, path: Path, options: dict[str, Any]) -> None:
    from plaudit.auditing.audit_files import surely_wrong, write_clean
    from plaudit.auditing.row_source import open_source

    config, dataset_format = options["dataset_config"], options["dataset_format"]
    rows = open_source(data, split=options["split"], config=config, dataset_format=dataset_format, defaults=("train",))
    wrong = surely_wrong(result.findings)
    kept = write_clean(path, rows, wrong)
    taken = ", ".join(f"{len(numbers):,} {kind}" for kind, numbers in wrong.items())
    line = f"{kept:,} of {result.rows:,} rows are in [bold]{escape(str(path))}[/bold]"
    display.console.print(f"\n{line}; taken out: {taken or 'none'}", soft_wrap=True)
