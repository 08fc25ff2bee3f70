"""The tables of `plaudit eval`: figures of a dataset, of a benchmark, of subsets, probes and best-of-n curves."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from plaudit.cli import display
from plaudit.cli.display import percent

if TYPE_CHECKING:
    from plaudit.evaluation.best_of_n import BestOfN
    from plaudit.evaluation.evaluate import Evaluation
    from plaudit.evaluation.probes import ProbeResult
    from plaudit.evaluation.uncertainty_figures import UncertaintyFigures

__all__ = [
    "probe_cells",
    "show_best_of_n",
    "show_evaluation",
    "show_no_header",
    "show_probes",
    "show_summary",
]


def show_evaluation(evaluation: "Evaluation") -> None:
    """Print the figures of a dataset, of its benchmark's rule, and of its subsets."""
    figures = evaluation.overall
    display.show_table(_title(evaluation), _rows(figures))
    if not math.isnan(figures["longer_wins"]):
        length = max(("longer", "shorter"), key=lambda word: figures[f"{word}_wins"])
        if figures["accuracy_low"] <= figures[f"{length}_wins"]:
            verdict = "Worse" if figures["accuracy_high"] < figures[f"{length}_wins"] else "Not clearly better"
            display.console.print(f"[yellow]{verdict} than preferring the {length} response.[/yellow]")
    if evaluation.cut:
        responses = f"{evaluation.cut:,} of {len(evaluation.scores.rewards):,} sequences"
        display.console.print(f"[yellow]{responses} had too many tokens and were cut from the left.[/yellow]")
    if evaluation.official is not None:
        _show_official(evaluation.official)
    elif len(evaluation.subsets) > 1:
        _show_by_name("subset", evaluation.subsets.items())
    if evaluation.uncertainty is not None:
        _show_uncertainty(evaluation.uncertainty)


def _show_uncertainty(figures: "UncertaintyFigures") -> None:
    """Print the figures of the members' spread, and what they say."""
    halves = [(each["spread"], each["margin"]) for each in figures.coverage if each["coverage"] == 0.5]
    half = halves[0] if halves else (math.nan, math.nan)
    ranked = "{} by spread, {} by difference"
    adjusted = (figures.adjusted_auroc, figures.adjusted_auroc_low, figures.adjusted_auroc_high)
    errors = f"{percent(figures.calibration_error)}, with spread {percent(figures.calibration_error_with_spread)}"
    of_whom = "members" if figures.kind == "members" else "sampled heads"
    rows = {
        "spread": f"median {figures.spread:.3g}, in the unit of the reward",
        "AUROC for errors": ranked.format(f"{figures.spread_auroc:.3f}", f"{figures.margin_auroc:.3f}"),
        "at equal difference": "{:.3f} (95% interval {:.3f} to {:.3f}); 0.5 adds nothing".format(*adjusted),
        "accuracy of half": ranked.format(*map(percent, half)),
        "log loss, cross-fitted": f"{figures.log_loss:.4f}, with spread {figures.log_loss_with_spread:.4f}",
        "calibration error, cross-fitted": errors,
        "correlated errors": f"mean correlation {figures.error_correlation:.3f}",
    }
    title = f"Uncertainty: the spread of {figures.members} {of_whom}"
    display.show_table(title, [(name, text.replace("nan", "-")) for name, text in rows.items()])
    colour = "yellow" if figures.earns_its_place is False else "default"
    display.console.print(f"[{colour}]{escape(figures.verdict)}[/{colour}]", soft_wrap=True)
    if figures.members_are_alike:
        display.console.print("[yellow]The members make the same errors: they are one model.[/yellow]")


