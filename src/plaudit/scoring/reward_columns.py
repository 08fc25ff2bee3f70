"""The columns of a row that are scored, and the columns of its rewards."""

from dataclasses import dataclass
from typing import Any

from plaudit.data.formats import TextOrChat, hint_about_token_ids, join_responses
from plaudit.data.reader import Row, Unreadable
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.completions import align_forms

__all__ = ["KINDS", "RewardColumns", "ScorableRow", "parse_row", "row_with_rewards"]

# The kinds of rows that can be scored, and the columns by which each is recognised.
KINDS = {
    "pair": ("chosen", "rejected"),
    "group": ("completions",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
_ACCEPTED = (
    "'chosen' and 'rejected' (with 'prompt' or without; all texts, or all lists of messages), 'prompt' and "
    "'completions', 'prompt' and 'completion', 'messages', or 'text'"
)


@dataclass(frozen=True)
class RewardColumns:
    """The options that choose the columns to score and name the columns of rewards.

    Attributes:
        kind: The kind of every row, a key of `KINDS`; each row's columns decide if `None`.
        reward_column: Name of the column of rewards; in a pair "chosen_" and "rejected_" are put before it. The column
            of standard deviations, of a model with an uncertainty, has the same name with "_std" behind it.
        best_of: Keep only the best completion of a group, in the column `completion`.
    """

    kind: str | None = None
    reward_column: str = "reward"
    best_of: bool = False

    def of_kind(self, kind: str, suffix: str = "") -> list[str]:
        """Return the names of the columns of rewards of a row of this kind; with "_std", of standard deviations."""
        sides = ("chosen_", "rejected_") if kind == "pair" else ("",)
        return [side + self.reward_column + suffix for side in sides]


@dataclass(frozen=True)
class ScorableRow:
    """A well-formed row and the K sequences in it that are scored.

    Attributes:
        number: Index of the row in the source, from 0.
        row: The row as it was read.
        kind: A key of `KINDS`.
        sequences: K whole texts or conversations, prompt included.
        names: K names of the sequences for error messages, such as "row 3, column 'chosen'".
        template_options: Keyword arguments for the chat template.
    """

    number: int
    row: Row
    kind: str
    sequences: list[TextOrChat]
    names: list[str]
    template_options: dict[str, Any]


def parse_row(row: Row | Unreadable, number: int, columns: RewardColumns, *, with_std: bool = False) -> ScorableRow:
    """Find the sequences to score in the row with index `number` of the source.

    With `with_std`, the row is to have columns of standard deviations as well.

    Raises:
        DataError: The row has nothing to score, is ambiguous, or is malformed.
        ConfigError: A column of rewards has the name of a column that the row has.
    """
    if isinstance(row, Unreadable):
        raise DataError(f"row {number}: {row.reason}")
    kind = _kind_of(row, number, columns)
    _check_new_columns(row, number, kind, columns, with_std=with_std)
    prompt, responses = row.get("prompt"), _responses_of(row, number, kind)
    if kind in ("text", "messages"):
        prompt = None
    elif kind != "pair" and prompt is not None:
        prompt, aligned = align_forms(prompt, list(responses.values()))
        responses = dict(zip(responses, aligned, strict=True))
    sequences, options = join_responses(row | {"prompt": prompt}, responses, number)
    names = [f"row {number}, column '{name}'" for name in responses]
    return ScorableRow(number, row, kind, sequences, names, options)


def row_with_rewards(
    scorable: ScorableRow, rewards: list[float], columns: RewardColumns, stds: list[float] | None = None
) -> Row:
    """Return the row with its rewards [K] and, of a model with an uncertainty, their standard deviations [K].

    The new columns stand behind the row's own. With `best_of`, the completion with the greatest reward (the first of
    equals) replaces the column `completions`.
    """
    row, kind = scorable.row, scorable.kind
    added = [(columns.of_kind(kind), rewards)] + ([] if stds is None else [(columns.of_kind(kind, "_std"), stds)])
    if columns.best_of:
        best = max(range(len(rewards)), key=rewards.__getitem__)
        rest = {name: value for name, value in row.items() if name != "completions"}
        return rest | {"completion": row["completions"][best]} | {names[0]: values[best] for names, values in added}
    if kind == "group":
        return row | {names[0]: values for names, values in added}
    return row | {name: value for names, values in added for name, value in zip(names, values, strict=True)}


def _kind_of(row: Row, number: int, columns: RewardColumns) -> str:
    kinds = [kind for kind, needed in KINDS.items() if all(row.get(column) is not None for column in needed)]
    if columns.kind is not None:
        kinds = [kind for kind in kinds if kind == columns.kind]
    if len(kinds) > 1:
        raise DataError(
            f"row {number}: expected one thing to score, got {', '.join(kinds)}. Choose with --kind {kinds[0]}, for "
            "instance."
        )
    if not kinds:
        expected = ", ".join(f"'{column}'" for column in KINDS[columns.kind]) if columns.kind else _ACCEPTED
        filled = sorted(name for name, value in row.items() if value is not None)
        raise DataError(
            f"row {number}: expected {expected}; the row has values in {', '.join(map(repr, filled))}. "
            f"{hint_about_token_ids(row)}If other rows have them, complete or remove this one; else rename your "
            "columns."
        )
    if columns.best_of and kinds != ["group"]:
        raise DataError(f"row {number}: --best_of expected a group ('completions'), got a row of kind {kinds[0]}")
    return kinds[0]


def _check_new_columns(row: Row, number: int, kind: str, columns: RewardColumns, *, with_std: bool) -> None:
    names = columns.of_kind(kind) + (columns.of_kind(kind, "_std") if with_std else [])
    for name in [*names, *(["completion"] if columns.best_of else [])]:
        if row.get(name) is not None:
            raise ConfigError(
                f"row {number} has a column '{name}' already. Rename that column, or the rewards with --reward_column."
            )


def _responses_of(row: Row, number: int, kind: str) -> dict[str, Any]:
    """Return the responses to score by their place in the row, such as "chosen" or "completions[0]"."""
    if kind == "pair":
        return {name: row[name] for name in KINDS["pair"]}
    if kind != "group":
        return {KINDS[kind][-1]: row[KINDS[kind][-1]]}
    completions = row["completions"]
    if not isinstance(completions, list) or not completions:
        raise DataError(f"row {number}, column 'completions': expected one or more in a list, got {completions!r:.80}")
    return {f"completions[{place}]": completion for place, completion in enumerate(completions)}
