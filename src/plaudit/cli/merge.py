"""`plaudit merge`: make one plain model of an adapter and its base, with the same scores."""

import click
from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.verify import show_verification

__all__ = ["command"]


@click.command("merge")
@click.argument("adapter")
@click.option("--output", required=True, help="Folder for the merged model; new or empty.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Precision of the merged weights.  [default: that of the base in training]",
)
@click.option("--trust_remote_code", is_flag=True, help="Allow a model that ships its own code.")
def command(adapter: str, output: str, dtype: str | None, trust_remote_code: bool) -> None:
    """Merge ADAPTER (a folder or a hub id) into its base model, and verify that the result scores the same."""
    from plaudit.checkpoint.merge import merge_adapter

    display.show_log_messages()
    with display.console.status("Merging, then reloading in a fresh process ..."):
        verification = merge_adapter(adapter, output, dtype=dtype, trust_remote_code=trust_remote_code)
    show_verification(output, verification)
    display.console.print(f"The merged reward model is in [bold]{escape(output)}[/bold]")
