"""`plaudit eval`: how well a reward model agrees with people, and whether that is well enough."""

import difflib
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
@click.option("--max_length", type=click.IntRange(min=1), help="Most tokens of a sequence.  [default: the model's]")
@click.option(
    "--overlong",
    type=click.Choice(["truncate", "error"]),
    default="truncate",
    show_default=True,
    help="What becomes of a longer sequence: cut from the left, or an error that names the row.",
)
@click.option(
    "--max_tokens_per_batch",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Distinct tokens that run at once.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Precision of the weights.",
)
@click.option("--device", help="Where to run it, such as cpu or cuda:1.  [default: an accelerator if there is one]")
@click.option("--trust_remote_code", is_flag=True, help="Allow a model or tokenizer that ships its own code.")
@click.option("--output", help="JSON file for all figures.")
@click.option(
    "--fail_under",
    multiple=True,
    metavar="METRIC=VALUE",
    help="Exit with 1 if a figure of any dataset is less, such as accuracy=0.7. May be repeated.",
)
@click.option(
    "--fail_over", multiple=True, metavar="METRIC=VALUE", help="The same if it is more, such as log_loss=0.69."
)
def command(
    model: str,
    data: tuple[str, ...],
    split: str | None,
    dataset_config: str | None,
    dataset_format: str | None,
    output: str | None,
    fail_under: tuple[str, ...],
    fail_over: tuple[str, ...],
    **model_options: Any,
) -> None:
    """Evaluate MODEL (a folder or a hub id) on DATA: files, folders or hub ids of pairs or ranked groups.

    Each gets a table, and several a summary. Accuracy stands beside that of preferring the longer and the shorter
    response, which a model has to beat.
    """
    from rich.markup import escape

    from plaudit.cli.display import console, show_log_messages
    from plaudit.evaluation.evaluate import evaluate, finite, mean_of
    from plaudit.scoring.reward_model import RewardModel

    bounds = [*_bounds("--fail_under", fail_under), *_bounds("--fail_over", fail_over)]
    if output is not None:
        _check_place(Path(output))
    show_log_messages()
    reward_model = RewardModel.from_pretrained(model, **model_options)
    evaluations = []
    for path in data:
        evaluation = evaluate(
            reward_model, path, split=split, dataset_config=dataset_config, dataset_format=dataset_format
        )
        evaluations.append(evaluation)
        _show(evaluation)
    means = mean_of(evaluations)
    if len(evaluations) > 1:
        _show_summary(evaluations, means)
    failed = [line for each in evaluations for line in _failures(each, bounds)]
    if output is not None:
        datasets = [each.to_dict() for each in evaluations]
        _write(Path(output), {"model": model, "datasets": datasets, "mean": finite(means), "failed": failed})
    for line in failed:
        console.print("[red]FAILED[/red]", escape(line), soft_wrap=True)
    sys.exit(1 if failed else 0)


# Bounds

Bound = tuple[str, str, float]  # the option, the metric, the value


def _bounds(option: str, given: Sequence[str]) -> list[Bound]:
    from plaudit.evaluation.figures import METRICS, SHARES

    bounds = []
    for text in given:
        name, _, value = text.partition("=")
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{option} {text}: there is no figure {name!r}. {hint}There are: {', '.join(METRICS)}.")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise ConfigError(f"{option} {text}: expected METRIC=VALUE with a number, such as {name}=0.7.")
        if name in SHARES and not 0 <= number <= 1:
            raise ConfigError(f"{option} {text}: expected a share from 0 to 1, such as {name}=0.7 for 70%.")
        bounds.append((option, name, number))
    return bounds


def _failures(evaluation: "Evaluation", bounds: Sequence[Bound]) -> list[str]:
    """What is not as it must be; a figure that is not defined never is."""
    lines = []
    for option, name, value in bounds:
        figure, under = evaluation.overall[name], option == "--fail_under"
        if not (figure >= value if under else figure <= value):
            lines.append(f"{evaluation.dataset}: {name} is {figure:.6g}, {'under' if under else 'over'} {value:g}")
    return lines


# Tables