def _show_official(official: dict[str, Any]) -> None:
    """Print the figures of a benchmark's own rule under the rule's name."""
    display.console.print(f"\n[bold]{escape(official['benchmark'])}, by its own rule[/bold]")
    display.console.print(escape(official["rule"]), style="dim")
    table = Table(show_header=False)
    table.add_column(style="cyan", overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_row("overall", f"[bold]{percent(official['overall'])}[/bold]")
    for name, share in official["parts"].items():
        table.add_row(escape(name), percent(share))
    display.console.print(table)
    if official["missing"]:
        missing = escape(", ".join(official["missing"]))
        line = f"No rows of: {missing}. Parts that need them are left out, here and of the overall figure."
        display.console.print(f"[yellow]{line}[/yellow]")


def show_no_header() -> None:
    """Say what is not known of rewards that came without a header and without their dataset."""
    display.console.print(
        "[yellow]The file has no header: each row counts as a prompt of its own, so the interval may be too narrow, "
        "and lengths are not known. --data DATA joins the rewards to their dataset.[/yellow]"
    )


def _title(evaluation: "Evaluation") -> str:
    """Return the dataset and its split, but no split for a plain file: `datasets` names that split "train"."""
    name = evaluation.dataset or evaluation.scores.name
    is_plain_file = evaluation.split == "train" and Path(name).is_file()
    return name if is_plain_file or evaluation.split is None else f"{name} ({evaluation.split})"


def _rows(figures: dict[str, float]) -> list[tuple[str, str]]:
    counts = "{comparisons:,.0f} in {rows:,.0f} rows of {prompts:,.0f} prompts".format(**figures)
    spread = "mean {mean_reward:.3f}, std {std_reward:.3f}, {min_reward:.3f} to {max_reward:.3f}"
    correlation = figures["length_correlation"]
    left_out = [f"{figures[name]:,.0f} {words}" for name, words in _LEFT_OUT.items() if figures[name]]
    where = f"{percent(figures['longer_accuracy'])} where the better is the longer one"
    return [
        ("comparisons", counts + (f"; left out: {', '.join(left_out)}" if left_out else "")),
        ("accuracy", f"{percent(figures['accuracy'])} (95% interval {_interval(figures)})"),
        (
            "longer wins",
            f"{percent(figures['longer_wins'])}, shorter wins {percent(figures['shorter_wins'])}",
        ),
        ("length-balanced", f"{percent(figures['length_balanced_accuracy'])}; {where}"),
        ("margin", "{margin:.3f}; equal rewards: {reward_ties:,.0f}".format(**figures)),
        ("log loss", f"{figures['log_loss']:.4f} (0.6931 is guessing)"),
        ("calibration error", percent(figures["calibration_error"])),
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


def _interval(figures: dict[str, float]) -> str:
    return f"{percent(figures['accuracy_low'])} to {percent(figures['accuracy_high'])}"


def show_summary(evaluations: "Sequence[Evaluation]", means: dict[str, float]) -> None:
    """Print a line for each dataset, and the mean, in which each has the same weight."""
    display.console.print("\n[bold]Summary[/bold]")
    names = [str(each.dataset) for each in evaluations]
    names = [Path(name).resolve().name if Path(name).exists() else name for name in names]
    figures = [each.overall for each in evaluations]
    _show_by_name("dataset", [*zip(names, figures, strict=True), ("mean", means)])


def show_probes(results: "Sequence[ProbeResult]") -> None:
    """Print a line for each probe, and a sentence for each that the model fails."""
    display.console.print("\n[bold]Probes[/bold]; a verdict is on the flips or the preference, not on the shift")
    headings = ("probe", "pairs", "flips", "shift", "prefers changed", "verdict")
    styles = ["yellow" if result.passed is False else None for result in results]
    display.show_columns(headings, [probe_cells(result) for result in results], styles)
    for result in results:
        if result.passed is False or (not result.comparisons and "refuses" in result.verdict):
            sentence = escape(f"{result.description} {result.verdict}")
            display.console.print(f"[yellow]{escape(result.name)}[/yellow]: {sentence}", soft_wrap=True)


def probe_cells(result: "ProbeResult") -> tuple[str, ...]:
    """Return the cells of a probe: name, pairs, flips, shift, preference or dependence, and verdict."""
    if not result.comparisons:
        return result.name, "0", "-", "-", "-", "-"
    share, shift = result.prefers_changed, result.shift.value
    prefers = "-" if math.isnan(share.value) else f"{share.value:.0%} ({share.low:.0%}-{share.high:.0%})"
    if result.prompt_dependence is not None:
        prefers = f"dependence {result.prompt_dependence.value:.2f}".replace("nan", "-")
    moved = "-" if math.isnan(shift) else f"{round(shift, 2) + 0.0:+.2f}"
    verdict = {True: "passed", False: "FAILED", None: "cannot tell"}[result.passed]
    return result.name, f"{result.comparisons:,}", f"{result.flip_rate.value:.1%}", moved, prefers, verdict


def show_best_of_n(curve: "BestOfN", aggregate: str = "mean", k: float = 1.0) -> None:
    """Print the gold score of the best of n by the model, with the best that any choice could reach.

    Args:
        curve: The curve.
        aggregate: The aggregate of the members' rewards that chose.
        k: Its weight of the spread.
    """
    left_out = f"; {curve.left_out:,} smaller ones are left out" if curve.left_out else ""
    chosen_by = {"mean": "", "min": " by min"}.get(aggregate, f" by {aggregate}, k = {k:g}")
    display.console.print(f"\n[bold]Best of n{chosen_by}[/bold], over {curve.groups:,} groups{left_out}")
    columns = zip(curve.n, curve.sqrt_kl, curve.gold, curve.gold_low, curve.gold_high, curve.oracle, strict=True)
    rows = [
        (f"{n:,}", f"{root:.2f}", f"{gold:.3f}", f"{low:.3f} to {high:.3f}", f"{oracle:.3f}")
        for n, root, gold, low, high, oracle in columns
    ]
    display.show_columns(("n", "sqrt KL", "gold", "95% interval", "best possible"), rows)
    display.console.print(escape(curve.verdict), soft_wrap=True)


def _show_by_name(heading: str, figures: Iterable[tuple[str, dict[str, float]]]) -> None:
    """Print a line of figures for each subset or dataset, within 80 columns."""
    rows = []
    for name, each in figures:
        counted = f"{each['comparisons']:,.0f}" if "comparisons" in each else ""
        interval = f"{100 * each['accuracy_low']:.1f}-{100 * each['accuracy_high']:.1f}" if counted else ""
        shares = (percent(each["calibration_error"]), percent(each["longer_wins"]))
        rows.append((name, counted, percent(each["accuracy"]), interval, f"{each['log_loss']:.3f}", *shares))
    headings = (heading, "pairs", "accuracy", "95% interval", "log\nloss", "calib.\nerror", "longer\nwins")
    display.show_columns(headings, rows)
