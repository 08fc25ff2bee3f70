"""The options of `RewardModel.from_pretrained`, for the commands that load a trained model."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import click

from plaudit.errors import ConfigError

__all__ = ["model_options", "options_of_server"]

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


def options_of_server(url: str, options: dict[str, Any], others: Iterable[str] = ()) -> dict[str, Any]:
    """Return those of the model options that a server takes with each request.

    Args:
        url: Address of the server.
        options: The model options of the command.
        others: Further options of the command that decide how a model in this process runs.

    Raises:
        ConfigError: An option was given that is chosen where the server is started.
    """
    per_request = {"overlong": options["overlong"]}
    source_of = click.get_current_context().get_parameter_source
    for name in [*sorted(options.keys() - per_request.keys()), *others]:
        if source_of(name) is not click.core.ParameterSource.DEFAULT:
            raise ConfigError(f"--{name}: the model runs at {url}. Give this option to the `plaudit serve` there.")
    return per_request
