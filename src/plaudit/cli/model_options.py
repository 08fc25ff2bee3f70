"""The options of `RewardModel.from_pretrained`, for the commands that load a trained model."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

__all__ = ["model_options"]

_OPTIONS = (
    click.option(
        "--max_tokens_per_batch", type=click.IntRange(1), default=4096, show_default=True,
        help="Most tokens of a forward pass, shared prefixes counted once.",
    ),
    click.option("--max_length", type=click.IntRange(1), help="Most tokens of a sequence.  [default: the model's]"),
    click.option(
        "--overlong", type=click.Choice(["truncate", "error"]), default="truncate", show_default=True,
        help="Truncate a longer sequence from the left, or treat it as an error of its row.",
    ),
    click.option(
        "--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), default="auto", show_default=True,
        help="Precision of the weights.",
    ),
    click.option(
        "--device", help="Device of the model, such as cpu or cuda:1.  [default: an accelerator if there is one]"
    ),
    click.option("--trust_remote_code", is_flag=True, help="Allow a model or tokenizer that ships its own code."),
)  # fmt: skip


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `RewardModel.from_pretrained` to a command."""
    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)
