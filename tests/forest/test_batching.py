import math
from itertools import groupby

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import BatchRebalanceSampler

from plaudit.errors import ConfigError, DataError
from plaudit.forest.batching import BudgetBatchSampler
from plaudit.forest.planning import BatchPlanner


def lognormal(rows, sigma=1.0, seed=0):
    return np.minimum(np.random.default_rng(seed).lognormal(6, sigma, rows).astype(int) + 1, 8_000)


def uneven(**options):
    """A planner whose epochs need from 42 to 45 batches."""
    sizes = lognormal(60, 0.3)
    return BatchPlanner(sizes, int(sizes.max()), window=32, **options)


def cost_of(batch, sizes, keys=None, shared=None):
    """What a batch costs, by the definition: the prompt of each key once."""
    if keys is None:
        return sum(int(sizes[row]) for row in batch)
    prompts = {keys[row]: min(shared[other] for other in range(len(keys)) if keys[other] == keys[row]) for row in batch}
    return sum(int(sizes[row]) - prompts[keys[row]] for row in batch) + sum(prompts.values())


@st.composite
def runs(draw):
    """Rows, a budget that holds each of them, and a number of ranks."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=60))
    options = {
        "capacity": max(sizes) + draw(st.integers(0, 60)),
        "seed": draw(st.integers(0, 2**40)),
        "world_size": draw(st.integers(1, min(4, len(sizes)))),
        "window": draw(st.sampled_from([1, 3, 16, 4096])),
        "shuffle": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options["keys"] = draw(st.lists(st.integers(-3, 6), min_size=len(sizes), max_size=len(sizes)))
        options["shared"] = [draw(st.integers(0, size)) for size in sizes]
    return sizes, options


def batches_of(planner, epoch=0, **options):
    """For each rank its batches of an epoch."""
    samplers = [BudgetBatchSampler(planner, rank=rank, **options) for rank in range(planner.world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


@settings(deadline=None, max_examples=300)
@given(runs(), st.integers(1, 4))
def test_each_row_comes_once_an_epoch_in_batches_within_the_budget_equally_many_on_each_rank(run, epochs):
    sizes, options = run
    planner = BatchPlanner(sizes, **options)
    length = len(BudgetBatchSampler(planner, epochs=epochs))
    for epoch in range(epochs):
        ranks = batches_of(planner, epoch, epochs=epochs)
        assert [len(batches) for batches in ranks] == [length] * planner.world_size
        every = [batch for batches in ranks for batch in batches]
        assert all(
            batch and cost_of(batch, sizes, options.get("keys"), options.get("shared")) <= planner.capacity
            for batch in every
        )
        rows = sorted(row for batch in every for row in batch)
        if len(every) <= len(sizes):
            assert rows == list(range(len(sizes)))
        else:  # one row a batch, and the last slot is not whole
            assert sorted(set(rows)) == list(range(len(sizes)))
            assert len(rows) - len(sizes) < planner.world_size


@settings(deadline=None, max_examples=200)
@given(runs())
def test_the_plan_prices_batches_as_they_are_laid_out(run):
    sizes, options = run
    sampler = BudgetBatchSampler(BatchPlanner(sizes, **options))
    plan = sampler.plan
    for rank in range(sampler.planner.world_size):
        for batch, cost in zip(plan.batches(rank), plan.costs[plan.slots[:, rank]], strict=True):
            assert cost == cost_of(batch, sizes, options.get("keys"), options.get("shared"))
    assert 0 < plan.fill <= 1 <= plan.imbalance <= sampler.planner.world_size


@settings(deadline=None, max_examples=100)
@given(runs(), st.integers(0, 3))
def test_a_plan_follows_from_seed_and_epoch_alone(run, epoch):
    sizes, options = run
    first, again = (batches_of(BatchPlanner(sizes, **options), epoch, epochs=4) for _ in range(2))
    assert first == again


@settings(deadline=None, max_examples=200)
@given(runs(), st.integers(1, 6))
def test_rows_of_one_prompt_stand_together_and_in_one_batch_where_they_fit(run, prompts):
    sizes, options = run
    keys = [row * 7 % prompts for row in range(len(sizes))]
    options |= {"keys": keys, "shared": [1] * len(sizes), "world_size": 1}
    batches = batches_of(BatchPlanner(sizes, **options))[0]
    homes = {}
    for number, batch in enumerate(batches):
        blocks = [key for key, _ in groupby(keys[row] for row in batch)]
        assert len(blocks) == len(set(blocks))
        for key in blocks:
            homes.setdefault(key, set()).add(number)
    for key, numbers in homes.items():
        rows = [row for row in range(len(sizes)) if keys[row] == key]
        assert len(numbers) == 1 or cost_of(rows, sizes, keys, options["shared"]) > options["capacity"]


def test_a_shared_prompt_is_paid_for_once_in_a_batch():
    sizes, keys, shared = [10] * 6, [5, 9, 5, 9, 5, 9], [8] * 6
    planner = BatchPlanner(sizes, 14, keys=keys, shared=shared, shuffle=False)  # 8 + 3 * 2
    assert batches_of(planner) == [[[0, 2, 4], [1, 3, 5]]]


def test_a_prompt_with_more_rows_than_fit_is_cut_and_paid_for_in_each_piece():
    planner = BatchPlanner([10] * 7, 14, keys=[0] * 7, shared=[8] * 7, shuffle=False)
    assert batches_of(planner) == [[[0, 1, 2], [3, 4, 5], [6]]]
    assert BudgetBatchSampler(planner).plan.costs.tolist() == [14, 14, 10]


@pytest.mark.parametrize(("rows", "capacity"), [(10, 4), (12, 4), (3, 8), (1, 1), (9_000, 5_000)])
def test_counted_in_rows_the_batches_are_those_of_an_ordinary_loader(rows, capacity):
    ordinary = list(DataLoader(range(rows), batch_size=capacity, collate_fn=list))
    assert batches_of(BatchPlanner(np.ones(rows, int), capacity, shuffle=False)) == [ordinary]
    shuffled = batches_of(BatchPlanner(np.ones(rows, int), capacity))[0]
    assert [len(batch) for batch in shuffled] == [len(batch) for batch in ordinary]  # the short one last
    assert sorted(row for batch in shuffled for row in batch) == list(range(rows))


@pytest.mark.parametrize(("rows", "capacity"), [(10, 4), (12, 4), (9, 8)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_without_the_last_batch_the_batches_are_those_of_an_ordinary_loader(rows, capacity, shuffle):
    ordinary = list(DataLoader(range(rows), batch_size=capacity, collate_fn=list, drop_last=True))
    planner = BatchPlanner(np.ones(rows, int), capacity, shuffle=shuffle, drop_last=True)
    batches = batches_of(planner, epochs=3)[0]
    assert [len(batch) for batch in batches] == [len(batch) for batch in ordinary]
    assert shuffle or batches == ordinary


@pytest.mark.parametrize("world_size", [1, 3])
def test_epochs_that_fill_different_numbers_of_batches_are_given_the_same(world_size):
    planner = uneven(world_size=world_size)
    counts = {planner.count(epoch)[0] for epoch in range(12)}
    assert len(counts) > 1
    assert len(BudgetBatchSampler(planner, epochs=12)) == math.ceil(max(counts) / world_size)
    for epoch in range(12):
        ranks = batches_of(planner, epoch, epochs=12)
        assert {len(batches) for batches in ranks} == {math.ceil(max(counts) / world_size)}
        assert sorted(row for batches in ranks for batch in batches for row in batch) == list(range(60))


@pytest.mark.parametrize("drop_last", [True, False])
def test_as_many_epochs_are_planned_as_the_trainer_will_run(drop_last):
    planner = uneven(drop_last=drop_last)
    seen = []
    count = planner.count
    planner.count = lambda epoch: seen.append(epoch) or count(epoch)
    BudgetBatchSampler(planner, epochs=2.5)
    assert seen == [0, 1, 2]
    seen.clear()
    sampler = BudgetBatchSampler(planner, max_steps=100, accumulation=3)
    assert seen == list(range(math.ceil(100 / math.ceil(len(sampler) / 3))))


def test_an_epoch_that_was_not_planned_for_and_needs_more_batches_is_refused():
    planner = uneven()
    counts = [planner.count(epoch)[0] for epoch in range(12)]
    sampler = BudgetBatchSampler(planner, epochs=1)
    sampler.set_epoch(int(np.argmax(counts)))
    with pytest.raises(ConfigError, match=f"needs {max(counts)} batches and {counts[0]} were planned for"):
        list(sampler)


def test_epochs_differ_and_an_iteration_under_way_keeps_its_own():
    sampler = BudgetBatchSampler(BatchPlanner(lognormal(100), 20_000), epochs=2)
    first = list(sampler)
    under_way = iter(sampler)
    sampler.set_epoch(1)
    assert list(under_way) == first
    assert list(sampler) != first


@pytest.mark.parametrize("sigma", [0.5, 1.0])
@pytest.mark.parametrize("rows", [1_000, 20_000])
def test_batches_of_twenty_mean_rows_are_filled_and_balanced(rows, sigma):
    sizes = lognormal(rows, sigma)
    plan = BudgetBatchSampler(BatchPlanner(sizes, int(20 * sizes.mean()), world_size=4)).plan
    assert plan.fill > 0.9
    assert plan.imbalance < (1.02 if rows > 1_000 else 1.1)  # only the last slot is uneven


def test_rows_that_fit_badly_are_filled_up_with_others():
    sizes = np.tile([60, 40], 5_000)  # the shuffled order alone would leave gaps of 20 and 40
    assert BudgetBatchSampler(BatchPlanner(sizes, 100, window=1_000)).plan.fill > 0.95


def test_long_rows_are_spread_over_the_batches():
    sizes = lognormal(20_000)
    lengths = [len(batch) for batch in BudgetBatchSampler(BatchPlanner(sizes, int(20 * sizes.mean())))]
    assert np.std(lengths) < 0.5 * np.mean(lengths)  # 1.2 when placed in decreasing order


def test_the_dearest_batch_of_the_run_is_known_before_it():
    sizes = lognormal(500)
    planner = BatchPlanner(sizes, int(sizes.max()) + 100)
    sampler = BudgetBatchSampler(planner, epochs=3)
    costs = [cost_of(batch, sizes) for epoch in range(3) for batch in batches_of(planner, epoch, epochs=3)[0]]
    assert cost_of(sampler.dearest, sizes) == max(costs)


def test_one_row_a_batch_on_two_ranks_repeats_the_cheapest_to_make_the_last_slot_whole():
    ranks = batches_of(BatchPlanner([3, 2, 3, 3, 3], 3, world_size=2, shuffle=False))
    assert ranks == [[[0], [2], [4]], [[1], [3], [1]]]


def test_the_trainers_wrappers_leave_the_batches_alone_and_resume_in_the_right_order():
    # What `Trainer._get_dataloader` and `_run_epoch` do with a sampler of this class, for the second of two ranks.
    sampler = BudgetBatchSampler(BatchPlanner(lognormal(60), 8_000, world_size=2), rank=1, epochs=2)
    assert isinstance(sampler, BatchRebalanceSampler)
    loader = DataLoader(range(60), batch_sampler=sampler, collate_fn=list)
    loader = prepare_data_loader(loader, num_processes=2, process_index=1)
    assert loader.batch_sampler.batch_sampler is sampler
    loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
    assert len(loader) == len(sampler)
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        sampler.set_epoch(epoch)
        epochs.append(list(loader))
    assert epochs == [batches_of(sampler.planner, epoch, epochs=2)[1] for epoch in range(2)]
    sampler.set_epoch(0)
    resumed = skip_first_batches(loader, 2)
    resumed.set_epoch(1)
    sampler.set_epoch(1)  # hidden behind the wrappers, so it is called by itself
    assert list(resumed) == epochs[1][2:]


def test_a_row_beyond_the_budget_is_refused_with_a_budget_that_would_do():
    with pytest.raises(
        ConfigError, match=r"max_tokens_per_batch: row 2 alone has 90 .* is 50 \(2 of 4 rows.*at least 90"
    ):
        BatchPlanner([10, 60, 90, 50], 50)
    BatchPlanner([10, 60, 90, 50], 90)


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ([], {}, DataError, "at least one row"),
        ([3, 0], {}, DataError, "each costs at least 1"),
        ([0.5], {}, DataError, "sizes: expected one whole number for each row, got float64"),
        ([1, 2], {"capacity": 0}, ConfigError, "capacity: expected a whole number above 0, got 0"),
        ([1, 2], {"window": 0}, ConfigError, "window"),
        ([1, 2], {"world_size": 3}, ConfigError, "2 rows for 3 processes"),
        ([1, 2], {"shared": [0, 0]}, DataError, "expected `keys` with it"),
        ([1, 2], {"keys": [0]}, DataError, "got 1 keys and 2 shared"),
        ([1, 2], {"keys": [0, 0], "shared": [1, 3]}, DataError, "row 1 cannot share 3 of its 2 tokens"),
    ],
)
def test_what_cannot_be_planned_is_refused(sizes, options, error, message):
    with pytest.raises(error, match=message):
        BatchPlanner(sizes, **({"capacity": 8} | options))


@pytest.mark.parametrize(
    "options", [{"rank": 1}, {"rank": -1}, {"epochs": 0}, {"accumulation": 0}, {"epochs": float("nan")}]
)
def test_a_run_that_cannot_be_is_refused(options):
    with pytest.raises(ConfigError, match="expected"):
        BudgetBatchSampler(BatchPlanner([1, 2], 4), **options)


def test_leaving_out_the_only_batch_is_refused():
    with pytest.raises(ConfigError, match="dataloader_drop_last"):
        BudgetBatchSampler(BatchPlanner([1, 1], 4, drop_last=True))
