from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.rankings import comparisons_of_ranking, dense_ranks, ties_of_ranking

A, B, C, D = [1, 2], [1, 3], [1, 4, 5], [1]


def test_dense_ranks_have_no_gaps_and_equal_values_share_one():
    assert dense_ranks([7.5, -1, 7.5, 2]) == [2, 0, 2, 1]
    assert dense_ranks([]) == []


def test_comparisons_come_best_first_and_leave_ties_out():
    assert comparisons_of_ranking([A, B, C, D], [0, 2, 1, 2]) == [(0, 2), (0, 1), (0, 3), (2, 1), (2, 3)]
    assert comparisons_of_ranking([A, B], [1.5, -1]) == [(1, 0)]


def test_ties_are_the_pairs_of_equal_rank():
    assert ties_of_ranking([A, B, C, D], [0, 2, 1, 2]) == [(1, 3)]
    assert ties_of_ranking([A, B, C], [7, 7, 7]) == [(0, 1), (0, 2), (1, 2)]
    assert ties_of_ranking([A, B], [0, 1]) == []


def test_equal_ids_are_neither_compared_nor_tied():
    assert comparisons_of_ranking([A, list(A), B], [0, 1, 1]) == [(0, 2)]
    assert ties_of_ranking([A, list(A), B], [0, 0, 0]) == [(0, 2), (1, 2)]


@given(group=st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), max_size=7))
def test_every_two_responses_of_different_ids_are_compared_or_tied_and_never_both(group):
    ids, ranks = [[token] for token, _ in group], [rank for _, rank in group]
    compared, tied = comparisons_of_ranking(ids, ranks), ties_of_ranking(ids, ranks)
    assert all(ranks[winner] < ranks[loser] for winner, loser in compared)
    assert all(ranks[one] == ranks[two] and one < two for one, two in tied)
    differing = [{one, two} for one, two in combinations(range(len(ids)), 2) if ids[one] != ids[two]]
    assert sorted(map(sorted, compared + tied)) == sorted(map(sorted, differing))
