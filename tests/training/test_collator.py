import pytest
import torch

from plaudit import DataCollatorForPreference
from plaudit.errors import DataError
from plaudit.training.collator import PreferenceCollator

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
    assert set(batch) == set(plain)
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert batch.comparisons.tolist() == [[0, 2], [1, 3]]
    assert (batch.comparison_row.tolist(), batch.sequence_row.tolist()) == ([0, 1], [0, 1, 0, 1])


# Forests and groups

PROMPT = list(range(100, 140))
GROUP = {
    "sequence_ids": [[1, 2, 3], [1, 2, 4], [1, 5], [1, 2, 3]],
    "ranks": [2.0, 0.0, 2.0, 1.0],
    "comparisons": [[1, 3], [1, 0], [1, 2], [3, 2]],
    "weight": 1.0,
}
PAIR = {"sequence_ids": [[6, 7], [6, 8]], "ranks": [0.0, 1.0], "comparisons": [[0, 1]], "weight": 3.0}


def test_a_forest_has_each_prefix_of_a_row_once_and_no_padding():
    batch = PreferenceCollator(pad_token_id=0, pad_to_multiple_of=16, layout="forest")(ROWS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 2, 3]]
    assert batch["subtree_end"].tolist() == [[3, 3, 3, 5, 5, 6, 10, 10, 10, 10]]
    assert batch["leaf"].tolist() == [2, 5, 4, 9]
    assert all(tensor.dtype == torch.int64 for tensor in batch.model_inputs.values())
    assert set(batch.model_inputs) == {"input_ids", "position_ids", "subtree_end", "leaf"}


@pytest.mark.parametrize("rows", [ROWS, [GROUP, PAIR], [GROUP]])
def test_both_layouts_hold_the_same_sequences_tokens_and_comparisons(rows):
    forest, padded = (PreferenceCollator(pad_token_id=0, layout=layout)(rows) for layout in ("forest", "padded"))
    sequences = [[batch.sequence(n) for n in range(len(batch.sequence_row))] for batch in (forest, padded)]
    assert sequences[0] == sequences[1]
    assert forest.tokens.tolist() == padded.tokens.tolist() == list(map(len, sequences[0]))
    for name in ("comparisons", "comparison_row", "sequence_row"):
        assert torch.equal(getattr(forest, name), getattr(padded, name))
    for name in ("margin", "weight", "unit"):
        assert (getattr(forest, name) is None) == (getattr(padded, name) is None)


@pytest.mark.parametrize(("common", "shared"), [(31, False), (32, True)])
def test_rows_share_a_long_beginning_and_not_a_short_one(common, shared):
    rows = [
        {"chosen_ids": [*PROMPT[:common], n], "rejected_ids": [*PROMPT[:common], n + 1]} for n in (1, 3)
    ]  # fmt: skip
    batch = PreferenceCollator(pad_token_id=0, layout="forest")(rows)
    assert batch["input_ids"].numel() == common * (1 if shared else 2) + 4
    assert [batch.sequence(number)[:-1] for number in range(4)] == [PROMPT[:common]] * 4


def test_a_group_compares_what_differs_in_rank_and_ids():
    batch = PreferenceCollator(pad_token_id=0, layout="forest")([GROUP, PAIR])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["leaf"].tolist() == [2, 3, 4, 2, 6, 7]
    # the best against all others, and the third-ranked against one of the last two: the other has the same ids
    assert batch.comparisons.tolist() == [[1, 3], [1, 0], [1, 2], [3, 2], [4, 5]]
    assert batch.comparison_row.tolist() == [0, 0, 0, 0, 1]
    assert batch.sequence_row.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.unit.tolist() == [0.25] * 4 + [1.0]
    assert batch.weight.tolist() == [1.0] * 4 + [3.0]
    assert batch.loss_weight.tolist() == [0.25] * 4 + [3.0]
    assert (batch.margin, batch.label, batch.tie, batch.sequence_rank) == (None, None, None, None)


def test_by_comparison_each_counts_one():
    batch = PreferenceCollator(pad_token_id=0, group_weighting="comparison")([GROUP, PAIR])
    assert batch.unit.tolist() == [1.0] * 5
    assert batch.weight.tolist() == [1.0] * 4 + [3.0]


def test_by_comparison_a_ranking_counts_its_places():
    batch = PreferenceCollator(pad_token_id=0, group_weighting="comparison", with_rankings=True)([GROUP, PAIR])
    assert batch.unit.tolist() == [2 / 4] * 4 + [1.0]
    assert batch.sequence_rank.tolist() == [2.0, 0.0, 2.0, 1.0, 0.0, 1.0]


def test_equal_ranks_are_ties_where_the_loss_knows_them():
    group = {
        "sequence_ids": [[1, 2], [1, 3], [1, 4]], "ranks": [1.0, 0.0, 1.0],
        "comparisons": [[1, 0], [1, 2]], "ties": [[0, 2]],
    }  # fmt: skip
    batch = PreferenceCollator(pad_token_id=0, with_ties=True)([group])
    assert batch.comparisons.tolist() == [[1, 0], [1, 2], [0, 2]]
    assert batch.tie.tolist() == [False, False, True]
    assert batch.unit.tolist() == pytest.approx([1 / 3] * 3)


def test_differences_of_scores_are_margins_where_a_row_has_scores():
    rows = [
        {"sequence_ids": [[1, 2], [1, 3]], "ranks": [1.0, 0.0], "comparisons": [[1, 0]], "scores": [0.5, 2.5]},
        {"sequence_ids": [[1, 2], [1, 3]], "ranks": [0.0, 1.0], "comparisons": [[0, 1]], "scores": None},
    ]
    assert PreferenceCollator(pad_token_id=0, margin_from_scores=True)(rows).margin.tolist() == [2.0, 0.0]
    assert PreferenceCollator(pad_token_id=0)(rows).margin is None


def test_a_pair_keeps_what_annotators_say():
    rows = [row | {"label": 0.25, "weight": 2.0, "tie": tie} for row, tie in zip(ROWS, (False, True), strict=True)]
    batch = PreferenceCollator(pad_token_id=0, with_ties=True, with_rankings=True)(rows)
    assert (batch.label.tolist(), batch.weight.tolist()) == ([0.25, 0.25], [2.0, 2.0])
    assert batch.tie.tolist() == [False, True]
    assert batch.sequence_rank.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert batch.preference.tolist() == [0.25, 0.5]
    with pytest.raises(DataError, match="a row is a tie .* Set `loss_type` to 'ties', or leave such rows out"):
        PreferenceCollator(pad_token_id=0)(rows)
