"""`plaudit compare`: whether one reward model is better than another on the same rows, or chance could explain it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.dataset_options import dataset_options
from plaudit.cli.model_options import model_options
from plaudit.cli.output_files import check_output
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.evaluation.comparison import Comparison

__all__ = ["command"]

_ROWS_SHOWN = 10


@click.command("compare")
@click.argument("sources", metavar="A B [C ...]", nargs=-1, required=True)
@click.option("--data", help="Rows that models score, or that score files without a header belong to.")
@dataset_options("Split of the data.  [default: test, else validation, else the only one]")
@model_options
@click.option("--output", help="JSON file for all figures and all rows on which two models part.")
def command(sources: tuple[str, ...], data: str | None, output: str | None, **options: Any) -> None:
    """Compare A with B (and with C ...): score files of `plaudit eval --scores`, or models that score --data.

    Prints the difference in accuracy with its 95% interval, a p-value, and the smallest difference that could have been
    seen; the same by subset, and for a benchmark by its own rule; and the rows on which the models differ most.
    """
    from plaudit.checkpoint.atomic import write_atomically
    from plaudit.evaluation.comparison import compare_several

    check_output("--output", output)
    if len(sources) < 2:
        raise ConfigError(f"expected two or more score files or models to compare, got {sources[0]}.")
    if data is not None:
        with display.while_importing():
            import plaudit.scoring.reward_model  # noqa: F401  # the evaluation of a model imports it later

            display.show_log_messages()
    else:  # score files need no options of a model
        options = {name: options[name] for name in ("split", "dataset_config", "dataset_format")}
    comparisons = compare_several(sources, data, **options)
    for each in comparisons:
        _show(each)
    if output is not None:
        content = {"comparisons": [each.to_dict() for each in comparisons]}
        write_atomically(Path(output), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _show(result: "Comparison") -> None:
    figures = result.to_dict()
    adjusted = f", adjusted for {result.tried} by Holm's method" if result.tried > 1 else ""
    rows = [
        ("A", escape(f"{result.a}: {result.accuracy_a:.1%}")),
        ("B", escape(f"{result.b}: {result.accuracy_b:.1%}")),
        ("A - B", f"{_points(result.difference)} points (95% interval {_interval(figures)})"),
        ("p-value", f"{_p(result.p_value)} ({result.test}{adjusted})"),
        ("compared", f"{result.comparisons:,} comparisons of {result.prompts:,} prompts"),
    ]
    display.show_table("Accuracy", rows)
    color = "green" if result.separable else "yellow"
    display.console.print(f"[{color}]{escape(result.verdict)}[/{color}]")
    for note in result.notes:
        display.console.print(f"[yellow]Note:[/yellow] {escape(note)}")
    if result.composites:
        parts = [(name, *_columns(each, "a", "b")) for name, each in result.composites.items()]
        display.show_columns(("benchmark's rule", "A", "B", "A - B", "95% interval"), parts)
        display.console.print(
            f"{len(parts)} figures of the rule, each with an interval of its own: some may miss the truth."
        )
    if len(result.subsets) > 1:
        _show_subsets(result.subsets)
    if result.rows_apart:
        _show_rows(result.rows_apart)


def _show_subsets(subsets: dict[str, dict[str, Any]]) -> None:
    rows = [
        (name, f"{each['comparisons']:,}", *_columns(each, "accuracy_a", "accuracy_b"), _p(each["p_value"]))
        for name, each in subsets.items()
    ]
    display.show_columns(("subset", "pairs", "A", "B", "A - B", "95% interval", "p"), rows)
    separable = ", ".join(name for name, each in subsets.items() if each["separable"]) or "none"
    display.console.print(
        escape(f"{len(subsets)} subsets were tried, p-values are adjusted by Holm's method; separable: {separable}.")
    )


def _show_rows(rows_apart: list[dict[str, Any]]) -> None:
    rows = [
        (str(each["row"]), each["subset"] or "", each["right"].upper(),
         *(f"{each[name][each['better']] - each[name][each['worse']]:+.3g}" for name in ("rewards_a", "rewards_b")))
        for each in rows_apart[:_ROWS_SHOWN]
    ]  # fmt: skip
    display.console.print(f"\n{len(rows_apart):,} rows on which only one is right, the furthest apart first:")
    display.show_columns(("row", "subset", "right", "margin of A", "margin of B"), rows)


def _columns(figures: dict[str, Any], a: str, b: str) -> tuple[str, ...]:
    return f"{figures[a]:.1%}", f"{figures[b]:.1%}", _points(figures["difference"]), _interval(figures)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _interval(figures: dict[str, Any]) -> str:
    return f"{_points(figures['low'])} to {_points(figures['high'])}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
