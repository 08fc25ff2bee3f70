"""Tokenised preference rows -> one batch: sequences, laid out padded or as a forest, and the comparisons between them.

A batch is a dict of tensors. What the model takes:

- padded: `input_ids` and `attention_mask` [N, L];
- forest: `input_ids`, `position_ids` and `subtree_end` [1, T], and `leaf` [N] (see `plaudit.forest.trie`).

What the loss takes: `comparisons` [C, 2], winner and loser as indices into the N sequences; `comparison_row` [C], the
row of the batch each comes from; and, where rows have them, `margin`, `label`, `tie`, `weight` and `unit` [C] each.
`sequence_row` [N] is the row of each sequence, and `sequence_rank` [N] its rank, for a loss on whole rankings.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin

from plaudit.data.rankings import comparisons_of_ranking, ties_of_ranking
from plaudit.errors import DataError
from plaudit.forest.trie import TokenForest
from plaudit.models.inputs import forest_inputs, padded_inputs

__all__ = [
    "COLUMNS",
    "DataCollatorForPreference",
    "PER_COMPARISON",
    "PreferenceCollator",
    "comparisons_of",
    "model_inputs",
    "rows_apart",
    "sequences_of",
    "tokens_of",
    "verdicts_of",
]

# The columns of tokenised rows that make a batch.
COLUMNS = ("chosen_ids", "rejected_ids", "sequence_ids", "ranks", "scores", "margin", "label", "tie", "weight")
PER_COMPARISON = ("margin", "label", "tie", "weight", "unit")
_TARGETS = {"comparisons", "comparison_row", "sequence_row", "sequence_rank", *PER_COMPARISON}


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
        batch = padded_inputs(sequences, self.pad_token_id, self.pad_to_multiple_of)
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in examples], dtype=torch.float)
        return batch


@dataclass
class _Comparisons:
    """The comparisons of a batch, as its rows are read one after the other."""

    pairs: list[tuple[int, int]] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    tie: list[bool] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    unit: list[float] = field(default_factory=list)

    def add(self, row: int, pairs: list[tuple[int, int]], *, tie: bool, margins: list[float], unit: float) -> None:
        self.pairs += pairs
        self.row += [row] * len(pairs)
        self.tie += [tie] * len(pairs)
        self.margin += margins
        self.unit += [unit] * len(pairs)


@dataclass
class PreferenceCollator(DataCollatorForPreference):
    """The trainer's own: pairs or ranked groups, in either layout, with their comparisons said.

    Attributes:
        layout: "padded" or "forest"; may change between batches.
        group_weighting: "group": the comparisons of a row count as much together as one pair; "comparison": each does.
        with_ties: Equal ranks make comparisons too, marked in `tie`.
        with_rankings: Say each sequence's row and rank.
        margin_from_scores: The difference of a group's scores is its comparisons' margin.
    """

    layout: str = "padded"
    group_weighting: str = "group"
    with_ties: bool = False
    with_rankings: bool = False
    margin_from_scores: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch of rows."""
        sequences, owners = self.sequences_and_rows(examples)
        grouped = "sequence_ids" in examples[0]
        targets = self._compare_groups(examples) if grouped else self._compare_pairs(examples)
        targets["sequence_row"] = torch.tensor(owners)
        if self.with_rankings:
            ranks = (
                [r for row in examples for r in row["ranks"]]
                if grouped
                else [n // len(examples) for n in range(len(owners))]
            )
            targets["sequence_rank"] = torch.tensor(ranks, dtype=torch.float)
        return self.lay_out(sequences, owners) | targets

    def sequences_and_rows(self, examples: list[dict[str, Any]]) -> tuple[list[Any], list[int]]:
        """The N sequences of some rows, and the number of each one's row; of pairs, all chosen ones first."""
        if "sequence_ids" in examples[0]:
            owners = [number for number, row in enumerate(examples) for _ in row["sequence_ids"]]
            return [ids for row in examples for ids in row["sequence_ids"]], owners
        sides = ("chosen_ids", "rejected_ids")
        return [row[side] for side in sides for row in examples], [*range(len(examples))] * 2

    def lay_out(self, sequences: list[Any], owners: list[int]) -> dict[str, torch.Tensor]:
        """What the model takes of N sequences, each owned by a row of the batch."""
        if self.layout == "padded":
            return padded_inputs(sequences, self.pad_token_id, self.pad_to_multiple_of)
        return forest_inputs(sequences, owners)

    def _compare_pairs(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        count = len(examples)
        targets = {"comparisons": torch.arange(2 * count).view(2, count).T, "comparison_row": torch.arange(count)}
        for name in ("margin", "label", "weight"):
            if name in examples[0]:
                targets[name] = torch.tensor([row[name] for row in examples], dtype=torch.float)
        if "tie" in examples[0]:
            if not self.with_ties and any(row["tie"] for row in examples):
                raise DataError(
                    "a row is a tie (its `tie` is true), and this loss needs a winner. Set `loss_type` to 'ties', or "
                    "leave such rows out."
                )
            targets["tie"] = torch.tensor([row["tie"] for row in examples])
        return targets

    def _compare_groups(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        found, first = _Comparisons(), 0
        for number, row in enumerate(examples):
            ids, ranks, scores = row["sequence_ids"], row["ranks"], row.get("scores")
            decided = comparisons_of_ranking(ids, ranks)
            tied = ties_of_ranking(ids, ranks) if self.with_ties else []
            unit = self._unit(ranks, len(decided) + len(tied))
            margins = [float(scores[a] - scores[b]) if self.margin_from_scores and scores else 0.0 for a, b in decided]
            for pairs, tie, values in ((decided, False, margins), (tied, True, [0.0] * len(tied))):
                shifted = [(first + winner, first + loser) for winner, loser in pairs]
                found.add(number, shifted, tie=tie, margins=values, unit=unit)
            first += len(ids)
        owners = torch.tensor(found.row)
        units = torch.tensor(found.unit, dtype=torch.float)
        weights = torch.tensor([float(example.get("weight", 1.0)) for example in examples])[owners] * units
        targets = {"comparisons": torch.tensor(found.pairs), "comparison_row": owners, "unit": units, "weight": weights}
        if self.margin_from_scores:
            targets["margin"] = torch.tensor(found.margin, dtype=torch.float)
        if self.with_ties:
            targets["tie"] = torch.tensor(found.tie)
        return targets

    def _unit(self, ranks: list[float], comparisons: int) -> float:
        """What one of a row's comparisons counts, where a pair counts 1."""
        if self.group_weighting == "group":
            return 1.0 / comparisons
        if self.with_rankings:  # a ranking is a choice at every place but the last
            return sum(rank < max(ranks) for rank in ranks) / comparisons
        return 1.0


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Of a batch, what the model takes."""
    return {name: value for name, value in batch.items() if name not in _TARGETS}


def comparisons_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Winner and loser of each comparison [C, 2]; in a batch of TRL's shape, row n against row n + N / 2."""
    if "comparisons" in batch:
        return batch["comparisons"]
    input_ids = batch["input_ids"]
    pairs = input_ids.shape[0] // 2
    return torch.arange(2 * pairs, device=input_ids.device).view(2, pairs).T


def verdicts_of(batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """For each comparison 1 where the first is better, -1 where the second is, 0 where neither; `None`: all 1."""
    verdict = batch["label"].sub(0.5).sign() if "label" in batch else None
    if "tie" not in batch:
        return verdict
    undecided = batch["tie"]
    return (~undecided).float() if verdict is None else verdict * ~undecided


def tokens_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Real tokens of each of the N sequences [N]; of a forest, as many as if none were shared."""
    if "leaf" in batch:
        return batch["position_ids"][0, batch["leaf"]] + 1
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]).sum(-1) if mask is None else mask.sum(-1)


def rows_apart(batch: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
    """A forest's batch in the padded layout, in which no sequence touches another's numbers; another as it is."""
    if "leaf" not in batch:
        return batch
    padded = padded_inputs(sequences_of(batch), pad_token_id)
    kept = {name: value for name, value in batch.items() if name not in model_inputs(batch)}
    return {name: tensor.to(batch["input_ids"].device) for name, tensor in padded.items()} | kept


def sequences_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The N sequences of a batch in either layout."""
    if "leaf" in batch:
        columns = {name: batch[name][0].cpu().numpy() for name in ("input_ids", "position_ids", "subtree_end")}
        return [ids.tolist() for ids in TokenForest(**columns, leaf=batch["leaf"].cpu().numpy()).sequences()]
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return [ids[real].tolist() for ids, real in zip(batch["input_ids"], mask, strict=True)]
