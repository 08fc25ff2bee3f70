"""The sequences of one row within `max_length`, and how many of its comparisons are left. Token ids only."""

from dataclasses import dataclass
from itertools import pairwise

from plaudit.data.tokenization_report import TokenizationRules
from plaudit.errors import DataError

__all__ = ["Fitted", "common_start", "fit"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left of one row.

    Attributes:
        sequences: Those that fit; none where no comparison is left.
        places: Where they were in the row.
        kept: Comparisons that are left.
        overlong: Comparisons that went with a sequence that does not fit.
        identical: Comparisons between equal ids.
    """

    sequences: list[list[int]]
    places: list[int]
    kept: int
    overlong: int
    identical: int


def fit(
    sequences: list[list[int]],
    comparisons: list[tuple[int, int]],
    rules: TokenizationRules,
    index: int,
    front: set[int | None],
) -> Fitted:
    """Apply the overlong policy to a row and count what becomes of its comparisons.

    Args:
        sequences: The ids of its sequences.
        comparisons: Which two of them the row compares.
        rules: The policy.
        index: The row's number, for messages.
        front: Ids that stay in front whatever is cut: BOS and the like.

    Raises:
        DataError: A sequence is too long and the policy is "error".
    """
    fitting = _within(sequences, rules, index, kept=int(sequences[0][0] in front))
    left = [(one, two) for one, two in comparisons if one in fitting and two in fitting]
    kept = sum(fitting[one] != fitting[two] for one, two in left)
    if not kept:
        fitting = {}
    return Fitted(list(fitting.values()), list(fitting), kept, len(comparisons) - len(left), len(left) - kept)


def _within(sequences: list[list[int]], rules: TokenizationRules, index: int, *, kept: int) -> dict[int, list[int]]:
    """The sequences that can be brought within `max_length`, by their place in the row.

    Only what all of them begin with is ever cut, and by the same number of ids from all, right behind the first `kept`.
    """
    longest = max(map(len, sequences))
    if rules.max_length is None or longest <= rules.max_length:
        return dict(enumerate(sequences))
    if rules.overlong == "error":
        raise DataError(
            f"row {index}: its longest sequence has {longest:,} tokens, more than max_length={rules.max_length}. "
            f"Raise `max_length`, or set `overlong` to 'drop' or 'truncate'."
        )
    # The last id of each stays, since the reward is read there.
    spare = min(common_start(sequences), min(map(len, sequences)) - 1) - kept if rules.overlong == "truncate" else 0
    excess = {place: len(ids) - rules.max_length for place, ids in enumerate(sequences)}
    # What needs a deeper cut would lose the beginning of its response: better without it.
    fitting = [place for place in excess if excess[place] <= max(spare, 0)]
    cut = max((excess[place] for place in fitting), default=0)
    return {
        place: sequences[place] if cut <= 0 else sequences[place][:kept] + sequences[place][kept + cut :]
        for place in fitting
    }


def common_start(sequences: list[list[int]]) -> int:
    """How many ids all of them begin with."""
    shortest = min(map(len, sequences))
    return next((n for n in range(shortest) if any(one[n] != two[n] for one, two in pairwise(sequences))), shortest)
