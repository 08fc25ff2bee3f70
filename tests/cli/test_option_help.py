from dataclasses import dataclass, field, fields

import click

from plaudit.cli.option_help import YAML_ONLY, format_options
from plaudit.data.script_arguments import ScriptArguments
from plaudit.models.model_config import ModelConfig
from plaudit.training.reward_options import RewardOptions


@dataclass
class Options:
    path: str | None = field(default=None, metadata={"help": "A path."})
    count: int | None = field(default=7, metadata={"help": "A number."})
    names: list[str] | None = field(default=None, metadata={"help": "Names."})
    rate: float = field(default=0.5, metadata={"help": "A rate."})
    shout: bool = field(default=False, metadata={"help": "Be loud."})
    drop: bool = field(default=True, metadata={"help": "Drop some."})
    order: str = field(default="up", metadata={"help": "An order.", "choices": ["up", "down"]})
    datasets: list[dict] | None = field(default=None, metadata={"help": "From a file."})


def section(title, options, width=100):
    formatter = click.HelpFormatter(width=width)
    format_options(formatter, title, options)
    return formatter.getvalue()


def test_each_field_is_a_line_with_its_type_its_help_and_its_default():
    assert section("Some", Options).splitlines() == [
        "Some:",
        "  --path TEXT        A path.",
        "  --count INTEGER    A number.  [default: 7]",
        "  --names TEXT       Names.",
        "  --rate FLOAT       A rate.  [default: 0.5]",
        "  --shout            Be loud.",
        "  --drop BOOLEAN     Drop some.  [default: True]",
        "  --order [up|down]  An order.  [default: up]",
    ]


def test_every_option_of_plaudit_has_a_help_text():
    for options in (ScriptArguments, ModelConfig, RewardOptions):
        text = section("All", options)
        for each in fields(options):
            assert each.metadata.get("help"), each.name
            assert (f"--{each.name}" in text) == (each.name not in YAML_ONLY)
