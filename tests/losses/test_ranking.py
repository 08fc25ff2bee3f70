"""The Plackett-Luce loss: against its definition, Bradley-Terry and finite differences, and refused arguments."""

import math

import pytest
import torch

from plaudit.losses import bradley_terry, plackett_luce

LOGS = torch.tensor([1.0, 2.0, 3.0]).log()  # rewards whose softmax is 1/6, 2/6, 3/6


def random_groups(dtype=torch.float32):
    """Groups of one to six sequences, shuffled together, with ties and gaps in the numbers of the groups."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([1, 2, 2, 3, 4, 5, 6, 6])
    row = torch.repeat_interleave(torch.tensor([7, 0, 2, 3, 11, 5, 6, 9]), size)
    row = row[torch.randperm(len(row), generator=generator)]
    rank = torch.randint(4, (len(row),), generator=generator)
    return torch.randn(len(row), generator=generator, dtype=dtype), row, rank


def by_hand(rewards, row, rank, label_smoothing=0.0):
    """Losses of one stage at a time, by the definition."""
    losses, rows = [], []
    for i in range(len(rewards)):
        candidates = [j for j in range(len(rewards)) if row[j] == row[i] and rank[j] >= rank[i]]
        if all(rank[j] == rank[i] for j in candidates):
            continue
        nll = {j: -(rewards[j] - rewards[candidates].logsumexp(0)) for j in candidates}
        others = torch.stack([nll[j] for j in candidates if j != i])
        losses.append((1 - label_smoothing) * nll[i] + label_smoothing * others.mean())
        rows.append(row[i])
    return torch.stack(losses), torch.stack(rows)


def test_a_ranking_is_a_choice_of_the_best_then_of_the_next():
    # the best of all three is chosen with probability 3/6, the second of the other two with 2/3
    losses, row = plackett_luce(LOGS, torch.tensor([4, 4, 4]), torch.tensor([2, 1, 0]))
    torch.testing.assert_close(losses, torch.tensor([math.log(3 / 2), math.log(2)]))
    assert row.tolist() == [4, 4]


def test_the_probabilities_of_all_rankings_sum_to_one():
    row, total = torch.zeros(4, dtype=torch.long), 0.0
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.5])
    for rank in torch.cartesian_prod(*[torch.arange(4)] * 4):
        if len(set(rank.tolist())) == 4:
            total += torch.exp(-plackett_luce(rewards, row, rank)[0].sum()).item()
    assert total == pytest.approx(1, abs=1e-6)


def test_equal_ranks_are_each_chosen_from_all_that_are_no_better():
    row = torch.zeros(3, dtype=torch.long)
    losses, _ = plackett_luce(LOGS, row, torch.tensor([1, 0, 0]))  # 2/6 and 3/6, of all three both times
    torch.testing.assert_close(losses, torch.tensor([math.log(3), math.log(2)]))
    losses, _ = plackett_luce(LOGS, row, torch.tensor([1, 1, 0]))  # the last rank makes no stage
    torch.testing.assert_close(losses, torch.tensor([math.log(2)]))


def test_only_the_order_of_the_ranks_counts():
    rewards, row, rank = random_groups()
    expected, _ = plackett_luce(rewards, row, rank)
    assert torch.equal(plackett_luce(rewards, row, rank * 10 - 5)[0], expected)
    assert torch.equal(plackett_luce(rewards, row, rank.double() ** 2)[0], expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_many_groups_at_once_have_the_losses_of_the_definition(label_smoothing):
    rewards, row, rank = random_groups()
    losses, stage_row = plackett_luce(rewards, row, rank, label_smoothing=label_smoothing)
    expected, expected_row = by_hand(rewards, row, rank, label_smoothing)
    torch.testing.assert_close(losses, expected)
    assert torch.equal(stage_row, expected_row)
    assert 15 < len(losses) < len(rewards)


def test_smoothing_adds_the_mean_loss_of_the_other_candidates():
    # first 3/6 against 2/6 and 1/6, then 2/3 against 1/3
    losses, _ = plackett_luce(LOGS, torch.zeros(3, dtype=torch.long), torch.tensor([2, 1, 0]), label_smoothing=0.25)
    first = 0.75 * math.log(2) + 0.25 * (math.log(3) + math.log(6)) / 2
    second = 0.75 * math.log(3 / 2) + 0.25 * math.log(3)
    torch.testing.assert_close(losses, torch.tensor([second, first]))


def test_no_smoothing_and_no_label_are_the_plain_loss_to_the_bit():
    rewards, row, rank = random_groups()
    plain, _ = plackett_luce(rewards, row, rank)
    assert torch.equal(plackett_luce(rewards, row, rank, None, None, 0.0)[0], plain)
    assert torch.equal(plackett_luce(rewards, row, rank, torch.zeros(12), torch.ones(12))[0], plain)


def test_the_order_of_the_sequences_does_not_matter():
    rewards, row, rank = random_groups()
    losses, stage_row = plackett_luce(rewards, row, rank)
    for seed in range(3):
        order = torch.randperm(len(row), generator=torch.Generator().manual_seed(seed))
        shuffled, shuffled_row = plackett_luce(rewards[order], row[order], rank[order])
        torch.testing.assert_close(shuffled.sort()[0], losses.sort()[0])
        assert torch.equal(shuffled_row.sort()[0], stage_row.sort()[0])


def test_a_group_does_not_see_the_others():
    rewards, row, rank = random_groups()
    losses, stage_row = plackett_luce(rewards, row, rank)
    alone, _ = plackett_luce(rewards[row == 5], row[row == 5], rank[row == 5])
    torch.testing.assert_close(alone, losses[stage_row == 5])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("with_margin", [False, True])
@pytest.mark.parametrize("with_label", [False, True])
def test_a_group_of_two_is_bradley_terry_to_the_bit(label_smoothing, with_margin, with_label):
    generator = torch.Generator().manual_seed(0)
    winner, loser = 5 * torch.randn(2, 50, generator=generator)
    margin = torch.randn(50, generator=generator) if with_margin else None
    label = torch.rand(50, generator=generator) if with_label else None
    row, rank = torch.arange(50).repeat(2), torch.arange(2).repeat_interleave(50)
    expected = bradley_terry(winner, loser, margin, label, label_smoothing)
    losses, stage_row = plackett_luce(torch.cat([winner, loser]), row, rank, margin, label, label_smoothing)
    assert torch.equal(losses, expected)
    assert torch.equal(stage_row, torch.arange(50))
    # and the same next to a group of three
    rewards = torch.cat([LOGS, winner, loser])
    row, rank = torch.cat([torch.full((3,), 50), row]), torch.cat([torch.tensor([2, 1, 0]), rank])
    margin = None if margin is None else torch.cat([margin, torch.zeros(1)])
    label = None if label is None else torch.cat([label, torch.ones(1)])
    losses, stage_row = plackett_luce(rewards, row, rank, margin, label, label_smoothing)
    assert torch.equal(losses[stage_row < 50], expected)


def test_a_label_and_a_margin_are_for_the_better_ranked_sequence_in_either_place():
    rewards, rank = torch.tensor([1.0, 4.0]), torch.tensor([1, 0])
    losses, _ = plackett_luce(rewards, torch.zeros(2, dtype=torch.long), rank, torch.tensor([0.5]), torch.tensor([0.8]))
    expected = bradley_terry(rewards[1:], rewards[:1], torch.tensor([0.5]), torch.tensor([0.8]))
    assert torch.equal(losses, expected)


@pytest.mark.parametrize(
    ("row", "rank"),
    [([], []), ([3], [0]), ([0, 0], [1, 1]), ([0, 1, 2], [0, 1, 2]), ([0, 1, 0, 1, 0], [2, 1, 2, 1, 2])],
)
def test_groups_of_one_rank_make_no_stage(row, rank):
    rewards = torch.zeros(len(row), requires_grad=True)
    row, rank = torch.tensor(row, dtype=torch.long), torch.tensor(rank, dtype=torch.long)
    losses, stage_row = plackett_luce(rewards, row, rank, label_smoothing=0.1)
    assert losses.shape == stage_row.shape == (0,)
    losses.sum().backward()
    assert torch.equal(rewards.grad, torch.zeros(len(row)))


def test_a_tied_group_of_two_makes_no_stage_whatever_its_margin_and_label():
    losses, stage_row = plackett_luce(
        torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]),
        torch.tensor([2.0, 0.0]), torch.tensor([0.5, 1.0]),
    )  # fmt: skip
    assert stage_row.tolist() == [1]
    torch.testing.assert_close(losses, torch.tensor([math.log(2)]))


def test_the_gradient_is_that_of_finite_differences():
    rewards, row, rank = random_groups(torch.float64)
    assert torch.autograd.gradcheck(
        lambda rewards: plackett_luce(rewards, row, rank, label_smoothing=0.2)[0], rewards.requires_grad_()
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_extreme_rewards_keep_losses_and_gradients_finite(label_smoothing):
    rewards = torch.tensor([-1e4, 1e4, 0.0, 1e4, -1e4, -1e30, 1e30], requires_grad=True)
    row, rank = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 1, 0, 1])
    losses, _ = plackett_luce(rewards, row, rank, label_smoothing=label_smoothing)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert rewards.grad.isfinite().all()
    if not label_smoothing:
        assert losses.tolist() == pytest.approx([2e4, 0.0, 0.0, 2e30])
        assert rewards.grad.tolist() == [-1, 1, 0, 0, 0, -1, 1]


def test_a_common_offset_costs_no_precision():
    rewards, row, rank = random_groups()
    rewards = (rewards * 256).round() / 256  # so that the sum below is exact in float32
    assert torch.equal(plackett_luce(rewards + 1024, row, rank)[0], plackett_luce(rewards, row, rank)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"margin": torch.tensor([1.0, 0.5])},
            r"a margin applies to two .* expected 0 .* got \[0.5\] for the rows \[1\]",
        ),
        (
            {"label": torch.tensor([0.5, 0.25])},
            r"a label applies to two .* expected 1 .* got \[0.25\] for the rows \[1\]",
        ),
        ({"label": torch.ones(1)}, r"every row to index label, of length 1, got rows \[0, 1\]"),
        ({"margin": torch.zeros(2), "label": torch.ones(3)}, r"one shape \[R\], got .*'margin': \(2,\)"),
        ({"margin": torch.zeros(2, 1)}, r"one shape \[R\]"),
        ({"label_smoothing": 2.0}, "between 0 and 1, got 2.0"),
    ],
)
def test_options_that_a_group_of_three_cannot_have_are_refused(options, message):
    row, rank = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 1])
    with pytest.raises(ValueError, match=message):
        plackett_luce(torch.zeros(5), row, rank, **options)


def test_a_negative_row_indexes_no_margin():
    with pytest.raises(ValueError, match=r"every row to index margin, of length 2, got rows \[-1\]"):
        plackett_luce(torch.zeros(2), torch.tensor([-1, -1]), torch.tensor([0, 1]), torch.zeros(2))


@pytest.mark.parametrize("row", [torch.zeros(2), torch.zeros(2, dtype=torch.bool)])
def test_rows_that_are_no_integers_are_refused(row):
    with pytest.raises(ValueError, match=r"expected row to be a tensor of integers, got torch\."):
        plackett_luce(torch.zeros(2), row, torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["rewards", "row", "rank"])
@pytest.mark.parametrize("shape", [(1,), (3, 1), ()])
def test_shapes_that_differ_are_refused(name, shape):
    tensors = {key: torch.zeros(3, dtype=torch.long) for key in ("rewards", "row", "rank")}
    with pytest.raises(ValueError, match=rf"one shape \[N\], got .*'{name}'"):
        plackett_luce(**tensors | {name: torch.zeros(shape, dtype=torch.long)})