def _show(evaluation: "Evaluation") -> None:
    from rich.markup import escape

    from plaudit.cli.display import console, show_table

    figures = evaluation.overall
    show_table(escape(_title(evaluation)), _rows(figures))
    best = max(("longer", "shorter"), key=lambda word: figures[f"{word}_wins"])
    if figures["accuracy_low"] <= figures[f"{best}_wins"]:
        verdict = "Worse" if figures["accuracy_high"] < figures[f"{best}_wins"] else "Not clearly better"
        console.print(f"[yellow]{verdict} than preferring the {best} response.[/yellow]")
    if len(evaluation.subsets) > 1:
        _show_figures("subset", evaluation.subsets.items())


def _title(evaluation: "Evaluation") -> str:
    """The dataset and its split; of a plain file `datasets` says "train", which would alarm and means nothing."""
    plain = evaluation.split == "train" and Path(str(evaluation.dataset)).is_file()
    return str(evaluation.dataset) if plain else f"{evaluation.dataset} ({evaluation.split})"


def _rows(figures: dict[str, float]) -> list[tuple[str, str]]:
    counted = "{comparisons:,.0f} in {rows:,.0f} rows of {prompts:,.0f} prompts".format(**figures)
    spread = "mean {mean_reward:.3f}, std {std_reward:.3f}, {min_reward:.3f} to {max_reward:.3f}"
    alike = figures["length_correlation"]
    left_out = [f"{figures[name]:,.0f} {word}" for name, word in _LEFT_OUT.items() if figures[name]]
    return [
        ("comparisons", counted + (f"; left out: {', '.join(left_out)}" if left_out else "")),
        ("accuracy", f"{_percent(figures['accuracy'])} (95% interval {_interval(figures)})"),
        ("longer wins", f"{_percent(figures['longer_wins'])}, shorter wins {_percent(figures['shorter_wins'])}"),
        ("margin", "{margin:.3f}; equal rewards: {reward_ties:,.0f}".format(**figures)),
        ("log loss", f"{figures['log_loss']:.4f} (0.6931 is guessing)"),
        ("calibration error", _percent(figures["calibration_error"])),
        ("temperature", _temperature(figures)),
        ("rewards", spread.format(**figures)),
        ("reward and length", "rank correlation " + ("-" if math.isnan(alike) else f"{alike:+.2f}")),
    ]


_LEFT_OUT = {"ties": "ties", "identical": "pairs of equal responses"}


def _temperature(figures: dict[str, float]) -> str:
    temperature = figures["temperature"]
    if temperature == math.inf:
        return "none helps: as probabilities, the rewards are no better than guessing"
    if temperature == 0:
        return "none: the greater reward is always right, the larger the better"
    word = "" if 0.9 < temperature < 1.1 else " (too sure)" if temperature > 1 else " (not sure enough)"
    return f"{temperature:.3g}{word}; log loss with it {figures['calibrated_log_loss']:.4f}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _interval(figures: dict[str, float]) -> str:
    return f"{_percent(figures['accuracy_low'])} to {_percent(figures['accuracy_high'])}"


def _show_figures(heading: str, figures: Iterable[tuple[str, dict[str, float]]]) -> None:
    """A line for each subset or dataset, within 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from plaudit.cli.display import console

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
    console.print(table)


def _show_summary(evaluations: "Sequence[Evaluation]", means: dict[str, float]) -> None:
    from plaudit.cli.display import console

    console.print("\n[bold]Summary[/bold]")
    rows = [(_short(str(each.dataset)), each.overall) for each in evaluations]
    _show_figures("dataset", [*rows, ("mean", means)])


def _short(dataset: str) -> str:
    return Path(dataset).resolve().name if Path(dataset).exists() else dataset


# The file


def _check_place(path: Path) -> None:
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ConfigError(f"--output {path}: expected the path of a file in a folder that exists.")
    if not os.access(path.resolve().parent, os.W_OK):
        raise ConfigError(f"--output {path}: nobody lets you write to that folder. Name another.")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write the file beside its place and rename it: it is whole, or what it was before."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staged.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
