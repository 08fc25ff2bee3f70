"""The output of the commands: tables, log messages, and what is shown while a model loads."""

import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

__all__ = ["console", "percent", "show_columns", "show_log_messages", "show_table", "spinner", "while_importing"]

console = Console(highlight=False)
_spinner_is_shown = False


def show_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a two-column table under its title; the rows may hold the markup of rich."""
    console.print(f"\n[bold]{escape(title)}[/bold]")
    table = Table(show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def percent(share: float) -> str:
    """Return a share as a percentage, with a dash where it is not defined."""
    return "-" if math.isnan(share) else f"{share:.1%}"


def show_columns(headings: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str | None] = ()) -> None:
    """Print a table of plain text under its headings, within the width of the console.

    Args:
        headings: A name for each column; the columns after the first hold numbers, and stand to the right.
        rows: A text for each column.
        styles: A style for each row, such as "yellow"; none where there are no styles.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(headings[0], style="cyan", overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, style in zip_longest(rows, styles):
        table.add_row(*map(escape, row), style=style)
    console.print(table)


def show_log_messages() -> None:
    """Show the log messages of Plaudit, of other libraries from warnings on, and a spinner for each model that loads.

    The progress bars of transformers are disabled, and those of datasets too where the output is no terminal.
    """
    from transformers.utils.logging import disable_progress_bar

    from plaudit.models.loading_notice import show_loading

    disable_progress_bar()  # transformers shows one for each file that it reads or writes
    show_loading(_while_loading)
    if not console.is_terminal:
        # The variable is read when datasets is imported, which many commands never do.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        if "datasets" in sys.modules:
            sys.modules["datasets"].disable_progress_bars()
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    logging.basicConfig(format="%(message)s", handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("plaudit").setLevel(logging.INFO)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show a spinner and a text on a terminal, until the context ends; one at a time, the outer one of several."""
    global _spinner_is_shown
    if _spinner_is_shown or not console.is_terminal or os.environ.get("RANK", "0") != "0":  # one for all of a launcher
        yield
        return
    _spinner_is_shown = True
    # The standard streams are left alone: what a library prints to them meanwhile must not come late or elsewhere.
    shown = Live(
        Spinner("dots", escape(text), style="status.spinner"), console=console, refresh_per_second=12.5, transient=True,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    try:
        with shown:
            yield
    finally:
        _spinner_is_shown = False


@contextmanager
def while_importing() -> Iterator[None]:
    """Tell that torch and transformers are imported, which takes seconds: by a spinner, or one line on stderr.

    The line stands where there is no terminal, once for all processes of a launcher. Where the two are imported
    already, nothing is shown.
    """
    if {"torch", "transformers"} <= sys.modules.keys():
        yield
        return
    text = "Loading torch and transformers ..."
    if not console.is_terminal and os.environ.get("RANK", "0") == "0":
        click.echo(text, err=True)
    with spinner(text):
        yield


def _while_loading(model: str) -> AbstractContextManager[object]:
    """Return a spinner for a model on this machine; where weights are downloaded, the bars of the hub's client show."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

    names = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME)
    if Path(model).is_dir() or any(isinstance(try_to_load_from_cache(model, name), str) for name in names):
        return spinner(f"Loading {model} ...")
    return nullcontext()
