"""Krippendorff's alpha, compared with its definition on all pairs of votes."""

from itertools import permutations

import numpy as np
import pytest

from plaudit.auditing.agreement import krippendorff_alpha, votes_of


def by_definition(units):
    """Alpha from the coincidence matrix of units and units turned round, values 0, 1 and 2."""
    turned = [[{0: 1, 1: 0, 2: 2}[vote] for vote in unit] for unit in units]
    matrix = np.zeros((3, 3))
    for unit in [*units, *turned]:
        for one, two in permutations(unit, 2):
            matrix[one, two] += 1 / (len(unit) - 1)
    totals = matrix.sum(axis=1)
    observed = matrix.sum() - np.trace(matrix)
    expected = (totals.sum() ** 2 - (totals**2).sum()) / (totals.sum() - 1)
    return 1 - observed / expected


def test_it_is_the_formula_of_the_coincidence_matrix():
    generator = np.random.default_rng(0)
    units = [generator.choice(3, size=generator.integers(2, 6), p=[0.6, 0.3, 0.1]).tolist() for _ in range(50)]
    counts = [[unit.count(value) for value in range(3)] for unit in units]
    assert krippendorff_alpha(counts) == pytest.approx(by_definition(units))


def test_no_votes_have_no_agreement():
    assert np.isnan(krippendorff_alpha([]))
    assert np.isnan(krippendorff_alpha([(0, 0, 3)]))


@pytest.mark.parametrize("votes", [None, 3, [1], ["good", "bad"], [float("nan"), 1], [None, 1], "chosen"])
def test_columns_of_another_meaning_are_no_votes(votes):
    assert votes_of({"votes": votes}) is None
