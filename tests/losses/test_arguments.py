"""Label smoothing, and the check of shapes."""

import pytest
import torch

from plaudit.losses.arguments import check_shapes, smooth_label


def test_a_smoothed_label_is_the_probability_that_an_erring_annotator_prefers_the_winner():
    label = torch.tensor([1.0, 0.9, 0.5, 0.0])
    torch.testing.assert_close(smooth_label(label, 0.2), torch.tensor([0.8, 0.74, 0.5, 0.2]))
    assert torch.equal(smooth_label(label, 0.0), label)
    assert smooth_label(None, 0.2) == 0.8


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1, float("nan")])
def test_smoothing_outside_0_to_1_is_refused(label_smoothing):
    with pytest.raises(ValueError, match=f"expected a number between 0 and 1, got {label_smoothing}"):
        smooth_label(None, label_smoothing)


def test_tensors_of_one_shape_and_missing_ones_pass():
    check_shapes("C", winner=torch.zeros(3), loser=torch.zeros(3), margin=None)


@pytest.mark.parametrize("other", [(2,), (3, 1), ()])
def test_tensors_that_differ_are_refused_by_name(other):
    with pytest.raises(ValueError, match=r"one shape \[C\], got \{'winner': \(3,\), 'loser': \("):
        check_shapes("C", winner=torch.zeros(3), loser=torch.zeros(other))
