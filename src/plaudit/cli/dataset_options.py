"""The options that choose a part of a dataset, for the commands that read preferences."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

__all__ = ["dataset_options"]


def dataset_options(split: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds --split, --dataset_config and --dataset_format to a command.

    Args:
        split: The help of --split, which says what the split is for and which one is the default.
    """
    options = (
        click.option("--split", help=split),
        click.option("--dataset_config", help="Configuration of a hub dataset that has several."),
        click.option(
            "--dataset_format", help="Published layout of the rows: arena, helpsteer, hh, ranked or ultrafeedback."
        ),
    )
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)
