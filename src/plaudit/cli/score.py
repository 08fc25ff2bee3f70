"""`plaudit score`: a column of rewards for the rows of a file or a hub dataset."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plaudit.cli.interrupts import exit_code, sigterm_as_interrupt

if TYPE_CHECKING:
    from rich.progress import Progress

    from plaudit.scoring.job import Executor
    from plaudit.scoring.job import Progress as JobProgress
    from plaudit.scoring.worker import ScoringConfig

__all__ = ["WorkerRange", "command"]

_KINDS = ("pair", "group", "completion", "messages", "text")
_SECONDS_BETWEEN_LINES = 10


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
@click.option("--model", required=True, help="The reward model: a folder, an adapter's folder or a hub id.")
@click.option("--output", required=True, help="The file to write: .jsonl, .jsonl.gz, .csv or .parquet.")
@click.option("--dataset_config", help="The configuration of a hub dataset that has several.")
@click.option("--split", default="train", show_default=True, help="The split of a hub dataset or a folder.")
@click.option("--kind", type=click.Choice(_KINDS), help="What to score in rows that have columns for several kinds.")
@click.option("--reward_column", default="reward", show_default=True, help="Name of the column of rewards.")
@click.option("--best_of", is_flag=True, help="Keep only the best of `completions`, as `completion`.")
@click.option("--normalize", is_flag=True, help="Use the mean and standard deviation saved with the model.")
@click.option(
    "--on_error", type=click.Choice(["error", "skip"]), default="error", show_default=True,
    help="Stop at a row that cannot be scored, or write it to OUTPUT.rejected.jsonl and go on.",
)  # fmt: skip
@click.option(
    "--batch_rows", type=click.IntRange(1), default=512, show_default=True,
    help="Rows that are scored and saved together; a kill costs at most these.",
)  # fmt: skip
@click.option(
    "--max_tokens_per_batch", type=click.IntRange(1), default=4096, show_default=True,
    help="Most tokens of a forward pass, shared prefixes counted once.",
)  # fmt: skip
@click.option("--max_length", type=click.IntRange(1), help="Most tokens of a sequence.  [default: the model's]")
@click.option(
    "--overlong", type=click.Choice(["truncate", "error"]), default="truncate", show_default=True,
    help="Truncate a longer sequence from the left, or treat its row as one that cannot be scored.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), default="auto", show_default=True,
    help="Precision of the weights.",
)  # fmt: skip
@click.option("--device", help="Where to run, such as cpu or cuda:1.  [default: an accelerator if there is one]")
@click.option("--threads", type=click.IntRange(1), help="Threads of each process on the CPU.  [default: torch's]")
@click.option("--trust_remote_code", is_flag=True, help="Allow a model or tokenizer that ships its own code.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Score in this process, or on Ray: the cluster of RAY_ADDRESS, or this machine with several models.",
)  # fmt: skip
@click.option("--workers", type=WorkerRange(), default="1:", show_default=True, help="Models on Ray; no MAX: no limit.")
@click.option("--restart", is_flag=True, help="Score all rows anew, and replace OUTPUT.")
def command(source: str, output: str, restart: bool, **options: Any) -> None:
    """Score the rows of INPUT (JSON lines, CSV, Parquet, a folder or a hub dataset) and write them with their rewards.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    # Not at the top of the module: these imports take seconds, and `--help` must not wait for them.
    from plaudit.cli.display import show_log_messages
    from plaudit.data.reader import Source
    from plaudit.scoring.job import score_file

    show_log_messages()
    path, display = Path(output).expanduser(), _Display()
    executor = _executor(options["engine"], options["workers"])
    rows = Source(source, options["dataset_config"], options["split"])
    try:
        with sigterm_as_interrupt(), display:
            score_file(rows, path, _config(options), executor=executor, restart=restart, report=display.update)
    except KeyboardInterrupt as interrupt:
        display.show_stop(restart)
        sys.exit(exit_code(interrupt))
    display.show_result(path, options["max_length"])


