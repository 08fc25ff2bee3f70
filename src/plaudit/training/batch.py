"""A batch of tokenised preference rows: the inputs of the model, and the comparisons that the loss is made of."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

__all__ = ["Batch"]

# Columns that a collator in TRL's shape may put beside the inputs of the model, one value for each comparison.
_ANNOTATIONS = ("margin", "label", "tie", "weight")


@dataclass(frozen=True, eq=False)
class Batch:
    """N sequences of R rows, laid out for the model, and C comparisons between them.

    A batch can be used like the dict that TRL's collator makes: `batch["input_ids"]`, `"margin" in batch`,
    `batch["use_cache"] = False` and `model(**batch)` see the inputs of the model and the annotations of the rows.

    A pair of weight 2 has `weight` 2, no `unit`, which counts as 1, and `share` 2. In a ranked group of three responses
    and weight 2, each of the three comparisons has `weight` 2, `unit` 1/3 (with `group_weighting="group"`) and `share`
    2/3.

    Attributes:
        model_inputs: The arguments of the model's forward by name. Padded: `input_ids` and `attention_mask` [N, L]. As
            a forest: `input_ids`, `position_ids` and `subtree_end` [1, T], and `leaf` [N] (`plaudit.forest.trie`).
        comparisons: The better and the worse sequence of each comparison, as indices below N, shape [C, 2].
        comparison_row: The row of the batch that each comparison comes from, ascending, shape [C].
        sequence_row: The row of the batch that each sequence belongs to, shape [N].
        sequence_rank: The rank of each sequence in its row, 0 for the best, shape [N]; for losses on whole rankings.
        margin: The margin of each comparison, shape [C].
        label: The probability that the first sequence of a comparison is preferred, shape [C].
        tie: True where the annotators call both sequences equal, shape [C].
        weight: The weight of the row of each comparison, shape [C].
        unit: The contribution of each comparison to the divisor of the mean loss, where a pair contributes 1, shape
            [C].
        row_number: The index of each row in the dataset that it comes from, shape [R].
        prompt_key: A number for each row that rows of the same prompt share, shape [R].
        member_weight: The weight of each row for each member of an ensemble, shape [R, K].
    """

    model_inputs: dict[str, torch.Tensor]
    comparisons: torch.Tensor
    comparison_row: torch.Tensor
    sequence_row: torch.Tensor
    sequence_rank: torch.Tensor | None = None
    margin: torch.Tensor | None = None
    label: torch.Tensor | None = None
    tie: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    unit: torch.Tensor | None = None
    row_number: torch.Tensor | None = None
    prompt_key: torch.Tensor | None = None
    member_weight: torch.Tensor | None = None

    @classmethod
    def of(cls, inputs: "Batch | Mapping[str, Any]") -> "Batch":
        """Return a batch as it is, or make one of a dict in TRL's shape.

        In TRL's shape the first N / 2 sequences are the chosen ones and the others the rejected ones in the same order;
        `margin`, `label`, `tie` and `weight` have one value for each pair; all else goes to the model.
        """
        if isinstance(inputs, Batch):
            return inputs
        annotations = {name: inputs[name] for name in _ANNOTATIONS if name in inputs}
        model_inputs = {name: value for name, value in inputs.items() if name not in _ANNOTATIONS}
        ids = model_inputs["input_ids"]
        rows = torch.arange(len(ids) // 2, device=ids.device)
        comparisons = torch.stack([rows, rows + len(rows)], dim=1)
        return cls(model_inputs, comparisons, rows, torch.cat([rows, rows]), **annotations)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch with all tensors on a device; the host does not wait for those that it has pinned."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=non_blocking or tensor.is_pinned()))

    def pin_memory(self) -> "Batch":
        """Return the batch with all tensors in pinned memory, for a loader with `pin_memory`."""
        return self._apply(torch.Tensor.pin_memory)

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        def applied(value: Any) -> Any:
            return function(value) if isinstance(value, torch.Tensor) else value

        values = {each.name: applied(getattr(self, each.name)) for each in fields(self)}
        return replace(
            self, **values | {"model_inputs": {name: applied(each) for name, each in self.model_inputs.items()}}
        )

    # Figures of the batch

    @property
    def divisor(self) -> torch.Tensor | int:
        """The number that the sum of the losses is divided by for their mean: comparisons, in units of a pair."""
        return len(self.comparisons) if self.unit is None else self.unit.sum()

    @property
    def loss_weight(self) -> torch.Tensor | None:
        """The factor of each comparison in the sum of the losses, shape [C]; `None` where all count 1."""
        factors = [each for each in (self.weight, self.unit) if each is not None]
        return None if not factors else factors[0] if len(factors) == 1 else factors[0] * factors[1]

    @property
    def preference(self) -> torch.Tensor:
        """The probability that the first sequence of a comparison is preferred, one half for a tie, shape [C]."""
        label = torch.ones(len(self.comparisons), device=self.comparisons.device) if self.label is None else self.label
        return label if self.tie is None else label.masked_fill(self.tie, 0.5)

    @property
    def share(self) -> torch.Tensor:
        """The weight of each comparison in accuracy and the other figures, shape [C].

        The comparisons of a row share the weight of their row, so that a ranked group counts as much as one pair.
        """
        row = self.comparison_row
        share = 1 / (torch.searchsorted(row, row, right=True) - torch.searchsorted(row, row))  # ascending
        return share if self.weight is None else share * self.weight

    @property
    def tokens(self) -> torch.Tensor:
        """The number of real tokens of each sequence, as if none were shared, shape [N]."""
        inputs = self.model_inputs
        if "leaf" in inputs:
            return inputs["position_ids"][0, inputs["leaf"]] + 1
        mask = inputs.get("attention_mask")
        return torch.ones_like(inputs["input_ids"]).sum(-1) if mask is None else mask.sum(-1)

    def sequence(self, number: int) -> list[int]:
        """Return the token ids of one of the N sequences, without padding."""
        inputs = self.model_inputs
        if "leaf" in inputs:
            leaf, places = (
                inputs["leaf"][number],
                torch.arange(inputs["input_ids"].shape[1], device=inputs["leaf"].device),
            )
            on_path = (places <= leaf) & (leaf < inputs["subtree_end"][0])  # its ancestors, and the leaf itself
            return inputs["input_ids"][0, on_path].tolist()
        ids, mask = inputs["input_ids"][number], inputs.get("attention_mask")
        return ids.tolist() if mask is None else ids[mask[number].bool()].tolist()

    # The batch as the dict that TRL's collator makes

    def keys(self) -> list[str]:
        """Return the names of the model's inputs and of the annotations that the rows have."""
        return [*self.model_inputs, *(name for name in _ANNOTATIONS if getattr(self, name) is not None)]

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return self.model_inputs[name] if name in self.model_inputs else getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name in _ANNOTATIONS:
            object.__setattr__(self, name, value)
        else:
            self.model_inputs[name] = value

    def __delitem__(self, name: str) -> None:
        if name in self.model_inputs:
            del self.model_inputs[name]
        else:
            self[name] = None

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    # Not a subclass: transformers rebuilds every Mapping from its items, which do not hold the comparisons.
    __contains__, get, items, values = Mapping.__contains__, Mapping.get, Mapping.items, Mapping.values
    pop, update, setdefault = MutableMapping.pop, MutableMapping.update, MutableMapping.setdefault
