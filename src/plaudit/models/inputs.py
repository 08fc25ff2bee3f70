"""The inputs of a model: N sequences of token ids, padded or laid out as one forest."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from plaudit.forest.trie import TokenForest

__all__ = ["forest_inputs", "padded_inputs"]


def padded_inputs(sequences: Sequence[Any], pad: int, multiple: int | None = None) -> dict[str, torch.Tensor]:
    """Pad N sequences on the right.

    Args:
        sequences: N lists of one or more token ids.
        pad: The token id to pad with.
        multiple: Round the padded length L up to a multiple of this.

    Returns:
        `input_ids` and `attention_mask`, each [N, L].
    """
    lengths = torch.tensor([len(ids) for ids in sequences])
    longest = int(lengths.max())
    if multiple:
        longest = -(-longest // multiple) * multiple
    input_ids = torch.full((len(sequences), longest), pad, dtype=torch.long)
    for row, ids in zip(input_ids, sequences, strict=True):
        row[: len(ids)] = torch.as_tensor(ids, dtype=torch.long)
    return {"input_ids": input_ids, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


def forest_inputs(sequences: Sequence[Any], rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """Lay N sequences out as one forest.

    Args:
        sequences: N lists of one or more token ids.
        rows: The row that each sequence belongs to [N]; sequences of one row share every common prefix.

    Returns:
        `input_ids`, `position_ids` and `subtree_end`, each [1, T], and `leaf` [N]; see `plaudit.forest.trie`.
    """
    forest = TokenForest.from_sequences(sequences, rows)
    names = {name: getattr(forest, name)[None] for name in ("input_ids", "position_ids", "subtree_end")}
    return {
        name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in (names | {"leaf": forest.leaf}).items()
    }
