"""The `plaudit` command. One file for each subcommand: parse, call, print."""

import logging
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from plaudit.cli.interrupts import exit_code
from plaudit.errors import PlauditError

__all__ = ["cli", "main"]

# The help texts are here so that `plaudit --help` imports no module of a command.
_COMMANDS = {
    "quickstart": "Train, evaluate and use a small reward model on built-in data: 90 seconds, no network, no GPU.",
    "audit": "Look for what is wrong with preference data before training.",
    "train": "Train a reward model on preference data.",
    "verify": "Check that a saved reward model, reloaded in a new process, gives the same rewards.",
    "eval": "Evaluate a reward model on preference data, and compare it with baselines.",
    "compare": "Compare reward models on the same data: is one better, or could chance explain the difference?",
    "report": "Write one HTML report on a reward model: what is wrong, figures, pictures, wrong pairs.",
    "merge": "Merge an adapter into its base model, or average several models; checks that the rewards stay the same.",
    "ensemble": "Join several reward models to one whose reward is their mean, and whose members' spread is kept.",
    "laplace": "Fit how sure the rewards of a model with one head are, from the data that it was trained on.",
    "score": "Add rewards to the rows of a file or a hub dataset; an interrupted run can be resumed.",
    "serve": "Serve a reward model over HTTP, for RL frameworks, rerankers and a page to compare responses.",
}


class _Commands(click.Group):
    """A group that imports the module of a command when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return import_module(f"plaudit.cli.{cmd_name}").command if cmd_name in _COMMANDS else None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it with the exit code 130, as a shell reports it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:  # click's exit code, 1, is also that of a failed verification
            click.echo("\nStopped.", err=True)
            sys.exit(exit_code(interrupt))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="plaudit")
def cli() -> None:
    """Train, evaluate and use reward models for language models from human preferences."""


def main() -> None:
    """Run the command line.

    Errors of Plaudit are printed without a traceback, with exit code 2. So are the errors of the libraries below for
    bad values, missing files and missing packages; `PLAUDIT_TRACEBACK=1` shows their tracebacks.
    """
    # bitsandbytes warns at its import that an optional package of faster kernels is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        cli()
    except PlauditError as error:
        _show_error(str(error))
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("PLAUDIT_TRACEBACK"):
            raise
        from plaudit.checkpoint.disk_full import is_disk_full

        if is_disk_full(error):
            _show_error(f"{error}. The disk is full; HF_DATASETS_CACHE moves the cache of tokenised data.")
        _show_error(f"{error} ({type(error).__name__}; PLAUDIT_TRACEBACK=1 shows where it comes from)")


def _show_error(message: str) -> NoReturn:
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    sys.exit(2)
