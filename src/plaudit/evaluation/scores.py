"""Scores: the rewards of a dataset's rows with everything that figures are made from, and without their texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.data.prompts import prompt_key
from plaudit.errors import DataError
from plaudit.evaluation.preference_data import Comparisons, PreferenceData
from plaudit.scoring.completions import count_characters
from plaudit.uncertainty import checked_uncertainty, uncertainty_from_dict

__all__ = ["ScoredRow", "Scores", "scored_rows"]


@dataclass(frozen=True)
class ScoredRow:
    """One row of a dataset with its K rewards.

    Attributes:
        row: Number of the row in its dataset, from 0.
        rewards: K rewards, finite; of a pair, that of the chosen response first.
        id: The column `id` of the row, if it has one.
        prompt_key: A number that rows of one prompt share; `None` for a prompt that no other row has.
        row_key: A number that rows of the same texts share, by which a row is found again in other data.
        subset: The column `subset` of the row, if it has one.
        comparisons: Pairs (better, worse) of indices among the K responses.
        label: Probability that people prefer the better response of a comparison, from 1/2 to 1.
        weight: How many times the row counts; its comparisons share the weight equally.
        ties: Number of tied pairs, which make no comparison.
        identical: Number of pairs of equal responses, which make no comparison either.
        characters: K lengths in characters, prompt included.
        tokens: K lengths in tokens, as they were scored.
        truncated: K flags: the sequence had more tokens than the model takes, and was cut.
        members: Of a model with members, K lists of the members' raw rewards of each response.
        stds: Of a model with a posterior, the K standard deviations of the rewards.
        gold: K values of the dataset's column `scores`, which annotators gave and not the model; greater is better.
        fields: The columns of a benchmark's row that its rule reads.
    """

    row: int
    rewards: list[float]
    id: str | None = None
    prompt_key: int | None = None
    row_key: int | None = None
    subset: str | None = None
    comparisons: list[tuple[int, int]] = field(default_factory=lambda: [(0, 1)])
    label: float = 1.0
    weight: float = 1.0
    ties: int = 0
    identical: int = 0
    characters: list[int] | None = None
    tokens: list[int] | None = None
    truncated: list[bool] | None = None
    members: list[list[float]] | None = None
    stds: list[float] | None = None
    gold: list[float] | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> int:
        """The key of the prompt, also of one that no other row has."""
        return -1 - self.row if self.prompt_key is None else self.prompt_key  # keys are never negative


@dataclass(frozen=True)
class Scores:
    """The rewards of one model on one dataset.

    Attributes:
        header: `model`, `fingerprint`, `dtype`, `attention`, `layout`, `quantization`, `chat_template`, `bos`, `eos`,
            `max_length`, `versions`, `uncertainty`, `dataset` (`path`, `split`, `config`, `format`, `rows`, `hash`) and
            `benchmark`; a property that is not known is `None` or not there.
        rows: The rows in the order of the dataset, R.
    """

    header: dict[str, Any]
    rows: list[ScoredRow]

    @property
    def name(self) -> str:
        """The model and the dataset, for a table."""
        dataset = self.header.get("benchmark") or (self.header.get("dataset") or {}).get("path")
        return " on ".join(str(part) for part in (self.header.get("model"), dataset) if part) or "scores"

    @cached_property
    def rewards(self) -> NDArray[np.float64]:
        """All rewards, row after row, shape [N]."""
        return np.array([reward for row in self.rows for reward in row.rewards], dtype=np.float64)

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """All lengths in characters, shape [N]; NaN where they are not known."""
        lengths: list[float] = []
        for row in self.rows:
            lengths += [math.nan] * len(row.rewards) if row.characters is None else row.characters
        return np.array(lengths, dtype=np.float64)

    @cached_property
    def margins(self) -> NDArray[np.float64]:
        """The better response's reward minus the other's, shape [C]."""
        return self.rewards[self.comparisons.better] - self.rewards[self.comparisons.worse]

    @cached_property
    def members(self) -> NDArray[np.float64] | None:
        """The raw rewards of the M members for all responses, shape [N, M]; `None` where a row has none."""
        of_rows = [row.members for row in self.rows if row.members is not None]
        return np.concatenate(of_rows).astype(np.float64) if 0 < len(of_rows) == len(self.rows) else None

    @cached_property
    def member_differences(self) -> NDArray[np.float64] | None:
        """The members' rewards of the better minus those of the other responses, shape [C, M]; `None` as for `members`.

        Each member is scaled by its constant in the header, so that all are in the unit of the model's reward; samples
        of one head, which have no such constants, are in that unit already.
        """
        if self.members is None:
            return None
        constants = self.header["uncertainty"]
        scale = constants["reward_std"] / np.array(constants["scales"]) if "scales" in constants else 1.0
        return (self.members[self.comparisons.better] - self.members[self.comparisons.worse]) * scale

    def aggregate(self, how: str, k: float = 1.0) -> list[NDArray[np.float64]]:
        """Return the rewards of each row, or a conservative reward made of its members (`plaudit.uncertainty`).

        Args:
            how: One of `plaudit.uncertainty.AGGREGATES`.
            k: The weight of the standard deviation or variance.

        Raises:
            ConfigError: There is no such aggregate, or the model has no members.
        """
        constants = self.header.get("uncertainty") if self.members is not None else None
        uncertainty = None if constants is None else uncertainty_from_dict(constants)
        checked_uncertainty(uncertainty, self.name, how, k)
        rewards = self.rewards
        if uncertainty is not None and self.members is not None and how != "mean":
            stds = [std for row in self.rows for std in row.stds or ()]  # of a posterior
            beside = [rewards, np.array(stds)] if stds else [rewards]
            rewards = uncertainty.aggregate(np.column_stack([*beside, self.members]), how, k).astype(np.float64)
        return np.split(rewards, np.cumsum([len(row.rewards) for row in self.rows])[:-1])

    @cached_property
    def comparisons(self) -> Comparisons:
        """The comparisons of all rows; `better` and `worse` are indices into `rewards`.

        Raises:
            DataError: No row makes a comparison.
        """
        columns: list[tuple[int, int, float, float, int, int]] = []
        start = 0
        for index, row in enumerate(self.rows):
            if row.weight > 0:
                share = row.weight / max(len(row.comparisons), 1)
                columns += [(start + a, start + b, row.label, share, row.prompt, index) for a, b in row.comparisons]
            start += len(row.rewards)
        if not columns:
            raise DataError(f"expected rows with a preference to evaluate on, got none in {len(self.rows)} rows")
        better, worse, labels, weights, prompts, rows_of = (np.array(column) for column in zip(*columns, strict=True))
        return Comparisons(
            better, worse, labels, weights, prompts, rows_of,
            subsets=[row.subset for row in self.rows],
            ties=np.array([row.ties for row in self.rows]),
            identical=np.array([row.identical for row in self.rows]),
        )  # fmt: skip


def scored_rows(
    data: PreferenceData,
    rewards: Sequence[float] | NDArray[np.float64],
    tokens: Sequence[int] | None = None,
    truncated: Sequence[bool] | None = None,
    members: NDArray[np.float64] | None = None,
    stds: NDArray[np.float64] | None = None,
) -> list[ScoredRow]:
    """Return the rows of read preferences with the rewards of their responses.

    Args:
        data: The preferences of R rows, with N responses.
        rewards: N rewards.
        tokens: N lengths in tokens, if they are known.
        truncated: N flags for sequences that were cut, if they are known.
        members: Raw rewards of the members of the model, shape [N, M], if it has any.
        stds: Standard deviations of the rewards, shape [N], of a model with a posterior.
    """
    local: list[list[tuple[int, int]]] = [[] for _ in data.subsets]
    labels, weights = [1.0] * len(local), [0.0] * len(local)
    columns = (data.rows, data.better, data.worse, data.labels, data.weights)
    for row, better, worse, label, weight in zip(*(column.tolist() for column in columns), strict=True):
        start = int(data.first_responses[row])
        local[row].append((better - start, worse - start))
        labels[row], weights[row] = label, weights[row] + weight
    bounds = data.first_responses.tolist()
    slices = [slice(start, end) for start, end in pairwise(bounds)]

    def part(values: Any, at: slice) -> Any:
        return None if values is None else np.asarray(values[at]).tolist()

    return [
        ScoredRow(
            row=number,
            rewards=np.asarray(rewards[at], dtype=np.float64).tolist(),
            id=data.ids[number],
            prompt_key=data.prompt_keys[number],
            row_key=prompt_key(data.sequences[at]),
            subset=data.subsets[number],
            comparisons=local[number],
            label=labels[number],
            weight=weights[number] if local[number] else 1.0,
            ties=int(data.ties[number]),
            identical=int(data.identical[number]),
            characters=[count_characters(each) for each in data.sequences[at]],
            tokens=part(tokens, at),
            truncated=part(truncated, at),
            members=part(members, at),
            stds=part(stds, at),
            gold=data.scores[number],
        )
        for number, at in enumerate(slices)
    ]
