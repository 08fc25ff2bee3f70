"""`plaudit ensemble`: write a folder that names several reward models, which score as one."""

from typing import Any

import click
from rich.markup import escape

from plaudit.cli import display
from plaudit.cli.dataset_options import dataset_options
from plaudit.cli.model_options import model_options

__all__ = ["command"]


@click.command("ensemble")
@click.argument("members", nargs=-1, required=True)
@click.option("--output", required=True, help="Folder for the ensemble; new or empty.")
@click.option(
    "--data", required=True,
    help="Reference set: a file, a folder or a hub id of preferences, on whose responses all members are measured.",
)  # fmt: skip
@dataset_options("Split of the reference set.  [default: test, else validation, else the only one]")
@click.option("--copy", is_flag=True, help="Put copies of the members that are folders into the output folder.")
@model_options
def command(
    members: tuple[str, ...],
    output: str,
    data: str,
    split: str | None,
    dataset_config: str | None,
    dataset_format: str | None,
    copy: bool,
    **options: Any,
) -> None:
    """Join MEMBERS (two or more folders, adapters or hub ids) to one ensemble in a folder.

    Commands that score take the folder as they take a model: the reward is the mean of the members, and their spread
    says how sure it is. Members are centred and scaled on the reference set before they are compared. The folder names
    them by relative paths, so move it together with them, or use --copy.
    """
    with display.while_importing():
        from plaudit.evaluation.evaluate import load_rows
        from plaudit.evaluation.preference_data import read_preferences
        from plaudit.scoring.ensemble import save_ensemble

        display.show_log_messages()
    rows, split = load_rows(data, split=split, dataset_config=dataset_config, dataset_format=dataset_format)
    preferences = read_preferences(rows)
    name = f"{data}, split {split}" if split else data
    saved = save_ensemble(
        members, output, preferences.sequences, template_options=preferences.template_options,
        measured_on=f"{len(preferences.sequences)} responses of {name}", copy=copy, **options,
    )  # fmt: skip
    described = zip(saved.members, saved.constants.centers, saved.constants.scales, strict=True)
    display.show_table(
        output, [(f"member {number}", f"{escape(path)}: mean {center:+.3f}, standard deviation {scale:.3f}")
                 for number, (path, center, scale) in enumerate(described, 1)],
    )  # fmt: skip
    display.console.print(
        f"The ensemble is in [bold]{escape(output)}[/bold]; its reward is the mean of the members.", soft_wrap=True
    )
