"""Poisson weights, by which each member of an ensemble trains on a bootstrap sample of the prompts of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plaudit.errors import ConfigError
from plaudit.training.batch import Batch

__all__ = ["WithMemberWeights", "member_weights"]


def member_weights(prompt_keys: list[int], members: int, seed: int) -> NDArray[np.float32]:
    """Return the weight of each row for each member, drawn from the Poisson distribution of mean 1.

    A row's weight for a member is the number of times that the row is in a bootstrap sample of many rows (N. Oza and S.
    Russell, "Online bagging and boosting", AISTATS 2001). The weights of a row follow from the key of its prompt and
    the seed alone: the rows of a prompt go together, and the weights are the same in each epoch, after a resume and on
    any number of processes.

    Args:
        prompt_keys: A whole number for each row that rows of the same prompt share, length R.
        members: K.
        seed: Seed of the draws.

    Returns:
        The weights, shape [R, K].

    Example:
        >>> weights = member_weights([7, 3, 7], members=4, seed=0)
        >>> weights.shape, bool((weights[0] == weights[2]).all())
        ((3, 4), True)
    """
    rows = [np.random.default_rng([seed, key % 2**64]).poisson(1.0, members) for key in prompt_keys]
    return np.array(rows, dtype=np.float32).reshape(-1, members)


@dataclass(frozen=True)
class WithMemberWeights:
    """The collate function of a training loader, with the weights of the members added to its batches.

    Attributes:
        collate: Makes a `Batch` of tokenised rows.
        members: K.
        seed: Seed of the draws.
    """

    collate: Callable[[list[dict[str, Any]]], Batch]
    members: int
    seed: int

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Make a batch of rows with `member_weight` [R, K].

        Raises:
            ConfigError: The rows do not say which prompt they are of.
        """
        if "prompt_key" not in rows[0]:
            raise ConfigError(
                "num_heads: expected the column `prompt_key` in the tokenised rows, by which each head gets a sample "
                "of the prompts. Pass rows that are not tokenised, or add the column."
            )
        weights = member_weights([row["prompt_key"] for row in rows], self.members, self.seed)
        return replace(self.collate(rows), member_weight=torch.from_numpy(weights))
