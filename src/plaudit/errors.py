"""Every exception that Plaudit raises on purpose.

    PlauditError
    ├── DataError      (ValueError)  a row, a column or a split is not what training or scoring needs
    ├── ConfigError    (ValueError)  an option, or a combination of options, that cannot work
    ├── ModelError     (ValueError)  a model, its head or its tokenizer cannot serve as a reward model
    ├── TrainingError   (RuntimeError) a run that cannot go on: a loss, a reward or a gradient is not finite
    └── CheckpointError (RuntimeError) a folder that could not be written, read or trusted

Each message says what was expected, what came, and what to do about it. They derive from the built-in exception
that TRL's and transformers' users catch today, so that `except ValueError` keeps working after the import is swapped.
They carry nothing but their message: `datasets.map` with several processes pickles them.
"""

__all__ = ["CheckpointError", "ConfigError", "DataError", "ModelError", "PlauditError", "TrainingError"]


class PlauditError(Exception):
    """Base of all of Plaudit's own exceptions."""


class DataError(PlauditError, ValueError):
    """A row, a column or a split is not what training or scoring needs."""


class ConfigError(PlauditError, ValueError):
    """An option, or a combination of options, that cannot work."""


class ModelError(PlauditError, ValueError):
    """A model, its head or its tokenizer cannot serve as a reward model."""


class TrainingError(PlauditError, RuntimeError):
    """A run that cannot go on: a loss, a reward or a gradient is not finite."""


class CheckpointError(PlauditError, RuntimeError):
    """A folder that could not be written, read or trusted."""
