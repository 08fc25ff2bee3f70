"""Batches by a budget of tokens: their rows and cost, their order on several processes, and refused arguments."""

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from plaudit.errors import ConfigError, DataError
from plaudit.forest.sampler import TokenBudgetBatchSampler


def lognormal(rows, sigma=1.0, seed=0):
    return np.minimum(np.random.default_rng(seed).lognormal(6, sigma, rows).astype(int) + 1, 8_000)


def cost_of(batch, costs, keys=None, shared=None):
    """The cost of a batch by the definition: the prompt of each key once."""
    if keys is None:
        return sum(int(costs[row]) for row in batch)
    prompts = {keys[row]: min(shared[other] for other in range(len(keys)) if keys[other] == keys[row]) for row in batch}
    return sum(int(costs[row]) - prompts[keys[row]] for row in batch) + sum(prompts.values())


@st.composite
def runs(draw):
    """Costs of rows, and the arguments of a sampler whose budget holds each row."""
    costs = draw(st.lists(st.integers(1, 40), min_size=1, max_size=60))
    options = {
        "budget": max(costs) + draw(st.integers(0, 60)),
        "seed": draw(st.integers(-5, 2**70)),
        "num_processes": draw(st.integers(1, min(4, len(costs)))),
        "shuffle": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options["keys"] = draw(st.lists(st.integers(-3, 6), min_size=len(costs), max_size=len(costs)))
        options["shared"] = [draw(st.integers(0, cost)) for cost in costs]
    return costs, options


def batches_of(*args, epoch=0, **options):
    sampler = TokenBudgetBatchSampler(*args, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


# Every epoch


@settings(deadline=None, max_examples=200)
@given(runs())
def test_each_epoch_has_every_row_once_within_the_budget_in_as_many_batches(run):
    costs, options = run
    sampler = TokenBudgetBatchSampler(costs, **options)
    assert len(sampler) % options["num_processes"] == 0
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        prices = [cost_of(batch, costs, options.get("keys"), options.get("shared")) for batch in batches]
        assert all(batches)
        assert max(prices) <= options["budget"]
        rows = sorted(row for batch in batches for row in batch)
        if len(batches) <= len(costs):
            assert rows == list(range(len(costs)))
        else:  # every batch is one row, and a process would be left without one
            assert sorted(set(rows)) == list(range(len(costs)))
            assert len(rows) - len(costs) < options["num_processes"]


@settings(deadline=None, max_examples=100)
@given(runs())
def test_figures_count_a_prompt_once_in_a_batch(run):
    costs, options = run
    sampler = TokenBudgetBatchSampler(costs, **options)
    prices = [cost_of(batch, costs, options.get("keys"), options.get("shared")) for batch in sampler]
    assert sampler.fill == pytest.approx(np.mean(prices) / options["budget"])
    steps = np.array(prices).reshape(-1, options["num_processes"])
    assert sampler.imbalance == pytest.approx((steps.max(axis=1) / steps.mean(axis=1)).mean())
    largest = cost_of(sampler.largest_batch, costs, options.get("keys"), options.get("shared"))
    assert largest == max(prices)


@settings(deadline=None, max_examples=50)
@given(runs(), st.integers(0, 3))
def test_the_batches_follow_from_seed_and_epoch_alone(run, epoch):
    costs, options = run
    again = TokenBudgetBatchSampler(costs, **options)
    for other in (2, 0, epoch):  # in whatever order epochs are asked for
        again.set_epoch(other)
        batches = list(again)
    assert batches == batches_of(costs, epoch=epoch, **options)


def test_epochs_and_seeds_differ():
    costs = lognormal(100)
    plans = [batches_of(costs, 20_000, seed=seed, epoch=epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all(first != second for n, first in enumerate(plans) for second in plans[:n])


def test_rows_meet_others_in_every_epoch():
    costs = lognormal(400)
    together = [
        {(a, b) for batch in batches_of(costs, 8_000, epoch=epoch) for a in batch for b in batch if a < b}
        for epoch in range(2)
    ]
    assert len(together[0] & together[1]) < 0.1 * len(together[0])


def test_an_iteration_under_way_keeps_its_epoch():
    sampler = TokenBudgetBatchSampler(lognormal(100), 20_000)
    first = list(sampler)
    under_way = iter(sampler)
    sampler.set_epoch(1)
    assert list(under_way) == first
    assert list(sampler) != first


# How full and how even


@pytest.mark.parametrize("sigma", [0.5, 1.0])
@pytest.mark.parametrize("rows", [1_000, 20_000])
def test_batches_of_twenty_mean_rows_are_full_and_alike(rows, sigma):
    costs = lognormal(rows, sigma)
    sampler = TokenBudgetBatchSampler(costs, int(20 * costs.mean()), num_processes=4)
    assert sampler.fill > 0.95
    assert sampler.imbalance < 1.001
    counts = [len(batch) for batch in sampler]
    assert np.std(counts) < 0.15 * np.mean(counts)


@pytest.mark.parametrize("budget", [8_000, 12_000])
def test_a_budget_of_the_longest_row_is_still_filled(budget):
    sampler = TokenBudgetBatchSampler(lognormal(5_000), budget)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sampler.fill > 0.95


def test_rows_that_fit_badly_are_filled_up_with_others():
    costs = np.tile([60, 40], 5_000)  # a shuffled order would leave gaps of 20 and 40
    assert TokenBudgetBatchSampler(costs, 100).fill == 1.0


def test_rows_of_a_third_and_more_of_the_budget_take_as_few_batches_as_they_can():
    # From the emptiest on, 24 rows would need 9 batches: 60 + 50 > 100, so 60 goes with 40, 50 with 50.
    costs = [60, 60, 60, 50, 50, 40, 40, 40] * 3
    sampler = TokenBudgetBatchSampler(costs, 100)
    assert len(sampler) == 12
    assert sampler.fill == 1.0


# Processes


def test_the_batches_of_one_step_cost_about_the_same_and_none_always_the_most():
    costs = lognormal(300, 0.3)
    sampler = TokenBudgetBatchSampler(costs, int(costs.max()), num_processes=3)
    steps = np.array([cost_of(batch, costs) for batch in sampler]).reshape(-1, 3)
    shuffled = np.array([cost_of(batch, costs) for batch in sampler])
    np.random.default_rng(0).shuffle(shuffled)
    assert np.ptp(steps, axis=1).sum() < 0.1 * np.ptp(shuffled.reshape(-1, 3), axis=1).sum()
    assert len(set(steps.argmax(axis=1).tolist())) == 3


def test_accelerate_deals_the_batches_out_and_resumes_in_the_right_place():
    costs = lognormal(60)
    expected = batches_of(costs, 8_000, num_processes=2, epoch=1)
    for process in range(2):
        sampler = TokenBudgetBatchSampler(costs, 8_000, num_processes=2)
        loader = prepare_data_loader(
            DataLoader(range(60), batch_sampler=sampler, collate_fn=list),
            num_processes=2, process_index=process, even_batches=False,
        )  # fmt: skip
        assert len(loader) == len(sampler) / 2
        sampler.set_epoch(1)
        assert list(loader) == expected[process::2]
        assert list(skip_first_batches(loader, 2)) == expected[process::2][2:]


def test_a_missing_batch_is_made_by_halving_the_costliest():
    batches = batches_of([5, 5, 5, 4, 4], 10, num_processes=2, shuffle=False)
    assert batches == [[0], [1], [2, 3], [4]]


def test_a_batch_of_several_prompts_is_halved_between_them():
    batches = batches_of([2] * 4, 8, keys=[0, 1, 1, 1], num_processes=2, shuffle=False)
    assert batches == [[0], [1, 2, 3]]


def test_where_all_batches_are_single_rows_the_cheapest_is_repeated():
    assert batches_of([3, 2, 3, 3, 3], 3, num_processes=2, shuffle=False) == [[0], [1], [2], [3], [4], [1]]


# Prompts


@settings(deadline=None, max_examples=100)
@given(runs(), st.integers(1, 6))
def test_rows_of_one_prompt_are_in_one_batch_where_they_fit(run, prompts):
    costs, options = run
    keys = [row * 7 % prompts for row in range(len(costs))]
    options |= {"keys": keys, "shared": [1] * len(costs), "num_processes": 1}
    batches = batches_of(costs, **options)
    for key in set(keys):
        rows = [row for row in range(len(costs)) if keys[row] == key]
        homes = {number for number, batch in enumerate(batches) if set(batch) & set(rows)}
        assert len(homes) == 1 or cost_of(rows, costs, keys, options["shared"]) > options["budget"]


def test_a_shared_prompt_is_paid_for_once_in_a_batch():
    sampler = TokenBudgetBatchSampler([10] * 6, 14, keys=[5, 9, 5, 9, 5, 9], shared=[8] * 6, shuffle=False)
    assert list(sampler) == [[0, 2, 4], [1, 3, 5]]  # 8 + 3 * 2 tokens
    assert sampler.fill == 1.0


def test_a_prompt_with_more_rows_than_fit_is_split_and_paid_for_in_each_part():
    sampler = TokenBudgetBatchSampler([10] * 7, 14, keys=[0] * 7, shared=[8] * 7, shuffle=False)
    assert list(sampler) == [[0, 1, 2], [3, 4, 5], [6]]
    assert sampler.fill == pytest.approx((14 + 14 + 10) / 3 / 14)


def test_rows_of_one_prompt_that_fill_several_batches_meet_others_in_every_epoch():
    batches = [batches_of([1] * 40, 8, keys=[0] * 40, epoch=epoch) for epoch in range(2)]
    together = [{(a, b) for batch in epoch for a in batch for b in batch if a < b} for epoch in batches]
    assert len(together[0] & together[1]) < 0.5 * len(together[0])


# Rows instead of tokens, and the last batch


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("rows", "budget"), [(10, 4), (12, 4), (9, 8), (9_000, 5_000)])
def test_counted_in_rows_the_batches_are_those_of_an_ordinary_loader(rows, budget, drop_last):
    ordinary = list(DataLoader(range(rows), batch_size=budget, collate_fn=list, drop_last=drop_last))
    options = {"budget": budget, "drop_last": drop_last}
    assert batches_of(np.ones(rows, int), shuffle=False, **options) == ordinary
    shuffled = batches_of(np.ones(rows, int), **options)
    assert [len(batch) for batch in shuffled] == [len(batch) for batch in ordinary]  # the short one last
    assert len({row for batch in shuffled for row in batch}) == sum(map(len, ordinary))


@pytest.mark.parametrize(("num_processes", "length"), [(1, 7), (2, 6), (3, 6), (4, 4)])
def test_without_the_last_batch_no_process_has_more_than_another(num_processes, length):
    costs = [7, 6, 5, 4, 3, 2, 1] * 10  # 280 tokens: seven batches of 40
    options = {"budget": 40, "num_processes": num_processes, "drop_last": True}
    seen = set()
    for epoch in range(10):
        batches = batches_of(costs, epoch=epoch, **options)
        assert len(batches) == length
        seen.update(row for batch in batches for row in batch)
    assert seen == set(range(len(costs)))  # other rows are left out in each epoch


# What is refused


def test_a_row_beyond_the_budget_is_refused_with_a_budget_that_would_do():
    with pytest.raises(
        ConfigError, match=r"max_tokens_per_batch: row 2 alone has 90 .* is 50 \(2 of 4 rows.*at least 90"
    ):
        TokenBudgetBatchSampler([10, 60, 90, 50], 50)
    TokenBudgetBatchSampler([10, 60, 90, 50], 90)


@pytest.mark.parametrize(
    ("costs", "options", "error", "message"),
    [
        ([], {}, DataError, "at least one row"),
        ([3, 0], {}, DataError, "a cost of at least 1"),
        ([1, 2], {"num_processes": 3}, ConfigError, "2 rows for 3 processes"),
        ([1, 2], {"keys": [0]}, DataError, "for 2 rows, got 1 keys and 2 shared"),
        ([1, 2], {"keys": [0, 0], "shared": [1]}, DataError, "for 2 rows, got 2 keys and 1 shared"),
        ([1, 1], {"drop_last": True}, ConfigError, "dataloader_drop_last: 2 rows do not fill a batch of 8"),
    ],
)
def test_impossible_batches_are_refused(costs, options, error, message):
    with pytest.raises(error, match=message):
        TokenBudgetBatchSampler(costs, 8, **options)
