"""The output of the commands: tables and log messages."""

import logging
from collections.abc import Iterable

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

__all__ = ["console", "show_log_messages", "show_table"]

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
