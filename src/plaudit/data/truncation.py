"""Overlong sequences: those of one row are cut at a shared start, or dropped, to keep within `max_length`."""

from collections.abc import Container

from plaudit.data.prompts import common_prefix
from plaudit.data.tokenization_report import TokenizationRules
from plaudit.errors import DataError

__all__ = ["apply_max_length", "cut_left"]


def apply_max_length(
    sequences: list[list[int]], rules: TokenizationRules, index: int, leading: Container[int | None]
) -> dict[int, list[int]]:
    """Apply the overlong policy to the K sequences of row `index`, and return those kept by their index in the row.

    A cut is made only in the prefix that all sequences share, by the same number of ids in all, right behind a special
    token in `leading` (BOS and the like). It never takes the last id of a sequence, since the reward is read there. A
    sequence that needs a deeper cut would lose the start of its response, and is dropped.

    Raises:
        DataError: A sequence is too long and the policy is "error".
    """
    longest = max(map(len, sequences))
    if rules.max_length is None or longest <= rules.max_length:
        return dict(enumerate(sequences))
    if rules.overlong == "error":
        raise DataError(
            f"row {index}: its longest sequence has {longest:,} tokens, more than max_length={rules.max_length}. "
            f"Raise `max_length`, or set `overlong` to 'drop' or 'truncate'."
        )
    spared = int(sequences[0][0] in leading)
    room = 0
    if rules.overlong == "truncate":
        room = max(0, min(common_prefix(sequences), min(map(len, sequences)) - 1) - spared)
    excess = {place: len(ids) - rules.max_length for place, ids in enumerate(sequences)}
    kept = [place for place in excess if excess[place] <= room]
    cut = max([0, *(excess[place] for place in kept)])
    return {place: sequences[place][:spared] + sequences[place][spared + cut :] for place in kept}


def cut_left(ids: list[int], max_length: int, leading: Container[int | None]) -> list[int]:
    """Return the last `max_length` ids of a sequence, behind its first one where that is in `leading` (BOS, CLS)."""
    front = ids[:1] if ids[0] in leading else []
    return front + ids[len(ids) - max_length + len(front) :]
