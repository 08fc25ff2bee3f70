"""`plaudit verify`: check that a saved reward model scores as before; if not, name the layer that breaks."""

import sys
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from plaudit.cli import display

if TYPE_CHECKING:
    from plaudit.checkpoint.verify import Verification

__all__ = ["command", "show_verification"]


@click.command("verify")
@click.argument("path")
@click.option("--trust_remote_code", is_flag=True, help="Allow a model or tokenizer that ships its own code.")
def command(path: str, trust_remote_code: bool) -> None:
    """Reload the reward model at PATH (a folder, an adapter's folder or a hub id) and compare its scores.

    Checks each layer of the checkpoint contract, then loads the model with plain transformers in a fresh process and
    scores the probes that were saved with it. The exit code is 0 only if all layers hold and the rewards are the same.
    """
    with display.while_importing():
        from plaudit.checkpoint.verify import verify

        display.show_log_messages()
    with display.spinner("Reloading in a fresh process ..."):
        verification = verify(path, trust_remote_code=trust_remote_code)
    show_verification(path, verification)
    sys.exit(0 if verification.status == "verified" else 1)


def show_verification(path: str, verification: "Verification") -> None:
    """Print one line for each layer, then the verdict."""
    marks = {True: "[green]holds[/green]", False: "[red]BROKEN[/red]", None: "[yellow]open[/yellow]"}
    rows = [(each.layer, f"{marks[each.holds]}  {escape(each.message)}") for each in verification.findings]
    display.show_table(path, rows)
    if verification.status == "verified":
        display.console.print(f"[green]verified[/green]: {verification.engine} gives the same scores")
    elif verification.status == "failed":
        display.console.print(f"[red]failed[/red]: {', '.join(each.layer for each in verification.broken)}")
    else:
        display.console.print("[yellow]NOT VERIFIED[/yellow]: no rewards could be compared")
