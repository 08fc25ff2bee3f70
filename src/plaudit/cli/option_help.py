"""Help for options that are fields of dataclasses, by click, without importing transformers' parser of them."""

from dataclasses import Field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import click

__all__ = ["YAML_ONLY", "format_options"]

YAML_ONLY = ("datasets",)  # a mixture is written in a file; no flag could hold it

_METAVARS = {int: "INTEGER", float: "FLOAT"}


def format_options(formatter: click.HelpFormatter, title: str, options: type) -> None:
    """Write a section with a line for each field of a dataclass: its name, its type or choices, help and default."""
    hints = get_type_hints(options)
    with formatter.section(title):
        formatter.write_dl(
            [
                (f"--{field.name} {_metavar(field, hints[field.name])}".rstrip(), _description(field))
                for field in fields(options)
                if field.name not in YAML_ONLY
            ]
        )


def _metavar(field: "Field[Any]", hint: Any) -> str:
    if choices := field.metadata.get("choices"):
        return f"[{'|'.join(choices)}]"
    types = [each for each in get_args(hint) or (hint,) if each is not NoneType]
    if bool in types:
        return "" if field.default is False else "BOOLEAN"
    return _METAVARS.get(types[0], "TEXT")


def _description(field: "Field[Any]") -> str:
    default = "" if field.default in (None, False) else f"  [default: {field.default}]"
    return field.metadata.get("help", "") + default
