"""`plaudit score`: a column of rewards for the rows of a file or a hub dataset."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from plaudit.cli import display
from plaudit.cli.aggregate_options import aggregate_options
from plaudit.cli.interrupts import exit_code, sigterm_as_interrupt
from plaudit.cli.model_options import model_options, options_of_server

if TYPE_CHECKING:
    from plaudit.scoring.job import Executor
    from plaudit.scoring.job import Progress as JobProgress

__all__ = ["WorkerRange", "command"]

_KINDS = ("pair", "group", "completion", "messages", "text")
_SECONDS_BETWEEN_LINES = 10
_MODEL = (
    "The reward model: a folder, an adapter's folder, a hub id, or the address of a `plaudit serve`, whose key is read "
    "from PLAUDIT_API_KEY."
)


class WorkerRange(click.ParamType):
    """A number of workers such as 4, or a range such as 1:8, or 1: without a limit."""

    name = "MIN[:MAX]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int | None]:
        """Return the least and the greatest number of workers; `None` for no limit."""
        form = re.fullmatch(r"(\d+)(:(\d*))?", value)
        least, colon, greatest = (int(form[1]), form[2], form[3]) if form else (0, None, None)
        limit = int(greatest) if greatest else None if colon else least
        if least < 1 or (limit is not None and limit < least):
            self.fail(f"expected a number such as 4, or a range such as 1:8, got {value!r}.", param, ctx)
        return least, limit


@click.command("score")
@click.argument("source", metavar="INPUT")
@click.option("--model", required=True, help=_MODEL)
@click.option("--output", required=True, help="The file to write: .jsonl, .jsonl.gz, .csv or .parquet.")
@click.option("--dataset_config", help="The configuration of a hub dataset that has several.")
@click.option("--split", default="train", show_default=True, help="The split of a hub dataset or a folder.")
@click.option("--kind", type=click.Choice(_KINDS), help="What to score in rows that have columns for several kinds.")
@click.option("--reward_column", default="reward", show_default=True, help="Name of the column of rewards.")
@click.option("--best_of", is_flag=True, help="Keep only the best of `completions`, as `completion`.")
@click.option("--normalize", is_flag=True, help="Use the mean and standard deviation saved with the model.")
@aggregate_options("The reward to write")
@click.option(
    "--on_error", type=click.Choice(["error", "skip"]), default="error", show_default=True,
    help="Stop at a row that cannot be scored, or write it to OUTPUT.rejected.jsonl and go on.",
)  # fmt: skip
@click.option(
    "--batch_rows", type=click.IntRange(1), default=512, show_default=True,
    help="Rows that are scored and saved together; a kill costs at most these.",
)  # fmt: skip
@model_options
@click.option("--threads", type=click.IntRange(1), help="Threads of each process on the CPU.  [default: torch's]")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Score in this process, or on Ray: the cluster of RAY_ADDRESS, or this machine with several models.",
)  # fmt: skip
@click.option("--workers", type=WorkerRange(), default="1:", show_default=True, help="Models on Ray; no MAX: no limit.")
@click.option("--restart", is_flag=True, help="Score all rows anew, and replace OUTPUT.")
def command(
    source: str,
    model: str,
    output: str,
    dataset_config: str | None,
    split: str,
    kind: str | None,
    reward_column: str,
    best_of: bool,
    normalize: bool,
    aggregate: str,
    k: float,
    on_error: str,
    batch_rows: int,
    device: str | None,
    threads: int | None,
    engine: str,
    workers: tuple[int, int | None],
    restart: bool,
    **options: Any,
) -> None:
    """Score the rows of INPUT (JSON lines, CSV, Parquet, a folder or a hub dataset) and write them with their rewards.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    # Not at the top of the module: these imports take seconds, and `--help` must not wait for them.
    with display.while_importing():
        from plaudit.data.reader import Source
        from plaudit.scoring.job import score_file
        from plaudit.scoring.reward_columns import RewardColumns
        from plaudit.scoring.server_connection import is_server_url
        from plaudit.scoring.worker import ScoringConfig

        display.show_log_messages()
    max_length = options["max_length"]
    if is_server_url(model):
        options = options_of_server(model, options, ("device", "threads", "engine", "workers"))
    executor = _ray_executor(workers) if engine == "ray" else None
    config = ScoringConfig(
        model, device, threads, normalize, RewardColumns(kind, reward_column, best_of), on_error == "skip", batch_rows,
        options, aggregate, k,
    )  # fmt: skip
    rows, path, live = Source(source, dataset_config, split), Path(output).expanduser(), _LiveProgress()
    try:
        with sigterm_as_interrupt(), live:
            result = score_file(rows, path, config, executor=executor, restart=restart, report=live.update)
    except KeyboardInterrupt as interrupt:
        stop = f"Stopped after {live.complete_rows:,} rows."
        display.console.print(f"{stop} The same command (without --restart) goes on.")
        sys.exit(exit_code(interrupt))
    _show_result(result, path, max_length)


