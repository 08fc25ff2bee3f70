"""`plaudit score`: a column of rewards for rows in a file or on the hub."""

import errno
import re
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.progress import Progress

    from plaudit.data.reader import Chunk as Block
    from plaudit.data.reader import Source
    from plaudit.scoring.chunk_store import Run
    from plaudit.scoring.worker import ScoredBlock, Settings

__all__ = ["command"]

_KINDS = ("pair", "group", "completion", "messages", "text")


@click.command("score")
@click.argument("source", metavar="INPUT")
@click.option("--model", required=True, help="The reward model: a folder, an adapter's folder or a hub id.")
@click.option("--output", required=True, help="Where the rows go: a .jsonl, .jsonl.gz, .csv or .parquet file.")
@click.option("--dataset_config", help="The configuration of a hub dataset that has several.")
@click.option("--split", default="train", show_default=True, help="The split of a hub dataset or a folder.")
@click.option("--kind", type=click.Choice(_KINDS), help="What to score where a row has columns for several.")
@click.option("--reward_column", default="reward", show_default=True, help="What to call the column of rewards.")
@click.option("--best_of", is_flag=True, help="Keep the best of `completions` alone, as `completion`.")
@click.option("--normalize", is_flag=True, help="Use the mean and standard deviation saved with the model.")
@click.option(
    "--on_error", type=click.Choice(["error", "skip"]), default="error", show_default=True,
    help="What to do at a row that cannot be scored; 'skip' writes it to OUTPUT.rejected.jsonl and goes on.",
)  # fmt: skip
@click.option(
    "--batch_rows", type=click.IntRange(1), default=512, show_default=True, help="Rows that a kill costs at most."
)
@click.option(
    "--max_tokens_per_batch", type=click.IntRange(1), default=4096, show_default=True,
    help="Distinct tokens that run at once.",
)  # fmt: skip
@click.option("--max_length", type=click.IntRange(1), help="Most tokens of a sequence.  [default: the model's]")
@click.option(
    "--overlong", type=click.Choice(["truncate", "error"]), default="truncate", show_default=True,
    help="What becomes of a longer sequence: cut from the left, or a row that cannot be scored.",
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
    help="Here, or on Ray: a cluster (RAY_ADDRESS), or this machine with several models.",
)  # fmt: skip
@click.option(
    "--workers", default="1:", show_default=True, metavar="MIN[:MAX]", help="Models on Ray; no MAX, no limit."
)
@click.option("--restart", is_flag=True, help="Score all rows anew, and replace OUTPUT.")
def command(source: str, **given: Any) -> None:
    """Score the rows of INPUT (JSON lines, CSV, Parquet, a folder or a hub dataset) and write them with their rewards.

    A run that was killed goes on where it was when the same command is given once more.
    """
    # Here and not above: these imports take seconds, and `plaudit --help` must not wait for them.
    from plaudit.cli.display import console, show_log_messages
    from plaudit.data.reader import Source
    from plaudit.scoring.chunk_store import Run, fingerprint_of_model, fingerprint_of_source

    show_log_messages()
    workers = _workers(given["workers"])
    if given["engine"] == "ray":
        import plaudit.scoring.ray_executor  # noqa: F401  # says what to install before anything is done
    origin, output = Source(source, given["dataset_config"], given["split"]), Path(given["output"]).expanduser()
    if origin.holds(output):
        raise ConfigError(f"--output: '{output}' lies in INPUT, and would be read as rows. Name a place outside.")
    with _sigterm_as_ctrl_c(), Run(output, restart=given["restart"]) as run:
        settings = _settings(given, run.earlier)
        manifest = {
            "input": fingerprint_of_source(origin),
            "model": fingerprint_of_model(settings.model),
            "options": settings.decisive() | {"batch_rows": given["batch_rows"]},
        }
        again = "The same command without --restart" if given["restart"] else "The same command"
        try:
            run.agree_on(manifest)
            if run.done:
                console.print(f"Going on after {run.counts.rows:,} rows that an earlier start has scored")
            count = _score(run, origin, settings, given, workers)
            run.agree_on(manifest | {"input": fingerprint_of_source(origin)})  # nobody wrote to it meanwhile
            run.finish()
        except KeyboardInterrupt as stop:
            console.print(f"Stopped after {run.counts.rows:,} rows. {again} goes on.")
            sys.exit(128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                f"--output: there is no room beside '{output}' ({error}). A run needs that of its output twice. Make "
                f"some. {again} goes on after the {run.counts.rows:,} rows that are scored."
            ) from error
        _show_result(run, settings, count)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it."""


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """So that the terminal is put right, and what is done is said."""

    def stop(*_: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _settings(given: dict[str, Any], earlier: dict[str, Any]) -> "Settings":
    import torch

    from plaudit.scoring.worker import Rules, Settings

    rules = Rules(given["kind"], given["reward_column"], given["best_of"], given["on_error"] == "skip")
    names = ("max_tokens_per_batch", "max_length", "overlong", "dtype", "trust_remote_code")
    return Settings(
        model=given["model"],
        device=given["device"] or earlier.get("device") or _device(given["engine"]),
        threads=given["threads"] or earlier.get("threads") or torch.get_num_threads(),
        normalize=given["normalize"],
        rules=rules,
        options={name: given[name] for name in names},
    )


def _device(engine: str) -> str:
    from plaudit.models.device import usable_device

    if engine == "ray":
        from plaudit.scoring.ray_executor import connect

        return "cuda" if connect() else "cpu"
    return usable_device(None).type


def _workers(text: str) -> tuple[int, int | None]:
    form = re.fullmatch(r"(\d+)(:(\d*))?", text)
    least, colon, most = (int(form[1]), form[2], form[3]) if form else (0, None, None)
    limit = int(most) if most else None if colon else least
    if least < 1 or (limit is not None and limit < least):
        raise ConfigError(f"--workers: expected a number such as 4, or a range such as 1:8, got {text!r}.")
    return least, limit


def _score(run: "Run", source: "Source", settings: "Settings", given: dict[str, Any], workers: Any) -> int:
    schema, size = source.schema(), given["batch_rows"]
    progress = _Progress(run)
    engine = _scored(source, settings, size, run.done, workers if given["engine"] == "ray" else None, progress)
    with closing(engine) as scored, progress:
        for block in scored:
            if block.rejected and not settings.rules.skip:
                start = " and without --restart" if given["restart"] else ""
                raise DataError(
                    f"{block.rejected[0]['reason']}\nThe same command with --on_error skip{start} puts such rows into "
                    f"'{run.rejected}' and goes on after the {run.counts.rows:,} rows that are scored."
                )
            run.commit(block, schema)
            progress.show(block)
    return len(progress.workers)


def _scored(
    source: "Source",
    settings: "Settings",
    size: int,
    done: set[int],
    workers: tuple[int, int | None] | None,
    progress: "_Progress",
) -> "Generator[ScoredBlock]":
    if workers is not None:
        from plaudit.scoring.ray_executor import score_on_ray

        return score_on_ray(settings, source, size, frozenset(done), workers)
    from plaudit.scoring.worker import Worker

    worker = Worker(settings, progress.within)  # loaded before the clock runs
    return (worker.score(progress.begin(block)) for block in source.chunks(size, frozenset(done)))


class _Progress:
    """Rows and tokens per second: a bar, or a line every ten seconds where there is no terminal."""

    def __init__(self, run: "Run") -> None:
        self._run, self._before = run, run.counts
        self._bar: Progress | None = None
        self.workers: set[str] = set()
        self._said = self._begun = 0.0
        self._block: Block | None = None

    def __enter__(self) -> "_Progress":
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from plaudit.cli.display import console

        self._said = self._begun = time.monotonic()
        if console.is_terminal:
            columns = (BarColumn(bar_width=10), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)
            self._bar.start()
            self._task = self._bar.add_task("scoring", total=None, figures="scoring")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, block: "Block") -> "Block":
        """Take note of the block that is scored next."""
        self._block = block
        return block

    def within(self, share: float) -> None:
        """Say how far the run is when this share of the block is scored."""
        if self._block is not None:
            first, rows, end = self._block.first, share * len(self._block.rows), self._block.share
            whole = None if end is None else end * (first + rows) / (first + len(self._block.rows))
            self._say(self._run.counts.rows + int(rows), whole)

    def show(self, block: "ScoredBlock") -> None:
        """Say how far the run is after a block."""
        self.workers.add(block.worker)
        self._say(self._run.counts.rows, block.share)

    def _say(self, rows: int, share: float | None) -> None:
        from plaudit.cli.display import console

        counts, seconds = self._run.counts, max(time.monotonic() - self._begun, 1e-9)
        rate = (rows - self._before.rows) / seconds
        figures = f"{rows:,} rows  {rate:,.{0 if rate >= 10 else 1}f} rows/s"
        if whole := counts.rows - self._before.rows:  # tokens are counted when a block is whole
            tokens = (counts.tokens - self._before.tokens) / whole * (rows - self._before.rows)
            figures += f"  {tokens / seconds:,.0f} tokens/s"
        if counts.rejected:
            figures += f"  {counts.rejected:,} rejected"
        if len(self.workers) > 1:
            figures += f"  {len(self.workers)} workers"
        if self._bar is not None:
            self._bar.update(self._task, total=None if share is None else 1.0, completed=share or 0, figures=figures)
        elif time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            console.print(f"{'' if share is None else f'{share:.0%}  '}{figures}")


def _show_result(run: "Run", settings: "Settings", workers: int) -> None:
    from plaudit.cli.display import console

    counts, by = run.counts, f" by {workers} workers" if workers > 1 else ""
    console.print(f"Scored {counts.rows:,} rows of {counts.tokens:,} tokens{by} into [bold]{run.output}[/bold]")
    if counts.rejected:
        console.print(f"[yellow]{counts.rejected:,} rows could not be scored[/yellow]: {run.rejected} says why")
    if counts.cut:
        limit = settings.options["max_length"]
        than = f"{limit:,} tokens" if limit else "the model has positions"
        console.print(f"[yellow]{counts.cut:,} sequences had more than {than}[/yellow] and were cut from the left")
