"""API keys: kept as SHA-256 digests, compared in constant time, and read again when their file is rewritten."""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers

from plaudit.errors import ConfigError

__all__ = ["ApiKeys", "presented_key"]

_log = logging.getLogger(__name__)

_SHORTEST_KEY = 16


class ApiKeys:
    """A set of keys, any of which opens the server.

    Args:
        digests: SHA-256 digest of each key.
        path: The file that holds the keys, if a file does.
        check_seconds: Least time between two readings of the file.
    """

    def __init__(self, digests: list[bytes], path: Path | None = None, check_seconds: float = 1.0) -> None:
        self._digests, self._path, self._check_seconds = digests, path, check_seconds
        self._checked = time.monotonic()
        self._problem = ""

    @classmethod
    def from_file(cls, path: str | Path, check_seconds: float = 1.0) -> "ApiKeys":
        """Read keys from a file with one key a line; empty lines and lines that begin with `#` are skipped.

        The file is read again while the server runs, so that keys are changed by rewriting it. If it then cannot be
        read, or holds no valid keys, the keys that were read before stay in force and an error is logged.

        Args:
            path: The file.
            check_seconds: Least time between two readings.

        Raises:
            ConfigError: The file cannot be read, holds no key, or a line holds no valid key.
        """
        path = Path(path)
        keys = cls(_read_file(path), path, check_seconds)
        if path.stat().st_mode & stat.S_IROTH:
            _log.warning("Every user of this machine can read the API keys in %s; `chmod 600` changes that.", path)
        return keys

    @classmethod
    def from_environment(cls, variable: str = "PLAUDIT_API_KEYS") -> "ApiKeys | None":
        """Read keys from an environment variable that holds them with commas between them.

        Returns:
            The keys; `None` if the variable is not set.

        Raises:
            ConfigError: The variable holds no key, or one that is not valid.
        """
        value = os.environ.get(variable)
        if value is None:
            return None
        keys = [(f"{variable}, key {number}", key.strip()) for number, key in enumerate(value.split(","), 1)]
        return cls(_digests(variable, ((place, key) for place, key in keys if key)))

    def check(self, presented: str) -> str | None:
        """Return a short name for a key, the first eight hexadecimal digits of its digest; `None` for a wrong key.

        Args:
            presented: What the client sent.
        """
        self._read_again()
        digest = _digest(presented)
        found = False
        for known in self._digests:  # every one, so that the time does not depend on which one it is
            found |= hmac.compare_digest(digest, known)
        return digest.hex()[:8] if found else None

    def _read_again(self) -> None:
        """Read the file again if the last reading is long enough ago."""
        if self._path is None or time.monotonic() - self._checked < self._check_seconds:
            return
        self._checked = time.monotonic()
        try:
            digests = _read_file(self._path)
        except ConfigError as error:
            if str(error) != self._problem:
                _log.error("The API keys that were read before stay in force. %s", error)
            self._problem = str(error)
            return
        if digests != self._digests:
            are_in_force = "key is in force" if len(digests) == 1 else "keys are in force"
            _log.info("%s was rewritten: %d API %s.", self._path, len(digests), are_in_force)
        self._digests, self._problem = digests, ""


def presented_key(headers: Headers, *, basic: bool) -> str | None:
    """Return the key in the header Authorization: `Bearer KEY`, or HTTP Basic with the key as the password.

    Args:
        headers: Headers of a request.
        basic: Accept HTTP Basic, with any user name.

    Returns:
        The key; `None` if there is no such header, more than one, or one of another form.
    """
    values = headers.getlist("authorization")
    scheme, _, credentials = values[0].strip().partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() == "bearer":
        return credentials.strip() or None
    if scheme.lower() == "basic" and basic:
        try:
            _, _, password = base64.b64decode(credentials.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return password or None
    return None


def _read_file(path: Path) -> list[bytes]:
    """Return the digests of the keys in a file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "the file is not UTF-8"
        raise ConfigError(f"The API keys in {path} cannot be read: {reason}.") from None
    keys = [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, 1)]
    return _digests(path, ((place, key) for place, key in keys if key and not key.startswith("#")))


def _digests(source: Path | str, keys: Iterable[tuple[str, str]]) -> list[bytes]:
    """Return the digests of the keys of a file or a variable, each given with the place where it was found."""
    digests = []
    for place, key in keys:
        if len(key) < _SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"{place}: a key must have at least {_SHORTEST_KEY} characters, all of them printable ASCII and none a "
                "space. `openssl rand -hex 32` makes one."
            )
        digests.append(_digest(key))
    if not digests:
        raise ConfigError(f"{source} holds no API key; at least one of {_SHORTEST_KEY} characters is needed.")
    return digests


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
