"""Losses on comparisons: values, gradients, labels and smoothing, and refused shapes."""

import math

import pytest
import torch

from plaudit.losses import bradley_terry, centering, hinge

PAIRWISE = pytest.mark.parametrize("loss", [bradley_terry, hinge])


def test_the_loss_is_minus_the_log_of_the_probability_that_the_winner_wins():
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4
    winner, loser = torch.tensor([math.log(3), 2.0, 1.0]), torch.tensor([0.0, 2.0, 1.0 + math.log(3)])
    expected = torch.tensor([math.log(4 / 3), math.log(2), math.log(4)])
    torch.testing.assert_close(bradley_terry(winner, loser), expected, atol=1e-6, rtol=1e-6)


def test_a_margin_is_subtracted_from_the_difference():
    winner, loser = torch.tensor([math.log(3), 2.0]), torch.tensor([0.0, 1.0])
    margin = torch.tensor([math.log(3), 1.0 + math.log(3)])
    expected = torch.tensor([math.log(2), math.log(4)])
    torch.testing.assert_close(bradley_terry(winner, loser, margin), expected, atol=1e-6, rtol=1e-6)


def test_the_loss_depends_on_the_difference_only():
    winner, loser = torch.tensor([1.0, -2.0]), torch.tensor([0.25, 4.0])
    assert torch.equal(bradley_terry(winner + 8, loser + 8), bradley_terry(winner, loser))  # 8: exact in float32


def test_a_step_against_the_gradient_raises_the_winner_and_lowers_the_loser():
    winner, loser = torch.tensor([0.3, -1.0], requires_grad=True), torch.tensor([0.5, -3.0], requires_grad=True)
    bradley_terry(winner, loser).sum().backward()
    wrong = torch.sigmoid(loser - winner).detach()  # the probability of being wrong is the pull
    torch.testing.assert_close(winner.grad, -wrong)
    torch.testing.assert_close(loser.grad, wrong)


def test_large_differences_keep_losses_and_gradients_finite():
    winner = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = bradley_terry(winner, torch.zeros(2))
    losses.sum().backward()
    assert losses.tolist() == [1e4, 0.0]
    assert winner.grad.tolist() == [-1.0, 0.0]


def test_centring_is_the_square_of_the_sum():
    assert centering(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, 2.0, -0.5])).tolist() == [9.0, 0.0, 6.25]


def test_centring_leaves_the_difference_alone():
    winner, loser = torch.tensor([1.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    centering(winner, loser).sum().backward()
    assert torch.equal(winner.grad, loser.grad)
    assert winner.grad.item() > 0


def test_the_plain_loss_is_minus_logsigmoid_of_the_difference_to_the_bit():
    winner, loser, margin = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bradley_terry(winner, loser), -torch.nn.functional.logsigmoid(winner - loser))
    assert torch.equal(bradley_terry(winner, loser, margin), -torch.nn.functional.logsigmoid(winner - loser - margin))


def test_a_soft_label_weighs_both_outcomes():
    # 0.8 log(4/3) + 0.2 log 4 where the winner wins three times in four
    winner, loser = torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)])
    label = torch.tensor([0.8, 1.0])
    expected = torch.tensor([0.8 * math.log(4 / 3) + 0.2 * math.log(4), math.log(4)])
    torch.testing.assert_close(bradley_terry(winner, loser, label=label), expected, atol=1e-6, rtol=1e-6)


def test_a_soft_label_is_met_where_the_difference_is_its_log_odds():
    label = torch.tensor([0.75, 0.5, 0.1])
    winner = (torch.tensor([0.5, 0.5, 0.5]) + label.logit()).requires_grad_()
    bradley_terry(winner, torch.full((3,), 0.5), label=label).sum().backward()
    torch.testing.assert_close(winner.grad, torch.zeros(3), atol=1e-6, rtol=0)


def test_the_hinge_is_the_distance_from_winning_by_one():
    winner, loser = torch.tensor([3.0, 1.5, 0.0]), torch.tensor([0.0, 1.0, 2.0])
    assert hinge(winner, loser).tolist() == [0.0, 0.5, 3.0]
    assert hinge(winner, loser, margin=torch.tensor([2.5, 0.5, 1.0])).tolist() == [0.5, 1.0, 4.0]


