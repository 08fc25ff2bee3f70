"""The options that choose a conservative reward, for the commands that can use one."""

from collections.abc import Callable
from typing import Any

import click

from plaudit.uncertainty import AGGREGATES

__all__ = ["aggregate_options"]


def aggregate_options(use: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds --aggregate and --k to a command.

    Args:
        use: The use of the reward, as the first words of the help of --aggregate.
    """
    aggregate = click.option(
        "--aggregate", type=click.Choice(AGGREGATES), default="mean", show_default=True,
        help=f"{use}: that of the model, or, if it says how sure it is, a conservative one.",
    )  # fmt: skip
    k = click.option(
        "--k", type=click.FloatRange(0), default=1.0, show_default=True,
        help="Weight of the standard deviation or variance in a conservative reward.",
    )  # fmt: skip
    return lambda command: aggregate(k(command))
