"""What may become of a row that is too long, and the counts of what was left out."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from plaudit.errors import DataError

__all__ = ["NO_PAIRS", "TokenizationReport", "TokenizationRules"]

logger = logging.getLogger(__name__)

NO_PAIRS = "the {} split has no rows that make a pair: nothing to train or evaluate on."
_MUCH = 0.2  # of a split dropped
_STREAM_PAIRS_BEFORE_JUDGING = 100  # a stream's fraction means little before


@dataclass(frozen=True)
class TokenizationRules:
    """What may become of a row that is too long, and what is made of it beside ids.

    Attributes:
        max_length: The most tokens that a sequence may have; `None` for no limit.
        overlong: "drop" leaves out the sequence that is too long, and so its comparisons; "truncate" cuts what all
            sequences of the row begin with, from the left, the same cut for all, and leaves out only those for which
            that is too short; "error" raises.
        overlong_max_fraction: Raise when more than this fraction of a split's comparisons is dropped for its length.
        vocabulary_rows: Rows of the model's embedding; ids must lie below.
        prompt_keys: Add a column `prompt_key`: a number that rows of the same prompt share.
        ties: Two responses of a group that are of equal rank make a comparison too.
    """

    max_length: int | None = 1024
    overlong: str = "drop"
    overlong_max_fraction: float | None = None
    vocabulary_rows: int | None = None
    prompt_keys: bool = False
    ties: bool = False


@dataclass
class TokenizationReport:
    """What became of one split. For a stream, the counts so far.

    Attributes:
        split: Its name, for messages.
        rules: The rules that held.
        pairs: Comparisons that the rows made: one for a pair (a tie too), and one for each two responses of a group
            that are of unequal rank, or of any where `ties` count.
        overlong: Of these, dropped because a sequence exceeds `max_length`.
        identical: Of these, dropped because both sequences have the same final ids.
        tokens: Tokens of what is kept, each sequence counted once.
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
        """Comparisons that remain."""
        return self.pairs - self.overlong - self.identical

    @property
    def dropped(self) -> int:
        """Comparisons left out."""
        return self.overlong + self.identical

    def add(self, *, kept: int, overlong: int, identical: int, tokens: int) -> None:
        """Count the comparisons of more rows by what became of them, and their tokens."""
        self.pairs += kept + overlong + identical
        self.overlong += overlong
        self.identical += identical
        self.tokens += tokens

    def add_streamed(self, *, kept: int, overlong: int, identical: int, tokens: int) -> None:
        """Count more rows of a stream, and judge them as they come: nobody knows its length.

        Raises:
            DataError: As `check` does, once enough pairs have come.
        """
        silent = self.dropped == 0
        self.add(kept=kept, overlong=overlong, identical=identical, tokens=tokens)
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

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Look into the split without counting what is seen."""
        counts = self.pairs, self.overlong, self.identical, self.tokens
        yield
        self.pairs, self.overlong, self.identical, self.tokens = counts

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
