import math

import pytest
import torch

from plaudit.losses import bradley_terry, centering


def test_the_loss_is_minus_the_log_of_the_probability_that_the_winner_wins():
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4
    winner, loser = torch.tensor([math.log(3), 2.0, 1.0]), torch.tensor([0.0, 2.0, 1.0 + math.log(3)])
    expected = torch.tensor([math.log(4 / 3), math.log(2), math.log(4)])
    torch.testing.assert_close(bradley_terry(winner, loser), expected, atol=1e-6, rtol=1e-6)


def test_a_margin_is_what_the_winner_must_win_by():
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


def test_hopeless_and_certain_comparisons_stay_finite():
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


@pytest.mark.parametrize(
    ("winner", "loser", "margin"),
    [((3, 1), (3,), None), ((3, 1), (3, 1), None), ((3,), (2,), None), ((3,), (3,), (3, 1)), ((3,), (3,), (1,)),
     ((), (), None)],
)  # fmt: skip
def test_shapes_that_would_broadcast_are_refused(winner, loser, margin):
    tensors = [torch.zeros(shape) for shape in (winner, loser)] + [None if margin is None else torch.zeros(margin)]
    with pytest.raises(ValueError, match=r"expected one-dimensional tensors of one shape \[C\], got .*'winner'"):
        bradley_terry(*tensors)
    if margin is None:
        with pytest.raises(ValueError, match="one shape"):
            centering(*tensors[:2])
