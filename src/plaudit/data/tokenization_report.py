"""The rules by which a split is tokenised, and the report of what it has left and what was dropped."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from plaudit.errors import DataError

__all__ = ["TokenizationReport", "TokenizationRules"]

logger = logging.getLogger(__name__)

_ADVISE_ABOVE = 0.2  # the fraction of comparisons dropped
_STREAM_PAIRS_BEFORE_CHECK = 100  # the fraction dropped of fewer says little about the stream


@dataclass(frozen=True)
class TokenizationRules:
    """The rules by which a split is tokenised.

    Attributes:
        max_length: The most tokens that a sequence may have; `None` for no limit.
        overlong: "drop" leaves out a sequence that is too long, and so its comparisons; "truncate" cuts the prefix that
            all sequences of the row share, from the left and by the same number of tokens in all, and leaves out only
            sequences for which that is not enough; "error" raises.
        overlong_max_fraction: Raise when more than this fraction of a split's comparisons is dropped for its length.
        vocabulary_rows: The number of rows of the model's embedding; every id must lie below it.
        ties: Two responses of a group that have equal ranks make a comparison too.
    """

    max_length: int | None = 1024
    overlong: str = "drop"
    overlong_max_fraction: float | None = None
    vocabulary_rows: int | None = None
    ties: bool = False


@dataclass
class TokenizationReport:
    """The counts of one split after tokenisation, or of the rows of a stream that have been read.

    Attributes:
        split: The name of the split, for messages.
        rules: The rules by which it was tokenised.
        pairs: Comparisons in the rows: one in a pair (a tie too), and one for every two responses of a group that have
            unequal ranks, or any ranks if `rules.ties`.
        overlong: Comparisons dropped because a sequence exceeds `max_length`.
        identical: Comparisons dropped because both sequences have the same ids in the end.
        tokens: Tokens of the sequences that are kept, each sequence counted whole.
        streaming: The split is a stream, and the counts grow as it is read.
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
        """The number of comparisons that are kept."""
        return self.pairs - self.overlong - self.identical

    @property
    def dropped(self) -> int:
        """The number of comparisons that are dropped."""
        return self.overlong + self.identical

    def add(self, kept: int, overlong: int, identical: int, tokens: int) -> None:
        """Count more comparisons and tokens; of a stream, check the counts so far too.

        Raises:
            DataError: As `check`, once enough of a stream has been read.
        """
        self.pairs += kept + overlong + identical
        self.overlong += overlong
        self.identical += identical
        self.tokens += tokens
        if self.streaming and self.pairs >= _STREAM_PAIRS_BEFORE_CHECK:
            self.check()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Count one pass over a stream from zero, and log the counts at its end."""
        if self.streaming:
            self.pairs = self.overlong = self.identical = self.tokens = 0
        yield
        if self.streaming and self.pairs:
            self.log()
        elif self.streaming:
            logger.info("%s: the stream was read in loader workers, so its dropped rows are not counted", self.split)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Restore the counts at exit, for a look into a stream that is not a pass over it."""
        counts = self.pairs, self.overlong, self.identical, self.tokens
        yield
        self.pairs, self.overlong, self.identical, self.tokens = counts

    def causes(self) -> str:
        """Return the reasons for which comparisons were dropped, with their counts."""
        parts = []
        if self.overlong:
            parts.append(f"{self.overlong:,} longer than max_length={self.rules.max_length}")
        if self.identical:
            parts.append(f"{self.identical:,} with the same ids in chosen and rejected")
        return ", ".join(parts)

    def check(self) -> None:
        """Raise if too much was dropped.

        Raises:
            DataError: No comparison is kept, or more than `overlong_max_fraction` of them were overlong.
        """
        if self.pairs == 0:
            raise DataError(f"the {self.split} split has no rows that make a pair: nothing to train or evaluate on.")
        limit, fraction = self.rules.overlong_max_fraction, self.overlong / self.pairs
        if limit is not None and fraction > limit:
            raise DataError(
                f"{self.split}: {self.overlong:,} of {self.pairs:,} pairs ({fraction:.0%}) are longer than "
                f"max_length={self.rules.max_length}, more than overlong_max_fraction={limit} allows.{self._advice()}"
            )
        if self.kept == 0:
            raise DataError(f"{self.split}: no pair is left of {self.pairs:,} ({self.causes()}).{self._advice()}")

    def log(self) -> None:
        """Log the counts; as a warning if anything was dropped, with advice if that is more than a fifth."""
        kept = f"{self.split}: {self.kept:,} pairs, {self.tokens:,} tokens"
        if not self.dropped:
            logger.info(kept)
            return
        fraction = self.dropped / self.pairs
        advice = self._advice() if fraction > _ADVISE_ABOVE else ""
        logger.warning(f"{kept}; dropped {self.dropped:,} of {self.pairs:,} ({fraction:.1%}): {self.causes()}.{advice}")

    def _advice(self) -> str:
        if not self.overlong:
            return ""
        if self.rules.overlong == "truncate":
            return " Raise `max_length`: the shared prompts are shorter than what is too much."
        return " Raise `max_length` (None for no limit), or set `overlong` to 'truncate'."
