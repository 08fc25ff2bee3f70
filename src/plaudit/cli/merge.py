"""`plaudit merge`: make one plain model of an adapter and its base, or of several models by averaging their weights."""

import click
from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.verify import show_verification
from plaudit.errors import ConfigError

__all__ = ["command"]


@click.command("merge")
@click.argument("models", metavar="ADAPTER...", nargs=-1, required=True)
@click.option("--output", required=True, help="Folder for the merged model; new or empty.")
@click.option("--average", is_flag=True, help="Average the weights of several models or adapters of one architecture.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Precision of the merged weights.  [default: that of the base in training, or of the first model]",
)
@click.option("--trust_remote_code", is_flag=True, help="Allow a model that ships its own code.")
def command(models: tuple[str, ...], output: str, average: bool, dtype: str | None, trust_remote_code: bool) -> None:
    """Merge ADAPTER (a folder or a hub id) into its base model, and verify that the result scores the same.

    With --average, several whole models or adapters become one model of their mean weights. Where they disagreed is
    lost; `plaudit ensemble` keeps it.
    """
    if not average and len(models) > 1:
        raise ConfigError(
            f"expected one adapter, got {len(models)}. --average makes one model of several; `plaudit ensemble` joins "
            "them and keeps their disagreement."
        )
    with display.while_importing():
        from plaudit.checkpoint.average import average_models
        from plaudit.checkpoint.merge import merge_adapter

        display.show_log_messages()
    with display.spinner("Merging, then reloading in a fresh process ..."):
        if average:
            verification = average_models(models, output, dtype=dtype, trust_remote_code=trust_remote_code)
        else:
            verification = merge_adapter(models[0], output, dtype=dtype, trust_remote_code=trust_remote_code)
    show_verification(output, verification)
    display.console.print(f"The merged reward model is in [bold]{escape(output)}[/bold]", soft_wrap=True)