def _ray_executor(workers: tuple[int, int | None]) -> "Executor":
    from plaudit.scoring.ray_executor import RayExecutor

    return RayExecutor(*workers)


class _LiveProgress:
    """Rows and tokens per second: in a progress bar, or without a terminal in a line every ten seconds."""

    def __init__(self) -> None:
        columns = (BarColumn(bar_width=10), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
        self._bar = Progress(*columns, console=display.console, disable=not display.console.is_terminal)
        self._task = self._bar.add_task("scoring", total=None, figures="")
        self._before: JobProgress | None = None  # by earlier starts
        self._started = self._printed = 0.0
        self.complete_rows = 0

    def __enter__(self) -> "_LiveProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, progress: "JobProgress") -> None:
        if self._before is None and progress.counts.rows:
            display.console.print(f"Going on after {progress.counts.rows:,} rows that an earlier start has scored")
        is_loaded, before = self._before is not None, self._before or progress
        self._before, self.complete_rows = before, progress.counts.rows
        if is_loaded:
            self._bar.start()
        if progress.rows == before.rows and progress.counts == before.counts:
            self._started = self._printed = time.monotonic()  # loading the model is not a part of the rate
            return
        now = time.monotonic()
        figures = _figures(progress, before, now - self._started)
        total, done = (None, 0) if progress.fraction is None else (1.0, progress.fraction)
        self._bar.update(self._task, total=total, completed=done, figures=figures)
        if self._bar.disable and now - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = now
            display.console.print(("" if progress.fraction is None else f"{progress.fraction:.0%}  ") + figures)


def _figures(progress: "JobProgress", before: "JobProgress", seconds: float) -> str:
    rate = (progress.rows - before.rows) / max(seconds, 1e-9)
    figures = f"{progress.rows:,} rows  {rate:,.{0 if rate >= 10 else 1}f} rows/s"
    if rows := progress.counts.rows - before.counts.rows:  # tokens are known of complete chunks only
        figures += f"  {(progress.counts.tokens - before.counts.tokens) / rows * rate:,.0f} tokens/s"
    if progress.counts.rejected:
        figures += f"  {progress.counts.rejected:,} rejected"
    return figures + (f"  {progress.workers} workers" if progress.workers > 1 else "")


def _show_result(result: "JobProgress", output: Path, max_length: int | None) -> None:
    from plaudit.scoring.chunk_store import rejected_path

    counts = result.counts
    by = f" by {result.workers} workers" if result.workers > 1 else ""
    lines = [f"Scored {counts.rows:,} rows of {counts.tokens:,} tokens{by} into [bold]{escape(str(output))}[/bold]"]
    if counts.rejected:
        reasons = f"the reasons are in {escape(str(rejected_path(output)))}"
        lines.append(f"[yellow]{counts.rejected:,} rows could not be scored[/yellow]: {reasons}")
    if counts.truncated:
        limit = f"{max_length:,} tokens" if max_length else "the model has positions"
        what = f"{counts.truncated:,} sequences had more than {limit}"
        lines.append(f"[yellow]{what}[/yellow] and were truncated from the left")
    display.console.print("\n".join(lines), soft_wrap=True)  # a path in pieces could not be copied
