"""Batches by what their rows cost: which rows go together, on which rank, in which order.

It knows row numbers and costs; no tokens, no dataset, no model. All ranks compute the same plan from (seed, epoch), so
nothing is communicated. With all costs 1 the capacity counts rows, and the batches are those of an ordinary loader.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import ConfigError, DataError
from plaudit.forest.packing import best_fit, next_fit, offsets_of

__all__ = ["BatchPlanner", "EpochPlan"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The batches of one epoch over all ranks. A slot is the batches that the ranks run at the same time.

    Attributes:
        rows: Row numbers, batch after batch, shape [R].
        offsets: Batch b is `rows[offsets[b]:offsets[b + 1]]`, shape [B + 1].
        costs: What each batch costs, in the unit of the capacity, shape [B].
        slots: The batch of each slot and rank, shape [S, world_size] with S * world_size <= B.
        capacity: The budget of a batch.
    """

    rows: Ints
    offsets: Ints
    costs: Ints
    slots: Ints
    capacity: int

    @property
    def fill(self) -> float:
        """Mean share of the budget that a batch uses."""
        return float(self.costs[self.slots].mean() / self.capacity)

    @property
    def imbalance(self) -> float:
        """Mean over slots of the dearest rank's cost over the mean rank's: 1 when no rank waits for another."""
        costs = self.costs[self.slots]  # [S, world_size]
        return float((costs.max(axis=1) / costs.mean(axis=1)).mean())

    def batches(self, rank: int) -> Iterator[list[int]]:
        """The row numbers of each of one rank's batches, in order."""
        return (self.rows[self.offsets[b] : self.offsets[b + 1]].tolist() for b in self.slots[:, rank])


