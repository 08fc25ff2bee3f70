"""`plaudit eval`: tables of the agreement of a reward model with people, and an exit code for limits on its figures."""

import json
import math
import os
import sys
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
    from plaudit.evaluation.evaluate import Evaluation

__all__ = ["command"]


@click.command("eval")
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--split", help="Split to evaluate on.  [default: test, else validation, else the only one]")
@click.option("--dataset_config", help="Configuration of a hub dataset that has several.")
@click.option("--dataset_format", help="Published layout of the rows: arena, helpsteer, hh, ranked or ultrafeedback.")
@model_options
@click.option("--output", help="JSON file for all figures.")
@click.option(
    "--fail_under", multiple=True, metavar="METRIC=VALUE",
    help="Exit with 1 if a figure of any dataset is less, such as accuracy=0.7. May be repeated.",
)  # fmt: skip
@click.option(
    "--fail_over", multiple=True, metavar="METRIC=VALUE",
    help="Exit with 1 if a figure of any dataset is greater, such as log_loss=0.69. May be repeated.",
)  # fmt: skip
def command(
    model: str,
    data: tuple[str, ...],
    split: str | None,
    dataset_config: str | None,
    dataset_format: str | None,
    output: str | None,
    fail_under: tuple[str, ...],
    fail_over: tuple[str, ...],
    **options: Any,
) -> None:
    """Evaluate MODEL (a folder or a hub id) on DATA: files, folders or hub ids of pairs or ranked groups.

    Each dataset has a table, and several have a summary. Beside the accuracy stands that of preferring the longer and
    the shorter response, which a reward model has to exceed.
    """
    from plaudit.checkpoint.atomic import write_atomically
    from plaudit.evaluation import evaluate as evaluation
    from plaudit.evaluation.limits import failures, parse_limit
    from plaudit.scoring.reward_model import RewardModel

    limits = [parse_limit(text, upper=False) for text in fail_under]
    limits += [parse_limit(text, upper=True) for text in fail_over]
    if output is not None and (Path(output).is_dir() or not os.access(Path(output).resolve().parent, os.W_OK)):
        raise ConfigError(f"--output {output}: expected the path of a file in a folder that you may write to.")
    display.show_log_messages()
    reward_model = RewardModel.from_pretrained(model, **options)
    data_options = {"split": split, "dataset_config": dataset_config, "dataset_format": dataset_format}
    evaluations = []
    for path in data:
        evaluations.append(evaluation.evaluate(reward_model, path, **data_options))
        _show_evaluation(evaluations[-1])
    means = evaluation.mean_figures(evaluations)
    if len(evaluations) > 1:
        _show_summary(evaluations, means)
    failed = [line for each in evaluations for line in failures(each, limits)]
    if output is not None:
        datasets = [each.to_dict() for each in evaluations]
        mean = evaluation.finite_or_none(means)
        content = {"model": model, "datasets": datasets, "mean": mean, "failed": failed}
        write_atomically(Path(output), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    for line in failed:
        display.console.print("[red]FAILED[/red]", escape(line), soft_wrap=True)
    sys.exit(1 if failed else 0)


def _show_evaluation(evaluation: "Evaluation") -> None:
    figures = evaluation.overall
    display.show_table(_title(evaluation), _rows(figures))
    length = max(("longer", "shorter"), key=lambda word: figures[f"{word}_wins"])
    if figures["accuracy_low"] <= figures[f"{length}_wins"]:
        verdict = "Worse" if figures["accuracy_high"] < figures[f"{length}_wins"] else "Not clearly better"
        display.console.print(f"[yellow]{verdict} than preferring the {length} response.[/yellow]")
    if len(evaluation.subsets) > 1:
        _show_comparison("subset", evaluation.subsets.items())


def _title(evaluation: "Evaluation") -> str:
    """Return the dataset and its split, but no split for a plain file: `datasets` names that split "train"."""
    is_plain_file = evaluation.split == "train" and Path(str(evaluation.dataset)).is_file()
    return str(evaluation.dataset) if is_plain_file else f"{evaluation.dataset} ({evaluation.split})"


def _rows(figures: dict[str, float]) -> list[tuple[str, str]]:
    counts = "{comparisons:,.0f} in {rows:,.0f} rows of {prompts:,.0f} prompts".format(**figures)
    spread = "mean {mean_reward:.3f}, std {std_reward:.3f}, {min_reward:.3f} to {max_reward:.3f}"
    correlation = figures["length_correlation"]
    left_out = [f"{figures[name]:,.0f} {words}" for name, words in _LEFT_OUT.items() if figures[name]]
    return [
        ("comparisons", counts + (f"; left out: {', '.join(left_out)}" if left_out else "")),
        ("accuracy", f"{_percent(figures['accuracy'])} (95% interval {_interval(figures)})"),
        ("longer wins", f"{_percent(figures['longer_wins'])}, shorter wins {_percent(figures['shorter_wins'])}"),
        ("margin", "{margin:.3f}; equal rewards: {reward_ties:,.0f}".format(**figures)),
        ("log loss", f"{figures['log_loss']:.4f} (0.6931 is guessing)"),
        ("calibration error", _percent(figures["calibration_error"])),
        ("temperature", _temperature(figures)),
        ("rewards", spread.format(**figures)),
        ("reward and length", "rank correlation " + ("-" if math.isnan(correlation) else f"{correlation:+.2f}")),
    ]


_LEFT_OUT = {"ties": "ties", "identical": "pairs of equal responses"}


def _temperature(figures: dict[str, float]) -> str:
    temperature = figures["temperature"]
    if temperature == math.inf:
        return "none helps: as probabilities, the rewards are no better than guessing"
    if temperature == 0:
        return "none: the greater reward is always right, so larger rewards are always better"
    remark = "" if 0.9 < temperature < 1.1 else " (too sure)" if temperature > 1 else " (not sure enough)"
    return f"{temperature:.3g}{remark}; log loss with it {figures['calibrated_log_loss']:.4f}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _interval(figures: dict[str, float]) -> str:
    return f"{_percent(figures['accuracy_low'])} to {_percent(figures['accuracy_high'])}"


def _show_summary(evaluations: "Sequence[Evaluation]", means: dict[str, float]) -> None:
    display.console.print("\n[bold]Summary[/bold]")
    names = [str(each.dataset) for each in evaluations]
    names = [Path(name).resolve().name if Path(name).exists() else name for name in names]
    figures = [each.overall for each in evaluations]
    _show_comparison("dataset", [*zip(names, figures, strict=True), ("mean", means)])


def _show_comparison(heading: str, figures: Iterable[tuple[str, dict[str, float]]]) -> None:
    """Print a line for each subset or dataset, within 80 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(heading, style="cyan", overflow="fold")
    for name in ("pairs", "accuracy", "95% interval", "log\nloss", "calib.\nerror", "longer\nwins"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in figures:
        counted = f"{each['comparisons']:,.0f}" if "comparisons" in each else ""
        interval = f"{100 * each['accuracy_low']:.1f}-{100 * each['accuracy_high']:.1f}" if counted else ""
        table.add_row(
            escape(name), counted, _percent(each["accuracy"]), interval, f"{each['log_loss']:.3f}",
            _percent(each["calibration_error"]), _percent(each["longer_wins"]),
        )  # fmt: skip
    display.console.print(table)