def _executor(engine: str, workers: tuple[int, int | None]) -> "Executor | None":
    if engine == "local":
        return None
    from plaudit.scoring.ray_executor import RayExecutor

    return RayExecutor(*workers)


def _config(options: dict[str, Any]) -> "ScoringConfig":
    from plaudit.scoring.reward_columns import RewardColumns
    from plaudit.scoring.worker import ScoringConfig

    model_options = ("max_tokens_per_batch", "max_length", "overlong", "dtype", "trust_remote_code")
    return ScoringConfig(
        model=options["model"],
        device=options["device"],
        threads=options["threads"],
        normalize=options["normalize"],
        columns=RewardColumns(options["kind"], options["reward_column"], options["best_of"]),
        skip_bad_rows=options["on_error"] == "skip",
        chunk_rows=options["batch_rows"],
        model_options={name: options[name] for name in model_options},
    )


class _Display:
    """Rows and tokens per second: in a progress bar, or without a terminal in a line every ten seconds."""

    def __init__(self) -> None:
        from plaudit.cli.display import console

        self._console = console
        self._bar: Progress | None = None
        self._task: Any = None
        self._first: JobProgress | None = None
        self._last: JobProgress | None = None
        self._started = self._printed = 0.0

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: "JobProgress") -> None:
        """Show how far the job is."""
        if self._first is None:
            self._begin(progress)
        self._last = progress
        assert self._first is not None
        if progress.rows == self._first.rows and progress.counts == self._first.counts:
            self._started = self._printed = time.monotonic()  # the model is loading, which is not a part of the rate
        elif self._bar is not None:
            total, done = (None, 0) if progress.fraction is None else (1.0, progress.fraction)
            self._bar.update(self._task, total=total, completed=done, figures=self._figures(progress))
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            share = "" if progress.fraction is None else f"{progress.fraction:.0%}  "
            self._console.print(share + self._figures(progress))

    def _begin(self, progress: "JobProgress") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._first = progress
        if progress.counts.rows:
            self._console.print(f"Going on after {progress.counts.rows:,} rows that an earlier start has scored")
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=10), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("scoring", total=None, figures="loading the model")

    def _figures(self, progress: "JobProgress") -> str:
        assert self._first is not None
        counts, before = progress.counts, self._first.counts
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (progress.rows - before.rows) / seconds
        figures = f"{progress.rows:,} rows  {rate:,.{0 if rate >= 10 else 1}f} rows/s"
        if rows := counts.rows - before.rows:  # tokens are known of complete chunks only
            figures += f"  {(counts.tokens - before.tokens) / rows * rate:,.0f} tokens/s"
        if counts.rejected:
            figures += f"  {counts.rejected:,} rejected"
        if progress.workers > 1:
            figures += f"  {progress.workers} workers"
        return figures

    def show_stop(self, restart: bool) -> None:
        """Print how many rows are scored, and how to go on."""
        rows = self._last.counts.rows if self._last is not None else 0
        again = "The same command without --restart" if restart else "The same command"
        self._console.print(f"Stopped after {rows:,} rows. {again} goes on.")

    def show_result(self, output: Path, max_length: int | None) -> None:
        """Print what the output holds, and how many rows and sequences were not scored as they are."""
        from plaudit.scoring.chunk_store import rejected_path

        assert self._last is not None
        counts, workers = self._last.counts, self._last.workers
        by = f" by {workers} workers" if workers > 1 else ""
        lines = [f"Scored {counts.rows:,} rows of {counts.tokens:,} tokens{by} into [bold]{output}[/bold]"]
        if counts.rejected:
            reasons = f"the reasons are in {rejected_path(output)}"
            lines.append(f"[yellow]{counts.rejected:,} rows could not be scored[/yellow]: {reasons}")
        if counts.truncated:
            limit = f"{max_length:,} tokens" if max_length else "the model has positions"
            what = f"{counts.truncated:,} sequences had more than {limit}"
            lines.append(f"[yellow]{what}[/yellow] and were truncated from the left")
        self._console.print("\n".join(lines), soft_wrap=True)  # a path in pieces could not be copied
