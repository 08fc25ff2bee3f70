import math
from itertools import combinations

import numpy as np
import pytest
from datasets import List, Value
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.annotations import annotation_features, parse_group_annotations, parse_pair_annotations
from plaudit.errors import DataError


def of_pair(**row):
    return parse_pair_annotations(row, 7)


def of_group(**row):
    return parse_group_annotations(row, 7, 2)


def test_annotations_have_types():
    number = Value("float64")
    types = annotation_features(["margin", "tie", "ranks", "source"])
    assert types == {"margin": number, "tie": Value("bool"), "ranks": List(number)}


# of pairs


def test_a_pair_without_annotations_counts_once():
    default = {"margin": None, "weight": 1.0, "label": None, "tie": False}
    assert of_pair() == of_pair(margin=None, weight=None, label=None, tie=None) == default


@pytest.mark.parametrize(
    ("column", "value", "parsed"),
    [
        ("margin", 1, 1.0),
        ("margin", -0.5, -0.5),
        ("margin", np.float32(0.25), 0.25),
        ("weight", 2, 2.0),
        ("weight", 0, 0.0),
        ("label", 0, 0.0),
        ("label", 1, 1.0),
        ("tie", True, True),
        ("tie", np.bool_(False), False),
    ],
)
def test_an_annotation_of_a_pair(column, value, parsed):
    came = of_pair(**{column: value})[column]
    assert came == parsed
    assert type(came) is type(parsed)


BAD_VALUES = {
    "margin": ("a finite number", "0.5", [math.nan, math.inf, -math.inf, "1", True, [1.0], np.bool_(True)]),
    "weight": ("a finite number of 0 or more", "2.0", [-1, -0.001, math.nan, math.inf, "1", True, [1.0]]),
    "label": ("a number from 0 to 1", "0.8", [-0.1, 1.5, math.nan, math.inf, "chosen", True, [0.5]]),
    "tie": ("true or false", "true", [0, 1, "yes", 0.5, [True]]),
}


@pytest.mark.parametrize(
    ("column", "value"), [(column, value) for column, (*_, values) in BAD_VALUES.items() for value in values]
)
def test_a_malformed_annotation_is_named_with_its_row_and_column(column, value):
    expected, example, _ = BAD_VALUES[column]
    with pytest.raises(DataError) as error:
        of_pair(**{column: value})
    parts = ("row 7", f"'{column}'", f"expected {expected}", "got " + type(value).__name__, f"shape: {example}")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("label", [0.0, 0.5, 1])
def test_a_tie_with_a_label_is_an_error_that_says_which_to_drop(label):
    with pytest.raises(DataError) as error:
        of_pair(tie=True, label=label)
    for part in ("row 7, columns 'tie' and 'label'", "Drop 'label' if", "drop 'tie' if"):
        assert part in str(error.value)


# of groups


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=8))
def test_a_higher_score_has_a_lower_rank_whatever_the_scores(scores):
    ranks = parse_group_annotations({"scores": scores}, 0, len(scores))["ranks"]
    for one, two in combinations(range(len(scores)), 2):
        assert (ranks[one] < ranks[two]) == (scores[one] > scores[two])
    assert set(ranks) == set(range(len(set(scores))))


def test_ranks_and_scores_at_once_are_an_error_unless_one_was_made_from_the_other():
    with pytest.raises(DataError, match=r"row 7, columns 'ranks' and 'scores': expected one of them.*[Dd]rop"):
        of_group(ranks=[0, 1], scores=[2, 1])
    both = {"ranks": [0, 3], "scores": [2, 1]}
    annotations = {"ranks": [0.0, 3.0], "scores": [2.0, 1.0], "weight": 1.0}
    assert parse_group_annotations(both, 7, 2, derived=True) == annotations
    with pytest.raises(DataError, match=r"row 7, columns 'ranks' and 'scores': expected both to order the responses"):
        parse_group_annotations(both | {"ranks": [1, 0]}, 7, 2, derived=True)


@pytest.mark.parametrize(("column", "value"), [("margin", 0.0), ("label", 1.0), ("tie", True), ("tie", "no")])
def test_annotations_of_pairs_have_no_place_in_a_group(column, value):
    group = {"ranks": [0, 1]}
    message = rf"row 7, column '{column}': .*belongs to pair rows and this is a ranked group"
    with pytest.raises(DataError, match=message):
        of_group(**group, **{column: value})
    assert of_group(**group, **{column: None}) == of_group(**group, tie=False) == of_group(**group)


def test_a_negative_weight_of_a_group_is_named():
    with pytest.raises(DataError, match="row 7, column 'weight': expected a finite number of 0 or more, got int -1"):
        of_group(ranks=[0, 1], weight=-1)
