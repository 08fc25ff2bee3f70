"""A parser of options that are fields of dataclasses: in flags or in a YAML file, flags winning."""

import difflib
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from plaudit.cli.option_help import YAML_ONLY
from plaudit.errors import ConfigError

__all__ = ["OptionParser"]


class OptionParser(HfArgumentParser):
    """transformers' parser of dataclasses, with a YAML file in front and errors that name the nearest option.

    Args:
        dataclasses: The dataclasses to fill; their fields are the options.
        usage: One line of usage.
    """

    def __init__(self, dataclasses: Sequence[type], usage: str) -> None:
        super().__init__(dataclasses, usage=usage, allow_abbrev=False, add_help=False)
        self._known = {action.dest for action in self._actions}
        hints = {name: hint for each in dataclasses for name, hint in get_type_hints(each).items()}
        for action in self._actions:
            if action.dest in YAML_ONLY:
                action.help = SUPPRESS
            # transformers accepts each option with dashes too, and would list both spellings.
            action.option_strings = [
                name for name in action.option_strings if "-" not in name[2:]
            ] or action.option_strings
            if action.type in (int, float) and NoneType in get_args(hints[action.dest]):
                action.type = _or_none(action.type)

    def parse(self, arguments: Sequence[str], **defaults: Callable[[Any], Any]) -> tuple[Any, ...]:
        """Fill the dataclasses from `[CONFIG.yaml] --option value ...`.

        Args:
            arguments: The command line behind the name of the command.
            **defaults: By option, a function that returns the value of that option if it was not given, from the
                namespace of all options.

        Returns:
            An instance of each dataclass.

        Raises:
            ConfigError: An option is unknown, a value is not one of its values, or the file cannot be read.
        """
        flags = [
            part for flag in arguments for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])
        ]
        if flags and not flags[0].startswith("-"):
            self._set_from_yaml(Path(flags.pop(0)))
        elif "--config" in flags:  # as TRL's scripts spell it
            place = flags.index("--config")
            self._set_from_yaml(Path(_value_of(flags, place)))
            del flags[place : place + 2]
        given, unknown = self.parse_known_args(flags)
        if unknown and not unknown[0].startswith("-"):
            raise ConfigError(f"unexpected argument {unknown[0]!r}. Options are written `--name value`.")
        if unknown:
            raise ConfigError(self._unknown(unknown[0].lstrip("-").split("=")[0], dashes="--"))
        self.set_defaults(
            **{name: default(given) for name, default in defaults.items() if getattr(given, name) is None}
        )
        return self.parse_args_into_dataclasses(flags)

    def _set_from_yaml(self, path: Path) -> None:
        try:
            options = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"expected a YAML file of options at '{path}': {error.strerror}. (Data goes to `--dataset_name`.)"
            ) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"'{path}' is not YAML: {error}") from error
        if not isinstance(options, dict):
            raise ConfigError(
                f"'{path}': expected a YAML file with one option a line, such as `learning_rate: 1e-5`. (Data goes to "
                f"`--dataset_name`.)"
            )
        for name in options:
            if name not in self._known:
                raise ConfigError(f"'{path}': {self._unknown(str(name), dashes='')}")
        self.set_defaults(**options)

    def _unknown(self, name: str, *, dashes: str) -> str:
        near = difflib.get_close_matches(name, self._known, n=1)
        hint = f"did you mean {dashes}{near[0]}?" if near else "`plaudit train --help_all` lists them all."
        return f"unknown option {dashes}{name}: {hint}"

    def error(self, message: str) -> NoReturn:
        """Raise an error instead of printing the usage and leaving."""
        raise ConfigError(message)


def _value_of(flags: list[str], place: int) -> str:
    if place + 1 == len(flags):
        raise ConfigError("--config: expected the path of a YAML file.")
    return flags[place + 1]


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a conversion that also takes "none", for a number that may be `None`: `--max_length none`."""

    def converted(text: str) -> Any:
        return None if text.lower() in ("none", "null") else convert(text)

    converted.__name__ = getattr(convert, "__name__", "value")  # argparse's messages name it
    return converted
