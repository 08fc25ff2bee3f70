"""A batch: what the loss and the figures read of it, and that it reads like the dict of TRL's collator."""

import pytest
import torch

from plaudit import DataCollatorForPreference
from plaudit.training.batch import Batch
from plaudit.training.collator import PreferenceCollator

ROWS = [
    {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 5], "margin": 0.5},
    {"chosen_ids": [6], "rejected_ids": [7, 8, 9, 10], "margin": -1.0},
]
GROUP = {
    "sequence_ids": [[1, 2], [1, 3], [1, 4]],
    "ranks": [0.0, 1.0, 2.0],
    "comparisons": [[0, 1], [0, 2], [1, 2]],
    "weight": 6.0,
}
PAIR = {"sequence_ids": [[6, 7], [6, 8]], "ranks": [0.0, 1.0], "comparisons": [[0, 1]], "weight": 3.0}


def collate(rows, layout="padded", **options):
    return PreferenceCollator(pad_token_id=0, layout=layout, **options)(rows)


def test_a_dict_in_trls_shape_compares_its_first_half_with_its_second():
    inputs = {"input_ids": torch.zeros(6, 1, dtype=torch.long), "token_type_ids": torch.zeros(6, 1)}
    batch = Batch.of(inputs | {"margin": torch.ones(3)})
    assert batch.comparisons.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert batch.comparison_row.tolist() == [0, 1, 2]
    assert batch.sequence_row.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.model_inputs.keys() == inputs.keys()
    assert batch.margin.tolist() == [1, 1, 1]


def test_a_batch_of_a_batch_is_itself():
    batch = collate(ROWS)
    assert Batch.of(batch) is batch


def test_of_the_plain_collators_dict_comes_the_batch_of_the_trainers_own_collator():
    first, second = collate(ROWS), Batch.of(DataCollatorForPreference(pad_token_id=0)(ROWS))
    for name in ("comparisons", "comparison_row", "sequence_row", "margin"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert all(torch.equal(first.model_inputs[name], second.model_inputs[name]) for name in first.model_inputs)


@pytest.mark.parametrize("layout", ["padded", "forest"])
def test_a_batch_reads_like_a_dict_of_inputs_and_annotations(layout):
    batch = collate(ROWS, layout)
    assert list(batch) == [*batch.model_inputs, "margin"]
    assert len(batch) == len(batch.model_inputs) + 1
    assert batch["input_ids"] is batch.model_inputs["input_ids"]
    assert "margin" in batch
    assert "comparisons" not in batch
    assert {**batch}.keys() == set(batch)
    with pytest.raises(KeyError, match="label"):
        batch["label"]


@pytest.mark.parametrize("layout", ["padded", "forest"])
def test_every_tensor_moves(layout):
    batch = collate([GROUP, PAIR], layout).to("meta")
    tensors = [*batch.model_inputs.values(), batch.comparisons, batch.weight, batch.unit, batch.sequence_row]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.margin is None


@pytest.mark.parametrize("layout", ["padded", "forest"])
def test_sequences_and_their_tokens_are_those_of_the_rows(layout):
    batch = collate(ROWS, layout)
    sequences = [[1, 2, 3], [6], [1, 5], [7, 8, 9, 10]]
    assert [batch.sequence(number) for number in range(4)] == sequences
    assert batch.tokens.tolist() == [3, 1, 2, 4]


def test_without_a_mask_every_token_is_real():
    batch = Batch.of({"input_ids": torch.tensor([[1, 2], [3, 4]])})
    assert batch.tokens.tolist() == [2, 2]
    assert batch.sequence(1) == [3, 4]


def test_pairs_divide_the_loss_by_their_number_and_groups_by_their_units():
    assert collate(ROWS).divisor == 2
    assert collate(ROWS).loss_weight is None
    grouped = collate([GROUP, PAIR])
    assert grouped.divisor.item() == pytest.approx(2)
    assert grouped.loss_weight.tolist() == pytest.approx([2, 2, 2, 3])
    assert collate([GROUP, PAIR], group_weighting="comparison").divisor.item() == 4


@pytest.mark.parametrize("weighting", ["group", "comparison"])
def test_the_comparisons_of_a_row_share_its_weight_in_all_figures(weighting):
    assert collate([GROUP, PAIR], group_weighting=weighting).share.tolist() == pytest.approx([2, 2, 2, 3])
    assert collate(ROWS).share.tolist() == [1, 1]
    assert collate([row | {"weight": 0.5} for row in ROWS]).share.tolist() == [0.5, 0.5]


def test_a_tie_is_preferred_with_probability_one_half():
    rows = [row | {"label": 0.25, "tie": tie} for row, tie in zip(ROWS, (False, True), strict=True)]
    assert collate(rows, with_ties=True).preference.tolist() == [0.25, 0.5]
    assert collate(ROWS).preference.tolist() == [1, 1]
