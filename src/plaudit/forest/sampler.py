"""Batches of rows that each cost at most a budget of tokens.

The sampler knows row numbers and costs, but no tokens, no dataset and no model.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from plaudit.errors import ConfigError, DataError

__all__ = ["TokenBudgetBatchSampler"]

Ints = NDArray[np.int64]

# An epoch places its rows in decreasing order of `cost * (1 - spread * u)`, where u is uniform in [0, 1). The first of
# these spreads that fills the planned number of batches is taken. Spread 0 always does: its order is random among equal
# costs alone, so its batches cost the same in every epoch.
_SPREADS = (0.5, 0.25, 0.1, 0.0)
_LEAST_FILL = 0.95  # of the budget, for batches that all have about as many rows


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Group rows into batches of at most `budget` tokens, shuffled anew in each epoch.

    Iterating yields the batches of all processes, interleaved: batch i is for process `i % num_processes`, as
    accelerate's `BatchSamplerShard` deals them out with `even_batches=False`. The batches follow from the seed and the
    epoch alone, so that processes agree on them without communication. Every epoch has each row once and the same
    number of batches, a multiple of `num_processes`; for that, a costly batch may be halved, or, where all batches are
    single rows, fewer than `num_processes` rows repeated. Batches that run at the same time cost about the same.

    Rows are placed from the costliest to the cheapest, in a partly random order, each into the emptiest of a fixed
    number of batches (longest processing time first; Graham, 1969, "Bounds on multiprocessing timing anomalies"). All
    batches then cost about the same and have about as many rows, which keeps the noise of gradients even. Rows that
    would fill less than 95% of the budget so, and rows of one cost, are each placed into the fullest batch with room.

    Args:
        costs: Tokens of each row, or 1 for each where the budget counts rows, shape [R].
        budget: Greatest cost of a batch, in the unit of `costs`.
        keys: Rows with equal keys (of one prompt) are placed together, in one batch where they fit, shape [R].
        shared: Tokens that a row shares with all rows of its key, shape [R]: a batch pays for them once. Where the rows
            of a key disagree, the least counts.
        seed: Seed of the shuffles.
        num_processes: Number of processes that take turns in the batches.
        shuffle: `False` keeps the order of the rows and closes a batch at the first row that does not fit; the rows of
            a key follow its first row.
        drop_last: Leave out a last batch with room for any row, and batches that not all processes would have.
        row_numbers: The numbers of the rows in error messages, shape [R]; 0 to R - 1 if `None`.

    Attributes:
        epoch: The epoch that the next iteration yields.

    Raises:
        ConfigError: A row alone costs more than the budget, there are fewer rows than processes, or `drop_last` leaves
            no batch.
        DataError: There are no rows, a cost is below 1, or `keys` or `shared` have another length than `costs`.
    """

    def __init__(
        self,
        costs: ArrayLike,
        budget: int,
        *,
        keys: ArrayLike | None = None,
        shared: ArrayLike | None = None,
        seed: int = 42,
        num_processes: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        row_numbers: ArrayLike | None = None,
    ) -> None:
        self._costs = np.asarray(costs, dtype=np.int64)
        _check_costs(self._costs, budget, num_processes, row_numbers)
        self._budget, self._num_processes, self._seed, self._shuffle = budget, num_processes, seed, shuffle
        self._keys, self._shared = _numbered_keys(len(self._costs), keys, shared)
        self._rows, self._starts, self._unit_costs = self._units()
        self._pack, loads = self._choose_packing(1 if drop_last else num_processes)
        self._packed = len(loads)
        self._length = _round_up(len(loads), num_processes)
        if drop_last:
            full = len(loads) - int(loads[-1] + self._unit_costs.max() <= budget)
            self._length = full // num_processes * num_processes
        if not self._length:
            raise ConfigError(
                f"dataloader_drop_last: {len(self._costs)} rows do not fill a batch of {budget} on each of "
                f"{num_processes} processes, so no batch is left. Lower the budget, or keep the last batch."
            )
        self.epoch = 0
        self._planned: tuple[int, list[list[int]], Ints] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._plan()[0])

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields; an iteration under way keeps its own."""
        self.epoch = epoch

    @property
    def largest_batch(self) -> list[int]:
        """Row indices of the costliest batch of this epoch."""
        batches, costs = self._plan()
        return batches[int(costs.argmax())]

    @property
    def greatest_cost(self) -> int:
        """Cost of the costliest row."""
        return int(self._costs.max())

    @property
    def fill(self) -> float:
        """Mean share of the budget that a batch of this epoch uses."""
        return float(self._plan()[1].mean() / self._budget)

    @property
    def imbalance(self) -> float:
        """Mean over the steps of this epoch of the greatest cost on a process divided by the mean cost."""
        costs = self._plan()[1].reshape(-1, self._num_processes)
        return float((costs.max(axis=1) / costs.mean(axis=1)).mean())

    def _units(self) -> tuple[Ints, Ints, Ints]:
        """Return the rows [R], one unit after the other, and the start [U] and the cost [U] of each unit.

        A unit is the rows of one key, or a part of them where together they exceed the budget.
        """
        own = self._costs - self._shared
        prompts = np.zeros(self._keys.max() + 1, np.int64)
        prompts[self._keys] = self._shared
        parts = np.zeros_like(self._keys)
        for key in np.flatnonzero(prompts + np.bincount(self._keys, own) > self._budget):
            rows = np.flatnonzero(self._keys == key)
            parts[rows] = _next_fit(own[rows], self._budget - int(prompts[key]))
        rows = np.lexsort((parts, self._keys))
        starts = np.flatnonzero((np.diff(self._keys[rows]) != 0) | (np.diff(parts[rows]) != 0)) + 1
        starts = np.concatenate([[0], starts])
        return rows, starts, np.add.reduceat(own[rows], starts) + self._shared[rows[starts]]

    def _choose_packing(self, multiple: int) -> tuple[Callable[[Ints], Ints], Ints]:
        """Return a function from costs [U] to the batch of each [U], and the costs of the unshuffled batches [B]."""
        pack: Callable[[Ints], Ints] = partial(_best_fit if self._shuffle else _next_fit, budget=self._budget)
        costs = np.sort(self._unit_costs)[::-1] if self._shuffle else self._unit_costs
        placed = pack(costs)
        fewest = int(placed.max()) + 1
        most = max(fewest, int(costs.sum() / (_LEAST_FILL * self._budget)))
        if self._shuffle and costs[0] > costs[-1]:
            # One shuffle has to fit as well, or every epoch would fall back to spread 0.
            trial = self._unit_costs[self._shuffled(np.random.default_rng(self._seed % 2**64), _SPREADS[1])]
            for count in range(_round_up(fewest, multiple), _round_up(most, multiple) + 1, max(1, fewest // 200)):
                count = _round_up(count, multiple)
                even_pack = partial(_emptiest_first, budget=self._budget, count=count)
                even = even_pack(costs)
                if max(even.max(), even_pack(trial).max()) < count:
                    return even_pack, np.bincount(even, costs)
        return pack, np.bincount(placed, costs)

    def _plan(self) -> tuple[list[list[int]], Ints]:
        """Return this epoch's batches in the order of `__iter__`, and their costs; the last epoch's plan is kept."""
        if self._planned is None or self._planned[0] != self.epoch:
            generator = np.random.default_rng([self._seed % 2**64, self.epoch])
            batches = self._packed_rows(generator)
            costs = [self._cost(batch) for batch in batches]
            while len(batches) < self._length:
                self._add_batch(batches, costs)
            order = self._order(np.array(costs), generator)
            self._planned = self.epoch, [batches[number] for number in order], np.array(costs)[order]
        return self._planned[1:]

    def _packed_rows(self, generator: np.random.Generator) -> list[list[int]]:
        """Return batches of whole units, as lists of rows."""
        placed = self._placed_units(generator)
        placed_rows = np.repeat(placed, np.diff(self._starts, append=len(self._rows)))
        rows = self._shuffled_rows(generator) if self._shuffle else self._rows
        rows = rows[np.argsort(placed_rows, kind="stable")]
        return [batch.tolist() for batch in np.split(rows, np.cumsum(np.bincount(placed_rows))[:-1])]

    def _shuffled_rows(self, generator: np.random.Generator) -> Ints:
        """Return the rows [R], of which those with one key and one cost have changed places."""
        shuffled = generator.permutation(len(self._rows))
        here, there = (np.lexsort((self._costs[rows], self._keys[rows])) for rows in (self._rows, shuffled))
        rows = np.empty_like(shuffled)
        rows[here] = shuffled[there]
        return rows

    def _placed_units(self, generator: np.random.Generator) -> Ints:
        """Return the batch of each unit [U]."""
        costs = self._unit_costs
        if not self._shuffle:
            return self._pack(costs)
        for spread in _SPREADS:
            order = self._shuffled(generator, spread)
            placed = self._pack(costs[order])
            if placed.max() + 1 == self._packed:
                break
        return placed[np.argsort(order)]

    def _shuffled(self, generator: np.random.Generator, spread: float) -> Ints:
        """Return the units [U] in an order of decreasing cost that is random within the spread; see `_SPREADS`."""
        order = generator.permutation(len(self._unit_costs))
        weights = self._unit_costs[order] * (1 - spread * generator.random(len(order)))
        return order[np.argsort(-weights, kind="stable")]

    def _order(self, costs: Ints, generator: np.random.Generator) -> Ints:
        """Return the order in which the batches run: at each step, the processes take batches of like cost.

        The steps are shuffled, the cheapest last. The batches of a step are shuffled too, or the first process would
        always take the costliest.
        """
        order = np.argsort(-costs, kind="stable") if self._shuffle else np.arange(len(costs))
        steps = order[: self._length].reshape(-1, self._num_processes)
        if self._shuffle:
            steps = np.concatenate([steps[generator.permutation(len(steps) - 1)], steps[-1:]])
            steps = generator.permuted(steps, axis=1)
        return steps.reshape(-1)

    def _add_batch(self, batches: list[list[int]], costs: list[int]) -> None:
        """Halve the costliest batch, between two keys if it has several; repeat a row if all batches are single."""
        place = max(range(len(batches)), key=lambda number: (len(batches[number]) > 1, costs[number]))
        rows = batches[place]
        if len(rows) == 1:
            repeated = int(np.argsort(self._costs, kind="stable")[len(batches) - len(self._costs)])
            batches.append([repeated])
            costs.append(int(self._costs[repeated]))
            return
        ends = np.arange(1, len(rows))
        inside_key = np.diff(self._keys[rows]) == 0
        half = ends[np.argmin(np.abs(2 * ends - len(rows)) + len(rows) * inside_key)]
        batches[place : place + 1] = halves = [rows[:half], rows[half:]]
        costs[place : place + 1] = [self._cost(half) for half in halves]

    def _cost(self, rows: list[int]) -> int:
        _, first = np.unique(self._keys[rows], return_index=True)
        shared = self._shared[rows]
        return int(self._costs[rows].sum() - shared.sum() + shared[first].sum())


def _next_fit(costs: Ints, budget: int) -> Ints:
    """Return the batch of each cost [U]: the current one, or a new one where the cost does not fit."""
    ends = np.cumsum(costs).tolist()
    new, start, used = np.zeros(len(costs), np.int64), 0, 0
    while (start := bisect_right(ends, used + budget, lo=start)) < len(ends):
        new[start] = 1
        used = ends[start - 1]
    return np.cumsum(new)


def _best_fit(costs: Ints, budget: int) -> Ints:
    """Return the batch of each cost [U]: the fullest one with room for it, or a new one."""
    placed, smallest, count = np.empty(len(costs), np.int64), costs.min(), 0
    room: list[int] = []  # of the batches that can take another cost, ascending
    names: list[int] = []  # the numbers of these batches
    for unit, cost in enumerate(costs.tolist()):
        place = bisect_left(room, cost)
        if place < len(room):
            name, left = names.pop(place), room.pop(place) - cost
        else:
            name, left, count = count, budget - cost, count + 1
        placed[unit] = name
        if left >= smallest:
            place = bisect_left(room, left)
            names.insert(place, name)
            room.insert(place, left)
    return placed


def _emptiest_first(costs: Ints, budget: int, count: int) -> Ints:
    """Return the batch of each cost [U]: the emptiest of `count`, or a further one where none has room."""
    placed = np.empty(len(costs), np.int64)
    loads = [(0, name) for name in range(count)]
    for unit, cost in enumerate(costs.tolist()):
        load, name = loads[0]
        if load + cost <= budget:
            heapq.heapreplace(loads, (load + cost, name))
        else:
            name = len(loads)
            heapq.heappush(loads, (cost, name))
        placed[unit] = name
    return placed


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check_costs(costs: Ints, budget: int, num_processes: int, row_numbers: ArrayLike | None) -> None:
    if not len(costs) or costs.min() < 1:
        raise DataError("costs: expected at least one row, and a cost of at least 1 for each.")
    row = int(costs.argmax())
    if costs[row] > budget:
        raise ConfigError(
            f"max_tokens_per_batch: row {row if row_numbers is None else np.asarray(row_numbers)[row]} alone has "
            f"{costs[row]} distinct tokens, and the budget is {budget} "
            f"({int((costs > budget).sum())} of {len(costs)} rows exceed it). Set it to at least {costs[row]}, or "
            "lower max_length."
        )
    if len(costs) < num_processes:
        raise ConfigError(
            f"there are {len(costs)} rows for {num_processes} processes, and each process needs at least one: train on "
            f"at most {len(costs)} processes, or on more rows."
        )


def _numbered_keys(count: int, keys: ArrayLike | None, shared: ArrayLike | None) -> tuple[Ints, Ints]:
    """Return for each row its key, numbered in the order of their first rows, and the least `shared` of this key."""
    keys = np.arange(count) if keys is None else np.asarray(keys)
    prompts = np.zeros(count, np.int64) if shared is None else np.asarray(shared, dtype=np.int64)
    if not len(keys) == len(prompts) == count:
        raise DataError(f"expected keys and shared for {count} rows, got {len(keys)} keys and {len(prompts)} shared.")
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse]
    least = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(least, numbers, prompts)
    return numbers, least[numbers]