def test_a_soft_label_or_smoothing_weighs_both_hinges():
    winner, loser, label = torch.tensor([2.0, 0.5]), torch.tensor([0.0, 0.0]), torch.tensor([0.75, 0.25])
    assert hinge(winner, loser, label=label).tolist() == [0.25 * 3, 0.25 * 0.5 + 0.75 * 1.5]
    assert hinge(winner, loser, label_smoothing=0.25).tolist() == [0.25 * 3, 0.75 * 0.5 + 0.25 * 1.5]


def test_a_comparison_that_is_won_by_one_has_no_hinge_gradient():
    winner = torch.tensor([2.0, 0.5], requires_grad=True)
    hinge(winner, torch.zeros(2)).sum().backward()
    assert winner.grad.tolist() == [0.0, -1.0]


@PAIRWISE
def test_a_label_of_one_and_no_smoothing_are_the_plain_loss_to_the_bit(loss):
    winner, loser, margin = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    plain = loss(winner, loser, margin)
    assert torch.equal(loss(winner, loser, margin, None, 0.0), plain)
    assert torch.equal(loss(winner, loser, margin, torch.ones(100)), plain)


@PAIRWISE
def test_the_complement_of_a_label_is_the_label_of_the_pair_turned_round(loss):
    winner, loser, margin = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    label = torch.rand(100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        loss(winner, loser, margin, label, 0.1), loss(loser, winner, -margin, 1 - label, 0.1), atol=1e-6, rtol=1e-6
    )


@PAIRWISE
def test_smoothing_by_one_half_is_the_same_for_either_winner(loss):
    first, second = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(first, second, label_smoothing=0.5), loss(second, first, label_smoothing=0.5))
    assert not torch.allclose(loss(first, second, label_smoothing=0.4), loss(second, first, label_smoothing=0.4))


@PAIRWISE
def test_smoothing_is_a_soft_label_and_smooths_a_soft_label(loss):
    winner, loser = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    smoothed = loss(winner, loser, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, loss(winner, loser, label=torch.full((100,), 0.8)))
    # 0.9 is seen as 0.8 * 0.9 + 0.2 * 0.1
    both = loss(winner, loser, label=torch.full((100,), 0.9), label_smoothing=0.2)
    torch.testing.assert_close(both, loss(winner, loser, label=torch.full((100,), 0.74)))


@PAIRWISE
def test_extreme_rewards_keep_smoothed_losses_finite(loss):
    winner = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = loss(winner, torch.zeros(2), label=torch.tensor([1.0, 0.75]), label_smoothing=0.25)
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.tensor([7500.0, 3750.0]), atol=1, rtol=0)
    torch.testing.assert_close(winner.grad, torch.tensor([-0.75, 0.375]))


@PAIRWISE
@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1, math.nan])
def test_label_smoothing_outside_0_to_1_is_refused(loss, label_smoothing):
    with pytest.raises(ValueError, match=f"expected a number between 0 and 1, got {label_smoothing}"):
        loss(torch.zeros(2), torch.zeros(2), label_smoothing=label_smoothing)


@PAIRWISE
def test_a_label_of_another_shape_is_refused(loss):
    with pytest.raises(ValueError, match=r"one shape \[C\], got .*'label': \(1,\)"):
        loss(torch.zeros(2), torch.zeros(2), label=torch.ones(1))


@pytest.mark.parametrize(
    ("winner", "loser", "margin"),
    [((3, 1), (3,), None), ((3, 1), (3, 1), None), ((3,), (2,), None), ((3,), (3,), (3, 1)), ((3,), (3,), (1,)),
     ((), (), None)],
)  # fmt: skip
def test_shapes_that_would_broadcast_are_refused(winner, loser, margin):
    tensors = [torch.zeros(shape) for shape in (winner, loser)] + [None if margin is None else torch.zeros(margin)]
    with pytest.raises(ValueError, match=r"expected one-dimensional tensors of one shape \[C\], got .*'winner'"):
        bradley_terry(*tensors)
    with pytest.raises(ValueError, match=r"one shape \[C\]"):
        hinge(*tensors)
    if margin is None:
        with pytest.raises(ValueError, match="one shape"):
            centering(*tensors[:2])
