"""The `plaudit` command. One file for each subcommand: parse, call, print."""

import logging
import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from plaudit.errors import PlauditError

__all__ = ["main"]

# Said here and not in the modules, so that `plaudit --help` imports none of them, and no torch.
_COMMANDS = {
    "quickstart": "Train, prove and use a small reward model on built-in data. No network, no GPU, three minutes.",
    "train": "Train a reward model on your preference data.",
    "verify": "Reload a saved reward model in a fresh process and prove that it scores the same.",
    "eval": "Evaluate a reward model on preference data, beside what needs no model.",
    "merge": "Merge an adapter into its base model, with the same scores.",
    "score": "Give the rows of a file or a hub dataset their rewards; a killed run goes on.",
}


class _Commands(click.Group):
    """Loads a subcommand's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return import_module(f"plaudit.cli.{cmd_name}").command if cmd_name in _COMMANDS else None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it with the code that a shell gives a program which a signal ended."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would say "Aborted!" and 1, which is also that of a failed verification
            click.echo("\nStopped.", err=True)
            sys.exit(128 + signal.SIGINT)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="plaudit")
def cli() -> None:
    """Train, evaluate and use reward models for language models from human preferences."""


def main() -> None:
    """Run the command line.

    Plaudit's own errors are shown without a traceback, with exit code 2. So are those of the libraries below it for
    bad values, missing files and missing packages; `PLAUDIT_TRACEBACK=1` shows where they come from.
    """
    # It remarks at its import, whatever is done, that a package of faster kernels is not there.
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
