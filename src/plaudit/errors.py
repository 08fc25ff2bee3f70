"""The exceptions that Plaudit raises on purpose.

    PlauditError
    ├── DataError       (ValueError)    a row, a column or a split cannot be used for training or scoring
    ├── ConfigError     (ValueError)    an option, or a combination of options, cannot work
    ├── ModelError      (ValueError)    a model, its head or its tokenizer cannot serve as a reward model
    ├── TrainingError   (RuntimeError)  a run cannot go on: a loss, a reward or a gradient is not finite
    ├── CheckpointError (RuntimeError)  a file or folder could not be written, is damaged, or does not score as before
    └── ServerError     (OSError)       a server of rewards cannot be reached, is too busy, or does not answer as one

Each message says what was expected, what came, and what to do about it. The second base class is the built-in
exception that TRL and transformers raise in such a case, so `except ValueError` keeps working after the import is
swapped. The exceptions carry nothing but their message, since `datasets.map` with several processes pickles them.
"""

__all__ = ["CheckpointError", "ConfigError", "DataError", "ModelError", "PlauditError", "ServerError", "TrainingError"]


class PlauditError(Exception):
    """Base of all exceptions that Plaudit raises on purpose."""


class DataError(PlauditError, ValueError):
    """Raised when a row, a column or a split cannot be used for training or scoring."""


class ConfigError(PlauditError, ValueError):
    """Raised when an option, or a combination of options, cannot work."""


class ModelError(PlauditError, ValueError):
    """Raised when a model, its head or its tokenizer cannot serve as a reward model."""


class TrainingError(PlauditError, RuntimeError):
    """Raised when a run cannot go on: a loss, a reward or a gradient is not finite."""


class CheckpointError(PlauditError, RuntimeError):
    """Raised when a file or folder could not be written, is damaged, or does not score as before."""


class ServerError(PlauditError, OSError):
    """Raised when a server of rewards cannot be reached, is too busy for too long, or does not answer as one."""
