"""What may become of a pair that is too long, and the counts of what was left out."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.errors import DataError

__all__ = ["IDENTICAL", "KEPT", "NO_PAIRS", "OVERLONG", "TokenizationReport", "TokenizationRules"]

logger = logging.getLogger(__name__)

KEPT, OVERLONG, IDENTICAL = 0, 1, 2  # the status of a pair; caches hold them, so keep the numbers
NO_PAIRS = "the {} split has no rows that make a pair: nothing to train or evaluate on."
_MUCH = 0.2  # of a split dropped
_STREAM_PAIRS_BEFORE_JUDGING = 100  # a stream's fraction means little before


@dataclass(frozen=True)
class TokenizationRules:
    """What may become of a pair that is too long.

    Attributes:
        max_length: The most tokens that a sequence may have; `None` for no limit.
        overlong: "drop" leaves the pair out; "truncate" cuts the shared prompt from the left, the same cut for both,
            and drops the pair only where the prompt is too short to give enough; "error" raises.
        overlong_max_fraction: Raise when more than this fraction of a split is dropped for its length.
        vocabulary_rows: Rows of the model's embedding; ids must lie below.
    """

    max_length: int | None = 1024
    overlong: str = "drop"
    overlong_max_fraction: float | None = None
    vocabulary_rows: int | None = None


@dataclass
class TokenizationReport:
    """What became of one split. For a stream, the counts so far.

    Attributes:
        split: Its name, for messages.
        rules: The rules that held.
        pairs: Comparisons that the rows made.
        overlong: Of these, dropped because a sequence exceeds `max_length`.
        identical: Of these, dropped because both sequences have the same final ids.
        tokens: Tokens of the kept pairs, chosen and rejected together.
        streaming: Whether the counts grow as the rows come.
    """

    split: str
    rules: TokenizationRules
    pairs: int = 0
    overlong: int = 0
    identical: int = 0
    tokens: int = 0
    streaming: bool = False

    @property
    def kept(self) -> int:
        """Pairs that remain."""
        return self.pairs - self.overlong - self.identical

    @property
    def dropped(self) -> int:
        """Pairs left out."""
        return self.overlong + self.identical

    def add(self, statuses: Any, tokens: int) -> None:
        """Count more pairs, by the `_status` of each."""
        counts = np.bincount(statuses, minlength=3)
        self.pairs += int(counts.sum())
        self.overlong += int(counts[OVERLONG])
        self.identical += int(counts[IDENTICAL])
        self.tokens += tokens

    def add_streamed(self, statuses: Any, tokens: int) -> None:
        """Count more pairs of a stream, and judge them as they come: nobody knows its length.

        Raises:
            DataError: As `check` does, once enough pairs have come.
        """
        silent = self.dropped == 0
        self.add(statuses, tokens)
        if silent and self.dropped:
            logger.info("%s: pairs are dropped as the stream comes (%s so far)", self.split, self.causes())
        if self.pairs >= _STREAM_PAIRS_BEFORE_JUDGING:
            self.check()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """A pass over the split. Of a stream it counts afresh, and says in the end what was left out."""
        if self.streaming:
            self.pairs = self.overlong = self.identical = self.tokens = 0
        yield
        if self.streaming and self.pairs:
            self.log()
        elif self.streaming:
            logger.info("%s: loader workers read the stream; what they dropped is not known here", self.split)

    def causes(self) -> str:
        """Why pairs were dropped, in words."""
        parts = []
        if self.overlong:
            parts.append(f"{self.overlong:,} longer than max_length={self.rules.max_length}")
        if self.identical:
            parts.append(f"{self.identical:,} with the same ids in chosen and rejected")
        return ", ".join(parts)

    def check(self) -> None:
        """Raise where too much was dropped.

        Raises:
            DataError: Nothing is left, or more than `overlong_max_fraction` was overlong.
        """
        if self.pairs == 0:
            raise DataError(NO_PAIRS.format(self.split))
        limit, fraction = self.rules.overlong_max_fraction, self.overlong / self.pairs
        if limit is not None and fraction > limit:
            raise DataError(
                f"{self.split}: {self.overlong:,} of {self.pairs:,} pairs ({fraction:.0%}) are longer than "
                f"max_length={self.rules.max_length}, more than overlong_max_fraction={limit} allows.{self._advice()}"
            )
        if self.kept == 0:
            raise DataError(f"{self.split}: no pair is left of {self.pairs:,} ({self.causes()}).{self._advice()}")

    def log(self) -> None:
        """Say once what was kept; a warning if anything was dropped, with advice if that is more than a fifth."""
        kept = f"{self.split}: {self.kept:,} pairs, {self.tokens:,} tokens"
        if not self.dropped:
            logger.info(kept)
            return
        share = self.dropped / self.pairs
        advice = self._advice() if share > _MUCH else ""
        logger.warning(f"{kept}; dropped {self.dropped:,} of {self.pairs:,} ({share:.1%}): {self.causes()}.{advice}")

    def _advice(self) -> str:
        if not self.overlong:
            return ""
        if self.rules.overlong == "truncate":
            return " Raise `max_length`: the prompts are too short to make up for it."
        return " Raise `max_length` (None for no limit), or set `overlong` to 'truncate'."
