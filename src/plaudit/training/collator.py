"""Collators: tokenised preference rows to one batch, padded or as a token forest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import DataCollatorMixin

from plaudit.errors import DataError
from plaudit.models.inputs import forest_inputs, padded_inputs
from plaudit.training.batch import Batch
from plaudit.training.config import RewardConfig

__all__ = ["DataCollatorForPreference", "PreferenceCollator", "make_collator"]

Row = dict[str, Any]


@dataclass
class DataCollatorForPreference(DataCollatorMixin):
    """Pad a batch of pairs as TRL does: the chosen sequences, then the rejected ones.

    Rows have `chosen_ids`, `rejected_ids` and, all or none, `margin`. The batch is a dict with `input_ids` and
    `attention_mask` of shape [2 * rows, L] and, if the rows have it, `margin` of shape [rows], in float32.

    Attributes:
        pad_token_id: The id to pad with.
        pad_to_multiple_of: Make L a multiple of this.
        return_tensors: Only "pt".
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[Row]) -> dict[str, torch.Tensor]:
        """Make one batch of rows."""
        sequences = [row["chosen_ids"] for row in examples] + [row["rejected_ids"] for row in examples]
        batch = padded_inputs(sequences, self.pad_token_id, self.pad_to_multiple_of)
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in examples], dtype=torch.float)
        return batch


@dataclass
class PreferenceCollator:
    """Make a `Batch` of pairs or of ranked groups; the trainer's own collator.

    Attributes:
        pad_token_id: The id to pad with.
        pad_to_multiple_of: Make the length of a padded batch a multiple of this.
        layout: "padded" or "forest"; may change between batches.
        group_weighting: "group": all comparisons of a row together count as much as one pair; "comparison": each does.
        with_ties: Make comparisons of responses of equal rank too, marked in `tie`.
        with_rankings: Say the rank of each sequence in its row.
        margin_from_scores: Take the difference of a group's scores for the margin of a comparison.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    layout: str = "padded"
    group_weighting: str = "group"
    with_ties: bool = False
    with_rankings: bool = False
    margin_from_scores: bool = False

    def __call__(self, rows: list[Row]) -> Batch:
        """Make one batch of rows, all pairs or all groups.

        Raises:
            DataError: A pair is a tie, and the loss needs a winner.
        """
        sequences, sequence_row = self.sequences(rows)
        grouped = "sequence_ids" in rows[0]
        comparisons = self._compare_groups(rows) if grouped else self._compare_pairs(rows)
        if self.with_rankings:
            ranks = [r for row in rows for r in row["ranks"]] if grouped else [0] * len(rows) + [1] * len(rows)
            comparisons["sequence_rank"] = torch.tensor(ranks, dtype=torch.float)
        inputs = self.model_inputs(sequences, sequence_row)
        return Batch(inputs, sequence_row=torch.tensor(sequence_row), **comparisons)

    def sequences(self, rows: list[Row]) -> tuple[list[Any], list[int]]:
        """Return the N sequences of some rows and the number of the row of each; of pairs, all chosen ones first."""
        if "sequence_ids" in rows[0]:
            owners = [number for number, row in enumerate(rows) for _ in row["sequence_ids"]]
            return [ids for row in rows for ids in row["sequence_ids"]], owners
        sides = ("chosen_ids", "rejected_ids")
        return [row[side] for side in sides for row in rows], [*range(len(rows))] * 2

    def model_inputs(self, sequences: Sequence[Any], sequence_row: Sequence[int]) -> dict[str, torch.Tensor]:
        """Lay out N sequences for the model's forward, given the row of each."""
        if self.layout == "padded":
            return padded_inputs(sequences, self.pad_token_id, self.pad_to_multiple_of)
        return forest_inputs(sequences, sequence_row)

    def _compare_pairs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        number = torch.arange(len(rows))
        found = {"comparisons": torch.stack([number, number + len(rows)], dim=1), "comparison_row": number}
        for name in ("margin", "label", "weight"):
            if name in rows[0]:
                found[name] = torch.tensor([row[name] for row in rows], dtype=torch.float)
        if "tie" in rows[0]:
            if not self.with_ties and any(row["tie"] for row in rows):
                raise DataError(
                    "a row is a tie (its `tie` is true), and this loss needs a winner. Set `loss_type` to 'ties', or "
                    "leave such rows out."
                )
            found["tie"] = torch.tensor([row["tie"] for row in rows])
        return found

    def _compare_groups(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        pairs: list[list[int]] = []
        owners, ties, margins, units = [], [], [], []
        first = 0
        for number, row in enumerate(rows):
            decided, tied = row["comparisons"], row["ties"] if self.with_ties else []
            own = [*decided, *tied]
            pairs += [[first + better, first + worse] for better, worse in own]
            owners += [number] * len(own)
            ties += [False] * len(decided) + [True] * len(tied)
            units += [self._unit(row["ranks"], len(own))] * len(own)
            scores = row.get("scores") if self.margin_from_scores else None
            margins += [scores[better] - scores[worse] if scores else 0.0 for better, worse in own]
            first += len(row["sequence_ids"])
        found = {
            "comparisons": torch.tensor(pairs),
            "comparison_row": torch.tensor(owners),
            "unit": torch.tensor(units, dtype=torch.float),
        }
        if "weight" in rows[0]:
            found["weight"] = torch.tensor([float(rows[number]["weight"]) for number in owners])
        if self.margin_from_scores:
            found["margin"] = torch.tensor(margins, dtype=torch.float)
        if self.with_ties:
            found["tie"] = torch.tensor(ties)
        return found

    def _unit(self, ranks: list[float], comparisons: int) -> float:
        """Return the contribution of one comparison of a row to the divisor of the loss, where a pair's is 1."""
        if self.group_weighting == "group":
            return 1.0 / comparisons
        if self.with_rankings:  # a ranking is a choice at every place but the last
            return sum(rank < max(ranks) for rank in ranks) / comparisons
        return 1.0


def make_collator(args: RewardConfig, tokenizer: PreTrainedTokenizerBase, layout: str) -> PreferenceCollator:
    """Make the collator that the options of a run ask for."""
    return PreferenceCollator(
        tokenizer.pad_token_id,
        args.pad_to_multiple_of,  # type: ignore[arg-type]  # a number by now
        layout=layout,
        group_weighting=args.group_weighting,
        with_ties=args.loss_type == "ties",
        with_rankings=args.loss_type == "plackett_luce",
        margin_from_scores=args.margin_from_scores,
    )
