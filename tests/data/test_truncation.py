import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.tokenization_report import TokenizationRules
from plaudit.data.truncation import apply_max_length
from plaudit.errors import DataError

BOS = 99


def fit(sequences, max_length, overlong="truncate"):
    return apply_max_length(sequences, TokenizationRules(max_length, overlong), 7, {BOS, None})


@pytest.mark.parametrize("overlong", ["drop", "truncate", "error"])
def test_sequences_that_fit_are_left_as_they_are(overlong):
    assert fit([[1, 2, 3], [4]], 3, overlong) == fit([[1, 2, 3], [4]], None, overlong) == {0: [1, 2, 3], 1: [4]}


def test_an_overlong_sequence_is_dropped_and_the_others_keep_their_places():
    assert fit([[1, 2], [1, 2, 3, 4], [1, 3]], 3, "drop") == {0: [1, 2], 2: [1, 3]}
    assert fit([[1, 2], [1, 3]], 1, "drop") == {}


def test_an_overlong_sequence_is_an_error_where_that_is_asked_for():
    with pytest.raises(DataError, match=r"row 7: its longest sequence has 4 tokens, more than max_length=3.*overlong"):
        fit([[1], [2, 3], [4, 5, 6, 7]], 3, "error")


@pytest.mark.parametrize(
    ("sequences", "kept"),
    [
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7]], {0: [3, 4, 5, 6], 1: [3, 4, 7]}),
        ([[1, 2, 3, 8], [1, 2, 3, 9, 9, 9]], {0: [3, 8], 1: [3, 9, 9, 9]}),
        ([[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3, 4, 5, 6]], {0: [3, 4], 1: [3, 5, 6], 2: [3, 4, 5, 6]}),
    ],
)
def test_truncation_cuts_the_shared_prefix_by_the_same_number_of_tokens_in_all(sequences, kept):
    assert fit(sequences, 4) == kept


def test_truncation_drops_what_still_does_not_fit_and_cuts_no_more_than_the_rest_needs():
    assert fit([[1, 2, 3, 4, 5], [1, 9]], 3) == {1: [1, 9]}
    # Two tokens are shared, and the last sequence has three too many.
    assert fit([[1, 2, 7], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]], 4) == {0: [2, 7], 1: [2, 3, 4, 5]}


def test_truncation_never_takes_the_last_token_of_a_sequence():
    assert fit([[1, 2, 3, 4], [1, 2, 3]], 2) == {0: [3, 4], 1: [3]}
    assert fit([[1, 2, 3, 4], [1, 2]], 2) == {1: [1, 2]}


def test_truncation_keeps_a_leading_special_token():
    assert fit([[BOS, 2, 3, 4], [BOS, 2, 9]], 3) == {0: [BOS, 3, 4], 1: [BOS, 9]}
    assert fit([[BOS, 2, 3, 4], [BOS, 9]], 3) == {1: [BOS, 9]}  # only BOS is shared
    assert fit([[BOS, 2, 3, 4], [BOS, 2, 5], [BOS, 2]], 3) == {1: [BOS, 2, 5], 2: [BOS, 2]}
    assert fit([[BOS, 2, 3, 4], [BOS, 2, 5], [BOS, 2, 6]], 3) == {0: [BOS, 3, 4], 1: [BOS, 5], 2: [BOS, 6]}


tokens = st.integers(0, 2)
tails = st.lists(st.lists(tokens, min_size=1, max_size=5), min_size=2, max_size=5)


@given(shared=st.lists(tokens, max_size=8), tails=tails, most=st.integers(1, 12))
def test_truncation_of_any_row_is_one_cut_of_the_shared_prefix_and_the_smallest_that_is_enough(shared, tails, most):
    sequences = [shared + tail for tail in tails]
    kept = fit(sequences, most)
    cuts = {len(sequences[place]) - len(ids) for place, ids in kept.items()}
    if not kept:
        assert min(map(len, sequences)) > most
        return
    (cut,) = cuts
    assert all(0 < len(ids) <= most for ids in kept.values())
    assert all(sequences[place][cut:] == ids for place, ids in kept.items())
    assert all(ids[:cut] == sequences[0][:cut] for ids in sequences)
    assert cut == 0 or max(map(len, kept.values())) == most
    assert fit(sequences, most, "drop") == {place: ids for place, ids in enumerate(sequences) if len(ids) <= most}
