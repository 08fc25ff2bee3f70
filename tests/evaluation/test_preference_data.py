"""Which comparisons a row makes, what they count, and how rows are named."""

import numpy as np
import pytest

from plaudit.errors import DataError
from plaudit.evaluation.preference_data import compare, length_of

PAIR = {"prompt": "2+2? ", "chosen": "4.", "rejected": "Five."}


def chat(*replies):
    return [{"role": "assistant", "content": reply} for reply in replies]


def judged(compared):
    """Each comparison in words: better, worse, label, row, weight."""
    texts = compared.sequences
    columns = (compared.better, compared.worse, compared.labels, compared.rows, compared.weights)
    return [(texts[b], texts[w], label, row, weight) for b, w, label, row, weight in zip(*columns, strict=True)]


def test_a_pair_is_one_comparison_of_its_weight():
    assert judged(compare([PAIR | {"weight": 2.5}])) == [("2+2? 4.", "2+2? Five.", 1.0, 0, 2.5)]


def test_a_label_below_one_half_makes_the_rejected_one_the_better():
    sure, unsure = compare([PAIR | {"label": 0.8}]), compare([PAIR | {"label": 0.2}])
    assert judged(sure) == [("2+2? 4.", "2+2? Five.", 0.8, 0, 1.0)]
    assert judged(unsure) == [("2+2? Five.", "2+2? 4.", 0.8, 0, 1.0)]


def test_a_group_makes_all_its_comparisons_which_share_its_weight():
    group = {"prompt": "", "completions": ["c", "a", "b", "a2"], "ranks": [2, 0, 1, 0], "weight": 10.0}
    compared = compare([PAIR, group])
    in_words = [("a", "b"), ("a", "c"), ("a2", "b"), ("a2", "c"), ("b", "c")]
    assert judged(compared)[1:] == [(better, worse, 1.0, 1, 2.0) for better, worse in in_words]
    assert compared.ties.tolist() == [0, 1]


def test_scores_order_a_group_the_other_way_round():
    compared = compare([{"prompt": "", "completions": ["a", "b"], "scores": [1.0, 3.0]}])
    assert judged(compared) == [("b", "a", 1.0, 0, 1.0)]


def test_ties_and_equal_responses_are_counted_and_make_no_comparison():
    same = PAIR | {"rejected": "4."}
    group = {"prompt": "", "completions": ["a", "a", "b"], "ranks": [0, 1, 1]}
    compared = compare([PAIR | {"tie": True}, same, same | {"tie": True}, group, PAIR])
    assert compared.ties.tolist() == [1, 0, 0, 1, 0]
    assert compared.identical.tolist() == [0, 1, 1, 1, 0]
    assert [(better, worse) for better, worse, *_ in judged(compared)] == [("a", "b"), ("2+2? 4.", "2+2? Five.")]
    assert len(compared.sequences) == 2 + 2 + 2 + 3 + 2


def test_a_row_of_weight_zero_makes_no_comparison():
    assert compare([PAIR | {"weight": 0.0}, PAIR]).rows.tolist() == [1]


def test_rows_of_one_prompt_have_one_number_and_subsets_are_kept():
    rows = [PAIR | {"subset": "a"}, PAIR | {"chosen": "Four.", "subset": 3}, PAIR | {"prompt": "Hm? "}]
    compared = compare(rows)
    assert compared.prompts[0] == compared.prompts[1] != compared.prompts[2]
    assert compared.subsets == ["a", "3", None]


def test_each_response_knows_its_row_its_column_and_its_template_options():
    group = {"completions": [chat("a"), chat("b")], "ranks": [0, 1], "tools": '[{"name": "add"}]'}
    compared = compare([PAIR, group])
    assert compared.owners.tolist() == [0, 0, 1, 1]
    assert compared.names[1] == "row 0, column 'rejected'"
    assert compared.names[2] == "row 1, column 'completions[0]'"
    assert compared.options == [{}, {}, {"tools": [{"name": "add"}]}, {"tools": [{"name": "add"}]}]


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
        compare([PAIR, row])


@pytest.mark.parametrize("rows", [[], [PAIR | {"tie": True}], [PAIR | {"weight": 0}]])
def test_rows_without_a_comparison_are_refused(rows):
    with pytest.raises(DataError, match=f"got none in {len(rows)} rows"):
        compare(rows)


def test_lengths_are_characters_of_what_is_said():
    assert length_of("four") == 4
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
    assert length_of([*chat("12345", parts), {"role": "assistant", "content": None, "tool_calls": [{}]}]) == 8


def test_the_arrays_are_numbers():
    compared = compare([PAIR])
    assert compared.better.dtype == compared.rows.dtype == np.int64
    assert compared.labels.dtype == compared.weights.dtype == np.float64
