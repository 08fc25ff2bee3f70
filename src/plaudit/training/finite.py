"""Numbers that are not finite: noticed without a wait, and named by the rows they come from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.training.collator import comparisons_of, sequences_of

__all__ = ["FiniteWatch", "rows_in_words"]

_NAMED_ROWS = 5
_EXCERPT = 80  # characters


@dataclass(frozen=True)
class _Seen:
    """What one batch gave: its loss [], and rewards [N] and losses [C] where they are known.

    Attributes:
        numbers: Those of its rows in the dataset [rows], where they are known.
    """

    loss: torch.Tensor
    rewards: torch.Tensor | None
    losses: torch.Tensor | None
    batch: dict[str, Any]
    numbers: torch.Tensor | None

    def is_fine(self) -> torch.Tensor:
        """Whether all of it is finite, a boolean [] on the device."""
        figures = [each for each in (self.loss, self.rewards, self.losses) if each is not None]
        return torch.stack([each.isfinite().all() for each in figures]).all()

    def rows(self, *, all_rows: bool) -> list[int]:
        """The rows, by their place in the batch, with a reward or a loss that is not finite; all if no one is."""
        pairs = comparisons_of(self.batch)
        owner = self.batch.get("comparison_row", torch.arange(len(pairs), device=pairs.device))
        bad = []
        if self.rewards is not None and self.losses is not None and not all_rows:
            sequence_owner = self.batch.get("sequence_row")
            if sequence_owner is None:  # TRL's shape: all chosen sequences, then all rejected ones
                sequence_owner = torch.arange(len(self.rewards), device=pairs.device) % max(1, len(self.rewards) // 2)
            bad = (
                torch.cat([sequence_owner[~self.rewards.isfinite()], owner[~self.losses.isfinite()]]).unique().tolist()
            )
        return bad or owner.unique().tolist()

    def named(self, row: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str]:
        """The row's number, and the text of its first sequence."""
        rows = self.batch.get("sequence_row")
        first = row if rows is None else int((rows == row).nonzero()[0])
        return None if self.numbers is None else int(self.numbers[row]), tokenizer.decode(
            sequences_of(self.batch)[first]
        )


class FiniteWatch:
    """Looks at every batch of an accumulation step; what it finds stays on the device until somebody asks."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []
        self._noted: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def start(self) -> None:
        """Forget the step before."""
        self._seen, self._noted = [], (None, None)

    def note(self, rewards: torch.Tensor, losses: torch.Tensor) -> None:
        """Rewards [N] and losses [C] of the batch that is looked at next."""
        self._noted = rewards.detach(), losses.detach()

    def look(self, loss: torch.Tensor, batch: dict[str, Any], numbers: torch.Tensor | None) -> None:
        """Look at a batch: its loss [], what was noted of it, and the numbers of its rows, where known."""
        self._seen.append(_Seen(loss.detach(), *self._noted, batch, numbers))
        self._noted = (None, None)

    def look_again(
        self, loss_of: Callable[[dict[str, Any]], torch.Tensor], changed: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        """Run each batch that gave something not finite again, changed; what comes counts if it is not finite either.

        Args:
            loss_of: Gives a batch's loss, and notes its rewards and losses.
            changed: Gives the batch to run instead; with the same rows.
        """
        for place, seen in enumerate(self._seen):
            if not seen.is_fine():
                batch = changed(seen.batch)
                again = _Seen(loss_of(batch).detach(), *self._noted, batch, seen.numbers)
                self._seen[place], self._noted = seen if again.is_fine() else again, (None, None)

    def found(self) -> torch.Tensor:
        """Whether anything was not finite, a boolean [] on the device."""
        return ~torch.stack([seen.is_fine() for seen in self._seen]).all() if self._seen else torch.tensor(False)

    def report(self, tokenizer: PreTrainedTokenizerBase, *, all_rows: bool = False) -> list[str]:
        """A line for each row that gave something not finite, the first few; or for `all_rows` of the step."""
        bad = [seen for seen in self._seen if all_rows or not seen.is_fine()]
        return rows_in_words([seen.named(row, tokenizer) for seen in bad for row in seen.rows(all_rows=all_rows)])


def rows_in_words(rows: list[tuple[int | None, str]]) -> list[str]:
    """A line for each of the first few rows, given by number and text."""
    lines = [
        f"row {'of unknown number' if number is None else number}" + (f": {_shorten(text)!r}" if text else "")
        for number, text in rows[:_NAMED_ROWS]
    ]
    return lines + ([f"and {len(rows) - _NAMED_ROWS} more"] if len(rows) > _NAMED_ROWS else [])


def _shorten(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 2]} ... {text[-_EXCERPT // 2 :]}"
