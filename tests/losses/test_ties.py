"""The Rao-Kupper loss: its three probabilities, its limits, and refused arguments."""

import math

import pytest
import torch

from plaudit.losses import bradley_terry, rao_kupper

NEVER, ALWAYS = torch.tensor([False]), torch.tensor([True])


def probabilities(difference, threshold):
    """Of winning, losing and a tie, shape [3, C]."""
    zero, eta = torch.zeros_like(difference), torch.tensor(threshold, dtype=difference.dtype)
    never = torch.zeros_like(difference, dtype=torch.bool)
    losses = [
        rao_kupper(difference, zero, never, eta),
        rao_kupper(zero, difference, never, eta),
        rao_kupper(difference, zero, ~never, eta),
    ]
    return torch.exp(-torch.stack(losses))


def random_rows(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    winner, loser, margin = torch.randn(3, 100, generator=generator, dtype=dtype)
    return winner, loser, torch.arange(100) % 3 == 0, margin, torch.rand(100, generator=generator, dtype=dtype)


def test_the_loss_is_minus_the_log_of_the_probability_of_the_outcome():
    # With a threshold of ln 3, equal rewards: sigmoid(-ln 3) = 1/4 each, a tie one half. With a lead of ln 3 too:
    # sigmoid(0) = 1/2, sigmoid(-ln 9) = 1/10, and a tie what is left.
    expected = torch.tensor([[1 / 4, 1 / 2], [1 / 4, 1 / 10], [1 / 2, 2 / 5]])
    torch.testing.assert_close(probabilities(torch.tensor([0.0, math.log(3)]), math.log(3)), expected)


@pytest.mark.parametrize("threshold", [1e-4, 0.1, 1.0, 7.0])
def test_the_probabilities_of_winning_losing_and_a_tie_sum_to_one(threshold):
    total = probabilities(torch.linspace(-12, 12, 49, dtype=torch.float64), threshold).sum(dim=0)
    torch.testing.assert_close(total, torch.ones(49, dtype=torch.float64))


def test_equal_rewards_tie_with_the_hyperbolic_tangent_of_half_the_threshold():
    assert probabilities(torch.zeros(1), 0.6)[2].item() == pytest.approx(math.tanh(0.3))


def test_a_decided_row_is_bradley_terry_with_the_threshold_as_margin():
    winner, loser, _, margin, _ = random_rows()
    threshold, never = torch.tensor(0.7), torch.zeros(100, dtype=torch.bool)
    assert torch.equal(rao_kupper(winner, loser, never, threshold), bradley_terry(winner, loser, threshold.expand(100)))
    torch.testing.assert_close(
        rao_kupper(winner, loser, never, threshold, margin), bradley_terry(winner, loser, margin + threshold)
    )


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"label": torch.full((100,), 0.7)}])
def test_without_a_threshold_it_is_bradley_terry(options):
    winner, loser, _, margin, _ = random_rows()
    never = torch.zeros(100, dtype=torch.bool)
    plain = bradley_terry(winner, loser, margin, **options)
    assert torch.equal(rao_kupper(winner, loser, never, torch.tensor(0.0), margin, **options), plain)
    torch.testing.assert_close(rao_kupper(winner, loser, never, torch.tensor(1e-6), margin, **options), plain)


def test_margin_label_and_smoothing_touch_decided_rows_only():
    winner, loser, tie, margin, label = random_rows()
    threshold = torch.tensor(0.5)
    plain = rao_kupper(winner, loser, tie, threshold)
    for options in ({"margin": margin}, {"label": label}, {"label_smoothing": 0.2}):
        losses = rao_kupper(winner, loser, tie, threshold, **options)
        assert torch.equal(losses[tie], plain[tie])
        assert not torch.isclose(losses[~tie], plain[~tie]).any()


def test_no_smoothing_and_no_label_are_the_plain_loss_to_the_bit():
    winner, loser, tie, margin, _ = random_rows()
    threshold = torch.tensor(0.5)
    plain = rao_kupper(winner, loser, tie, threshold, margin)
    assert torch.equal(rao_kupper(winner, loser, tie, threshold, margin, None, 0.0), plain)
    assert torch.equal(rao_kupper(winner, loser, tie, threshold, margin, torch.ones(100)), plain)


