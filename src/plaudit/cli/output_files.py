"""The files that commands write, checked before the work begins."""

import os
from pathlib import Path

from plaudit.errors import ConfigError

__all__ = ["check_output"]


def check_output(option: str, path: str | None, *suffixes: str) -> None:
    """Refuse the name of an output file that could not be written.

    Args:
        option: The option that names the file, such as "--output".
        path: The file; `None` where the option was not given.
        suffixes: The endings that the name may have; any where there are none.

    Raises:
        ConfigError: The name is that of a folder, lies in a folder that cannot be written to, or ends in another way.
    """
    if path is None:
        return
    if Path(path).is_dir() or not os.access(Path(path).resolve().parent, os.W_OK):
        raise ConfigError(f"{option} {path}: expected the path of a file in a folder that you may write to.")
    if suffixes and not path.lower().endswith(suffixes):
        raise ConfigError(f"{option} {path}: expected a name that ends with {' or '.join(suffixes)}.")
