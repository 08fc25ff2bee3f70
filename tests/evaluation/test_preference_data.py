"""The comparisons that a row makes, their weights, and the names of responses in messages."""

import numpy as np
import pytest

from plaudit.errors import DataError
from plaudit.evaluation.preference_data import read_preferences

PAIR = {"prompt": "2+2? ", "chosen": "4.", "rejected": "Five."}


def chat(*replies):
    return [{"role": "assistant", "content": reply} for reply in replies]


def in_words(data):
    """Each comparison in words: better, worse, label, row, weight."""
    texts = data.sequences
    columns = (data.better, data.worse, data.labels, data.rows, data.weights)
    return [(texts[b], texts[w], label, row, weight) for b, w, label, row, weight in zip(*columns, strict=True)]


def test_a_pair_is_one_comparison_of_its_weight():
    assert in_words(read_preferences([PAIR | {"weight": 2.5}])) == [("2+2? 4.", "2+2? Five.", 1.0, 0, 2.5)]


def test_a_label_below_one_half_makes_the_rejected_one_the_better():
    sure, unsure = read_preferences([PAIR | {"label": 0.8}]), read_preferences([PAIR | {"label": 0.2}])
    assert in_words(sure) == [("2+2? 4.", "2+2? Five.", 0.8, 0, 1.0)]
    assert in_words(unsure) == [("2+2? Five.", "2+2? 4.", 0.8, 0, 1.0)]


def test_a_group_makes_all_its_comparisons_which_share_its_weight():
    group = {"prompt": "", "completions": ["c", "a", "b", "a2"], "ranks": [2, 0, 1, 0], "weight": 10.0}
    data = read_preferences([PAIR, group])
    expected = [("a", "b"), ("a", "c"), ("a2", "b"), ("a2", "c"), ("b", "c")]
    assert in_words(data)[1:] == [(better, worse, 1.0, 1, 2.0) for better, worse in expected]
    assert data.ties.tolist() == [0, 1]


def test_scores_order_a_group_the_other_way_round():
    data = read_preferences([{"prompt": "", "completions": ["a", "b"], "scores": [1.0, 3.0]}])
    assert in_words(data) == [("b", "a", 1.0, 0, 1.0)]


def test_ties_and_equal_responses_are_counted_and_make_no_comparison():
    same = PAIR | {"rejected": "4."}
    group = {"prompt": "", "completions": ["a", "a", "b"], "ranks": [0, 1, 1]}
    data = read_preferences([PAIR | {"tie": True}, same, same | {"tie": True}, group, PAIR])
    assert data.ties.tolist() == [1, 0, 0, 1, 0]
    assert data.identical.tolist() == [0, 1, 1, 1, 0]
    assert [(better, worse) for better, worse, *_ in in_words(data)] == [("a", "b"), ("2+2? 4.", "2+2? Five.")]
    assert len(data.sequences) == 2 + 2 + 2 + 3 + 2


def test_a_group_whose_responses_are_all_tied_makes_no_comparison():
    data = read_preferences([{"prompt": "", "completions": ["a", "b"], "ranks": [0, 0]}, PAIR])
    assert (data.rows.tolist(), data.ties.tolist(), data.identical.tolist()) == ([1], [1, 0], [0, 0])


def test_a_row_of_weight_zero_makes_no_comparison():
    assert read_preferences([PAIR | {"weight": 0.0}, PAIR]).rows.tolist() == [1]


def test_rows_of_one_prompt_have_one_key_and_subsets_are_kept():
    rows = [PAIR | {"subset": "a"}, PAIR | {"chosen": "Four.", "subset": 3}, PAIR | {"prompt": "Hm? "}]
    data = read_preferences(rows)
    assert data.prompts[0] == data.prompts[1] != data.prompts[2]
    assert data.subsets == ["a", "3", None]


def test_each_response_has_the_name_of_its_row_and_column_and_its_template_options():
    group = {"completions": [chat("a"), chat("b")], "ranks": [0, 1], "tools": '[{"name": "add"}]'}
    data = read_preferences([PAIR, group])
    assert data.names == [
        "row 0, column 'chosen'", "row 0, column 'rejected'", "row 1, column 'completions[0]'",
        "row 1, column 'completions[1]'",
    ]  # fmt: skip
    assert data.template_options == [{}, {}, {"tools": [{"name": "add"}]}, {"tools": [{"name": "add"}]}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a"}, "row 1: expected the columns 'chosen' and 'rejected'"),
        ({"completions": ["a", "b"], "ranks": [0]}, "row 1, column 'ranks'"),
        (PAIR | {"label": 2}, "row 1, column 'label'"),
        (("a", "b"), "row 1: expected a dict"),
    ],
)
def test_a_malformed_row_is_named(row, message):
    with pytest.raises(DataError, match=message):
        read_preferences([PAIR, row])


@pytest.mark.parametrize("rows", [[], [PAIR | {"tie": True}], [PAIR | {"weight": 0}]])
def test_rows_without_a_comparison_are_refused(rows):
    with pytest.raises(DataError, match=f"got none in {len(rows)} rows"):
        read_preferences(rows)


def test_the_arrays_are_numbers():
    data = read_preferences([PAIR])
    assert data.better.dtype == data.rows.dtype == np.int64
    assert data.labels.dtype == data.weights.dtype == np.float64
