import pytest
import torch

from plaudit import DataCollatorForPreference
from plaudit.training.collator import PreferenceCollator, comparisons_of

ROWS = [
    {"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5], "margin": 0.5},
    {"chosen_ids": [6], "rejected_ids": [7, 8, 9, 10], "margin": -1},
]
WITHOUT_MARGIN = [{name: value for name, value in row.items() if name != "margin"} for row in ROWS]


def test_a_batch_is_all_chosen_then_all_rejected_padded_on_the_right():
    batch = DataCollatorForPreference(pad_token_id=0)(ROWS)
    assert list(batch) == ["input_ids", "attention_mask", "margin"]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [6, 0, 0, 0], [4, 5, 0, 0], [7, 8, 9, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["margin"].tolist() == [0.5, -1.0]
    assert [tensor.dtype for tensor in batch.values()] == [torch.int64, torch.int64, torch.float32]


def test_without_a_margin_there_is_none():
    assert list(DataCollatorForPreference(pad_token_id=0)(WITHOUT_MARGIN)) == ["input_ids", "attention_mask"]


def test_the_mask_follows_lengths_and_not_ids():
    batch = DataCollatorForPreference(pad_token_id=0)([{"chosen_ids": [0, 0], "rejected_ids": [5, 0, 0]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(("multiple", "width"), [(None, 4), (1, 4), (3, 6), (4, 4), (16, 16)])
def test_lengths_are_rounded_up_to_a_multiple(multiple, width):
    batch = DataCollatorForPreference(pad_token_id=9, pad_to_multiple_of=multiple)(ROWS)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, width)
    assert batch["attention_mask"].sum(-1).tolist() == [3, 1, 2, 4]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 9).all()


def test_the_trainers_own_collator_adds_the_comparisons():
    batch = PreferenceCollator(pad_token_id=0)(ROWS)
    plain = DataCollatorForPreference(pad_token_id=0)(ROWS)
    assert set(batch) == {*plain, "comparisons", "comparison_row", "sequence_row"}
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert batch["comparisons"].tolist() == [[0, 2], [1, 3]]


def test_comparisons_of_a_batch_of_the_common_shape_are_its_halves():
    assert comparisons_of({"input_ids": torch.zeros(6, 1)}).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_comparisons_that_a_batch_names_are_taken():
    named = torch.tensor([[2, 0], [1, 0]])
    assert comparisons_of({"input_ids": torch.zeros(3, 1), "comparisons": named}) is named
