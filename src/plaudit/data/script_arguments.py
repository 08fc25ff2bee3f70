"""The options that name the data to train and evaluate on."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ScriptArguments"]


@dataclass
class ScriptArguments:
    """The data to train and evaluate on. Options that TRL has too have the same names, defaults and meanings."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id of a dataset, or the path of a file or folder. Ignored if `datasets` is given."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset on the hub, for a dataset that has several."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split to train on; a slice such as `train[:1000]` is possible."}
    )
    dataset_test_split: str = field(
        default="test",
        metadata={"help": "Split to evaluate on. Without a `test` split, and none named, nothing is evaluated."},
    )
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Stream the dataset instead of storing it on disk first."}
    )
    ignore_bias_buffers: bool = field(
        default=False,
        metadata={"help": "Leave boolean buffers out of distributed synchronisation, for models that fail there."},
    )
    dataset_format: str | None = field(
        default=None,
        metadata={
            "help": "Published layout to convert the rows from: arena, helpsteer, hh, ranked or ultrafeedback. "
            "Leave it out for rows in one of Plaudit's own formats."
        },
    )
    eval_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the training rows to hold out for evaluation instead of a test split. "
            "Rows with the same prompt stay in the same split."
        },
    )
    datasets: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "A mixture, from a YAML file only: a list of entries with `path` and, optionally, `name`, `split`, "
            "`format`, `columns` and `weight` (or `fraction`), the entry's relative share of the rows."
        },
    )
    learning_curve: bool = field(
        default=False,
        metadata={
            "help": "After the training, train on 1/8, 1/4 and 1/2 of the rows as well, and predict the held-out loss "
            "at twice the data."
        },
    )
    report: bool = field(
        default=False,
        metadata={
            "help": "After the training, audit the training rows, score the held-out rows with the saved model, and "
            "write both and report.html into output_dir."
        },
    )