def test_a_soft_label_or_smoothing_weighs_both_outcomes():
    # A threshold and a lead of ln 3: one half and one tenth, as above.
    winner, loser, threshold = torch.tensor([math.log(3)]), torch.zeros(1), torch.tensor(math.log(3))
    expected = torch.tensor([0.75 * math.log(2) + 0.25 * math.log(10)])
    torch.testing.assert_close(rao_kupper(winner, loser, NEVER, threshold, label=torch.tensor([0.75])), expected)
    torch.testing.assert_close(rao_kupper(winner, loser, NEVER, threshold, label_smoothing=0.25), expected)


def test_ties_and_smoothing_by_one_half_are_the_same_for_either_order():
    first, second, tie, _, _ = random_rows()
    losses = [
        rao_kupper(*pair, tie, torch.tensor(0.5), label_smoothing=0.5) for pair in ((first, second), (second, first))
    ]
    torch.testing.assert_close(*losses)


def test_the_gradient_is_that_of_finite_differences_the_threshold_included():
    winner, loser, tie, margin, label = random_rows(torch.float64)
    winner, loser = winner.requires_grad_(), loser.requires_grad_()
    threshold = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *tensors: rao_kupper(*tensors[:2], tie, tensors[2], margin, label, 0.1), (winner, loser, threshold)
    )


def test_ties_raise_the_threshold_and_decided_rows_lower_it():
    for tie, sign in ((ALWAYS, -1), (NEVER, 1)):
        threshold = torch.tensor(0.4, requires_grad=True)
        rao_kupper(torch.tensor([0.3]), torch.zeros(1), tie, threshold).sum().backward()
        assert sign * threshold.grad.item() > 0


def test_a_tie_pulls_its_rewards_together():
    winner, loser = torch.tensor([2.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    rao_kupper(winner, loser, ALWAYS, torch.tensor(0.4)).sum().backward()
    assert winner.grad.item() > 0
    assert loser.grad.item() == -winner.grad.item()


@pytest.mark.parametrize("threshold", [0.0, 1e-30, 1e-4, 1.0, 100.0, 1e4])
def test_extremes_keep_losses_and_gradients_finite(threshold):
    winner = torch.tensor([-1e4, -1e4, 0.0, 0.0, 1e4, 1e4], requires_grad=True)
    eta = torch.tensor(threshold, requires_grad=True)
    losses = rao_kupper(winner, torch.zeros(6), torch.arange(6) % 2 == 0, eta)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert winner.grad.isfinite().all()
    assert eta.grad.isfinite()


def test_a_tie_of_far_rewards_under_a_small_threshold_keeps_its_precision():
    # P(tie) is here exp(-1000) * 2e-6: nothing that float32 could hold
    losses = rao_kupper(torch.tensor([1000.0]), torch.zeros(1), ALWAYS, torch.tensor(1e-6))
    assert losses.item() == pytest.approx(1000 - math.log(2e-6), rel=1e-6)


def test_a_tie_under_a_large_threshold_is_certain():
    assert rao_kupper(torch.tensor([3.0]), torch.zeros(1), ALWAYS, torch.tensor(1e4)).item() == 0


def test_a_threshold_of_zero_gives_decided_rows_the_gradient_of_bradley_terry():
    threshold = torch.tensor(0.0, requires_grad=True)
    rao_kupper(torch.tensor([math.log(3)]), torch.zeros(1), NEVER, threshold).sum().backward()
    assert threshold.grad.item() == pytest.approx(1 / 4)


@pytest.mark.parametrize("threshold", [torch.zeros(1), torch.zeros(2)])
def test_a_threshold_that_is_no_scalar_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold to be a scalar tensor of shape \(\), got \("):
        rao_kupper(torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.bool), threshold)


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match=r"expected a threshold of zero or more, got -0.5: .* softplus"):
        rao_kupper(torch.zeros(1), torch.zeros(1), ALWAYS, torch.tensor(-0.5))


def test_ties_that_are_not_bool_are_refused():
    with pytest.raises(ValueError, match="expected tie to be a tensor of bool, got torch.int64"):
        rao_kupper(torch.zeros(1), torch.zeros(1), torch.ones(1, dtype=torch.int64), torch.tensor(1.0))


@pytest.mark.parametrize("name", ["loser", "tie", "margin", "label"])
def test_shapes_that_would_broadcast_are_refused(name):
    tensors = {"loser": torch.zeros(3), "tie": torch.zeros(3, dtype=torch.bool), name: torch.zeros(1)}
    with pytest.raises(ValueError, match=rf"one shape \[C\], got .*'{name}': \(1,\)"):
        rao_kupper(torch.zeros(3), threshold=torch.tensor(1.0), **tensors)
