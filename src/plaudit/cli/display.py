"""The output of the commands: tables and log messages."""

import logging
import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

__all__ = ["console", "percent", "show_columns", "show_log_messages", "show_table"]

console = Console(highlight=False)


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
    """Show the log messages of Plaudit, and of other libraries from warnings on.

    The progress bars of transformers are disabled, and those of datasets too where the output is no terminal.
    """
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # transformers shows one for each file that it reads or writes
    if not console.is_terminal:
        datasets.disable_progress_bars()
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    logging.basicConfig(format="%(message)s", handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("plaudit").setLevel(logging.INFO)
