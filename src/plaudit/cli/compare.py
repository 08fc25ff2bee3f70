"""`plaudit compare`: whether one reward model is better than another on the same rows, or chance could explain it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from plaudit.cli import display
from plaudit.cli.model_options import model_options
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.evaluation.comparison import Comparison

__all__ = ["command"]

_ROWS_SHOWN = 10


@click.command("compare")
@click.argument("sources", metavar="A B [C ...]", nargs=-1, required=True)
@click.option("--data", help="Rows that models score, or that score files without a header belong to.")
@click.option("--split", help="Split of the data.  [default: test, else validation, else the only one]")
@click.option("--dataset_config", help="Configuration of a hub dataset that has several.")
@click.option("--dataset_format", help="Published layout of the rows: arena, helpsteer, hh, ranked or ultrafeedback.")
@model_options
@click.option("--output", help="JSON file for all figures and all rows on which two models part.")
def command(
    sources: tuple[str, ...],
    data: str | None,
    split: str | None,
    dataset_config: str | None,
    dataset_format: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Compare A with B (and with C ...): score files of `plaudit eval --scores`, or models that score --data.

    Prints the difference in accuracy with its 95% interval, a p-value, and the smallest difference that could have been
    seen; the same by subset, and for a benchmark by its own rule; and the rows on which the models differ most.
    """
    from plaudit.checkpoint.atomic import write_atomically
    from plaudit.evaluation.comparison import compare_several

    if len(sources) < 2:
        raise ConfigError(f"expected two or more score files or models to compare, got {sources[0]}.")
    if data is not None:
        display.show_log_messages()
        options |= {"split": split, "dataset_config": dataset_config, "dataset_format": dataset_format}
    comparisons = compare_several(sources, data, **(options if data is not None else {}))
    for each in comparisons:
        _show(each)
    if output is not None:
        content = {"comparisons": [each.to_dict() for each in comparisons]}
        write_atomically(Path(output), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _show(result: "Comparison") -> None:
    rows = [
        ("A", escape(f"{result.a}: {result.accuracy_a:.1%}")),
        ("B", escape(f"{result.b}: {result.accuracy_b:.1%}")),
        ("A - B", f"{_points(result.difference)} points (95% interval {_interval(result.low, result.high)})"),
        ("p-value", f"{_p(result.p_value)} ({result.test}{_among(result.tried)})"),
        ("compared", f"{result.comparisons:,} comparisons of {result.prompts:,} prompts"),
    ]
    display.show_table("Accuracy", rows)
    color = "green" if result.separable else "yellow"
    display.console.print(f"[{color}]{escape(result.verdict)}[/{color}]")
    for note in result.notes:
        display.console.print(f"[yellow]Note:[/yellow] {escape(note)}")
    if result.composites:
        columns = [
            (name, f"{each['a']:.1%}", f"{each['b']:.1%}", _points(each["difference"]), _interval(**_ends(each)))
            for name, each in result.composites.items()
        ]
        _show_columns(("benchmark's rule", "A", "B", "A - B", "95% interval"), columns)
    if len(result.subsets) > 1:
        columns = [
            (name, f"{each['comparisons']:,}", f"{each['accuracy_a']:.1%}", f"{each['accuracy_b']:.1%}",
             _points(each["difference"]), _interval(**_ends(each)), _p(each["p_value"]))
            for name, each in result.subsets.items()
        ]  # fmt: skip
        _show_columns(("subset", "pairs", "A", "B", "A - B", "95% interval", "p"), columns)
        separable = [name for name, each in result.subsets.items() if each["separable"]]
        found = f"separable: {', '.join(separable)}" if separable else "none is separable"
        display.console.print(escape(f"{len(result.subsets)} subsets were tried, p-values by Holm's method; {found}."))
    _show_rows(result)


def _show_rows(result: "Comparison") -> None:
    if not result.rows_apart:
        return
    columns = [
        (str(each["row"]), each["subset"] or "", each["right"].upper(),
         *(f"{each[side][each['better']]:.2f} > {each[side][each['worse']]:.2f}".replace(
             ">", ">" if each[side][each["better"]] > each[side][each["worse"]] else "<="
         ) for side in ("rewards_a", "rewards_b")))
        for each in result.rows_apart[:_ROWS_SHOWN]
    ]  # fmt: skip
    _show_columns(("row", "subset", "right", "A: better, worse", "B: better, worse"), columns)
    shown = min(_ROWS_SHOWN, len(result.rows_apart))
    display.console.print(f"{shown} of {len(result.rows_apart):,} rows on which only one is right; all are in --output.")


def _show_columns(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, style="cyan" if not number else None, justify="right" if number else "left",
                         no_wrap=bool(number), overflow="fold")  # fmt: skip
    for row in rows:
        table.add_row(*map(escape, row))
    display.console.print(table)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _interval(low: float, high: float) -> str:
    return f"{_points(low)} to {_points(high)}"


def _ends(figures: dict[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in ("low", "high")}


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _among(tried: int) -> str:
    return f", adjusted for {tried} by Holm's method" if tried > 1 else ""
