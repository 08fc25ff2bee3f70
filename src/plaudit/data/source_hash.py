"""What `datasets` must know so that its cache does not serve what older code made."""

import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType

__all__ = ["source_hash"]


@cache
def source_hash(*modules: ModuleType) -> str:
    """A hash of the modules' source.

    `datasets` keeps what `map` returned under a hash of its function, which for an importable one is that of its name:
    the same after the code has changed. A function object that holds this hash as a field does not have that trouble.
    """
    return hashlib.sha256(b"".join(Path(module.__file__ or "").read_bytes() for module in modules)).hexdigest()
