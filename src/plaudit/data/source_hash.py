"""A hash of this package's source code, which keeps the cache of `datasets` from serving what older code made."""

import hashlib
from functools import cache
from pathlib import Path

__all__ = ["source_hash"]


@cache
def source_hash(folder: Path = Path(__file__).parent) -> str:
    """Return a hash of the source of the modules in a folder; by default, of `plaudit.data`.

    `datasets` caches the result of `map` under a hash of the function, and hashes an importable function by its name
    only. A callable object that holds this hash as a field is hashed with its code.
    """
    files = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