class BatchPlanner:
    """Fills batches up to a budget, the same way on every rank.

    An epoch's rows are shuffled and packed by best fit, a window at a time (`plaudit.forest.packing.best_fit`).

    Args:
        sizes: Cost of each row in distinct tokens, or all 1 where `capacity` counts rows, shape [R].
        capacity: Budget of a batch on one rank, in the unit of `sizes`.
        keys: Rows with the same key are placed together, shape [R]: next to each other, in one batch where they fit.
        shared: How many of a row's tokens are the prompt that rows with its key share, shape [R]: what each further row
            of that key in a batch does not cost. Where rows of one key disagree the least counts.
        seed: Of the order, together with the epoch.
        world_size: Number of ranks.
        window: How many placeable units (rows, or blocks of rows with one key) are looked at at a time.
        shuffle: `False` keeps the order of the rows and closes a batch at the first row that does not fit (next fit);
            rows with one key move to the first of them.
        drop_last: Leave out the last batch where it could take another row, and those that do not make a whole slot.

    Raises:
        ConfigError: A row costs more than the capacity, there are fewer rows than ranks, or an option is out of range.
        DataError: There are no rows, or `sizes`, `keys` and `shared` are not whole numbers for the same rows.
    """

    def __init__(
        self,
        sizes: ArrayLike,
        capacity: int,
        *,
        keys: ArrayLike | None = None,
        shared: ArrayLike | None = None,
        seed: int = 42,
        world_size: int = 1,
        window: int = 4096,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.sizes = _whole_numbers("sizes", sizes)
        if not len(self.sizes) or self.sizes.min() < 1:
            raise DataError("sizes: expected at least one row, and that each costs at least 1.")
        for name, value in (("capacity", capacity), ("world_size", world_size), ("window", window)):
            if value < 1:
                raise ConfigError(f"{name}: expected a whole number above 0, got {value!r}.")
        _check_capacity(self.sizes, capacity)
        if len(self.sizes) < world_size:
            raise ConfigError(
                f"there are {len(self.sizes)} rows for {world_size} processes, and each needs one of its own: train on "
                f"at most {len(self.sizes)} processes, or on more rows."
            )
        self.keys, self.shared = _check_keys(self.sizes, keys, shared)
        self.capacity, self.world_size, self.window = int(capacity), world_size, window
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last

    @property
    def constant(self) -> bool:
        """Whether every epoch needs the same number of batches, whatever the order."""
        return not self.shuffle or (self.keys is None and self.sizes.min() == self.sizes.max())

    def count(self, epoch: int) -> tuple[int, int, list[int]]:
        """How many batches an epoch fills over all ranks (with `drop_last`, keeps), the highest cost, and its rows."""
        rows, offsets = self._pack(self._generator(epoch))
        costs = self._costs(rows, offsets)
        dearest = int(costs.argmax())
        last = costs.min() if self.shuffle else costs[-1]
        short = self.drop_last and last + self.sizes.min() <= self.capacity
        count = len(costs) - int(short)
        return count, int(costs[dearest]), rows[offsets[dearest] : offsets[dearest + 1]].tolist()

    def plan(self, epoch: int, batches: int) -> EpochPlan:
        """The plan of an epoch with a given number of batches.

        An epoch that needs fewer has its dearest batches cut in two, between keys where it can. When even single rows
        are too few for whole slots, the cheapest (fewer than `world_size`) are repeated, as distributed loaders do.
        Each slot takes batches of neighbouring cost and the slots are shuffled, the cheapest last; without `shuffle`
        both are in order.

        Args:
            epoch: Which epoch, from 0.
            batches: How many batches over all ranks, a multiple of `world_size`.

        Raises:
            ConfigError: The epoch needs more batches than that, and `drop_last` is not set.
        """
        generator = self._generator(epoch)
        rows, offsets = self._pack(generator)
        needed = len(offsets) - 1
        if needed > batches and not self.drop_last:
            raise ConfigError(
                f"epoch {epoch} needs {needed} batches and {batches} were planned for: build the sampler with as many "
                "`epochs` or `max_steps` as will be run."
            )
        if needed < batches:
            rows, offsets = self._cut_up(rows, offsets, batches)
        costs = self._costs(rows, offsets)
        order = np.argsort(-costs, kind="stable") if self.shuffle else np.arange(len(costs))
        slots = order[:batches].reshape(-1, self.world_size)
        if self.shuffle:
            slots = np.concatenate([slots[generator.permutation(len(slots) - 1)], slots[-1:]])
            slots = generator.permuted(slots, axis=1)  # else rank 0 would always take the dearest
        return EpochPlan(rows, offsets, costs, slots, self.capacity)

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**64, epoch])

    def _pack(self, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Rows in the order of their batches [R], and where the batches begin and end [B + 1]."""
        order, units, costs = self._units(generator)
        in_order = not self.shuffle or costs.min() == costs.max()  # equal costs fill alike in any order
        bins = next_fit(costs, self.capacity) if in_order else best_fit(costs, self.capacity, self.window)
        row_bins = np.repeat(bins, np.diff(units))
        return order[np.argsort(row_bins, kind="stable")], offsets_of(np.bincount(row_bins))

    def _units(self, generator: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """Rows in order [R], where the units that are placed as one begin and end [U + 1], and their costs [U]."""
        count = len(self.sizes)
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        if self.keys is None:
            return order, np.arange(count + 1), self.sizes[order]
        keys = self.keys.max() + 1
        place = generator.permutation(keys) if self.shuffle else np.arange(keys)
        order = order[np.argsort(place[self.keys[order]], kind="stable")]
        units = offsets_of(np.bincount(place[self.keys]))
        costs = self._costs(order, units)
        starts = set(units.tolist())
        for unit in np.flatnonzero(costs > self.capacity):
            block = order[units[unit] : units[unit + 1]]
            order[units[unit] : units[unit + 1]], pieces = self._pieces(block)
            starts.update((units[unit] + pieces).tolist())
        units = np.array(sorted(starts))
        return order, units, self._costs(order, units)

    def _pieces(self, block: Ints) -> tuple[Ints, Ints]:
        """Cuts rows of one key that exceed the capacity into pieces of which no two fit into one batch."""
        prompt = self.shared[block[0]]
        costs, room = self.sizes[block] - prompt, self.capacity - int(prompt)  # every piece pays the prompt once
        bins = best_fit(costs, room, len(block)) if self.shuffle else next_fit(costs, room)
        return block[np.argsort(bins, kind="stable")], offsets_of(np.bincount(bins))

    def _costs(self, rows: Ints, offsets: Ints) -> Ints:
        """What batches cost, given as consecutive rows: a prompt counts once where its rows stand together."""
        costs = self.sizes[rows]
        if self.keys is not None:
            saved = self.shared[rows]
            saved[1:][self.keys[rows[1:]] != self.keys[rows[:-1]]] = 0
            saved[offsets[:-1]] = 0  # the first row of a batch pays for its prompt
            costs = costs - saved
        return np.add.reduceat(costs, offsets[:-1])

    def _cut_up(self, rows: Ints, offsets: Ints, batches: int) -> tuple[Ints, Ints]:
        """Cuts the dearest batches in two until there are `batches`, and repeats rows where that cannot be."""
        bounds = offsets.tolist()
        costs = self._costs(rows, offsets).tolist()
        heap = [(-cost, *span) for cost, *span in zip(costs, bounds, bounds[1:], strict=False) if span[1] - span[0] > 1]
        heapq.heapify(heap)
        while heap and len(bounds) <= batches:
            _, start, stop = heapq.heappop(heap)
            middle = start + self._middle(rows[start:stop])
            bounds.append(middle)
            halves = self._costs(rows[start:stop], np.array([0, middle - start, stop - start]))
            for cost, low, high in ((halves[0], start, middle), (halves[1], middle, stop)):
                if high - low > 1:
                    heapq.heappush(heap, (-int(cost), low, high))
        bounds.sort()
        missing = batches + 1 - len(bounds)
        if missing:  # every batch is one row by now
            rows = np.concatenate([rows, rows[np.argsort(self.sizes[rows], kind="stable")[:missing]]])
            bounds = list(range(len(rows) + 1))
        return rows, np.array(bounds)

    def _middle(self, rows: Ints) -> int:
        """Where to cut a batch in two: as near its middle as can be, between keys if it has several."""
        ends = np.cumsum(self.sizes[rows])
        distance = np.abs(2 * ends[:-1] - ends[-1])
        if self.keys is not None:
            within = self.keys[rows[1:]] == self.keys[rows[:-1]]
            distance = distance + within * ends[-1]
        return int(distance.argmin()) + 1


def _whole_numbers(name: str, values: ArrayLike) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{name}: expected one whole number for each row, got {array.dtype} of shape {array.shape}.")
    return array.astype(np.int64)


def _check_capacity(sizes: Ints, capacity: int) -> None:
    """Refuses a budget that one row alone exceeds, naming the one that settles it."""
    row = int(sizes.argmax())
    if sizes[row] > capacity:
        raise ConfigError(
            f"max_tokens_per_batch: row {row} alone has {sizes[row]} distinct tokens, and the budget is {capacity} "
            f"({int((sizes > capacity).sum())} of {len(sizes)} rows exceed it). Set it to at least {sizes[row]}, or "
            "lower max_length."
        )


def _check_keys(sizes: Ints, keys: ArrayLike | None, shared: ArrayLike | None) -> tuple[Ints | None, Ints]:
    """Keys numbered as they come up, and for each row the tokens that all rows of its key share."""
    if keys is None:
        if shared is not None:
            raise DataError("shared: expected `keys` with it, which say what rows share.")
        return None, np.zeros_like(sizes)
    numbers = _whole_numbers("keys", keys)
    prompts = np.zeros_like(sizes) if shared is None else _whole_numbers("shared", shared)
    if not len(numbers) == len(prompts) == len(sizes):
        raise DataError(
            f"expected keys and shared for {len(sizes)} rows, got {len(numbers)} keys and {len(prompts)} shared."
        )
    if ((prompts < 0) | (prompts > sizes)).any():
        row = int(np.flatnonzero((prompts < 0) | (prompts > sizes))[0])
        raise DataError(f"shared: row {row} cannot share {prompts[row]} of its {sizes[row]} tokens.")
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse]
    least = np.full(numbers.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, numbers, prompts)
    return numbers, least[numbers]
