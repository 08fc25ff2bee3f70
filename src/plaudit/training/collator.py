"""Tokenised preference rows -> one padded batch: sequences, and the comparisons between them.

A batch is a dict of tensors: `input_ids` and `attention_mask` [N, L], `comparisons` [C, 2] (winner and loser as indices
into the N sequences) and, where rows have one, `margin` [C]. The trainer asks for nothing else, so a layout that runs a
sequence once for several comparisons fits in the same place.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin

__all__ = ["DataCollatorForPreference", "PreferenceCollator", "comparisons_of", "tokens_of"]


def _pad_right(sequences: list[list[int]], value: int, multiple: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [N, L] filled up with `value`, and the mask [N, L] of what is real."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    longest = int(lengths.max())
    if multiple:
        longest = -(-longest // multiple) * multiple
    input_ids = torch.full((len(sequences), longest), value, dtype=torch.long)
    for row, ids in zip(input_ids, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    attention_mask = (torch.arange(longest) < lengths[:, None]).long()
    return input_ids, attention_mask


@dataclass
class DataCollatorForPreference(DataCollatorMixin):
    """Pad a batch of pairs as TRL does: the chosen sequences, then the rejected ones.

    Rows have `chosen_ids`, `rejected_ids` and, all or none, `margin`. The batch has `input_ids` and `attention_mask` of
    shape [2 * rows, L] and, if the rows have it, `margin` of shape [rows], in float32.

    Attributes:
        pad_token_id: The id to pad with.
        pad_to_multiple_of: Make L a multiple of this.
        return_tensors: Only "pt".
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch of rows."""
        sequences = [row["chosen_ids"] for row in examples] + [row["rejected_ids"] for row in examples]
        input_ids, attention_mask = _pad_right(sequences, self.pad_token_id, self.pad_to_multiple_of)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in examples], dtype=torch.float)
        return batch


@dataclass
class PreferenceCollator(DataCollatorForPreference):
    """The trainer's own: the same batch, with its `comparisons` said."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch of rows."""
        batch = super().torch_call(examples)
        return batch | {"comparisons": comparisons_of(batch)}


def comparisons_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Winner and loser of each comparison [C, 2]; in a batch of TRL's shape, row n against row n + N / 2."""
    if "comparisons" in batch:
        return batch["comparisons"]
    input_ids = batch["input_ids"]
    pairs = input_ids.shape[0] // 2
    return torch.arange(2 * pairs, device=input_ids.device).view(2, pairs).T


def tokens_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Real tokens of each of the N sequences [N]."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]).sum(-1) if mask is None else mask.sum(-1)
