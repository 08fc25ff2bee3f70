import math

from plaudit.forest.planning import BatchPlanner


class TokenBudgetBatchSampler:
    def __init__(
        self, sizes, capacity, *, keys, shared, seed, num_processes, shuffle, drop_last, epochs, max_steps, accumulation
    ):
        self.planner = BatchPlanner(
            sizes,
            capacity,
            keys=keys,
            shared=shared,
            seed=seed,
            world_size=num_processes,
            shuffle=shuffle,
            drop_last=drop_last,
        )
        self.sizes = self.planner.sizes
        self.n = num_processes
        self.epoch = 0
        per = 0
        e = 0
        best = -1
        while True:
            count, cost, rows = self.planner.count(e)
            per = max(per, count // num_processes if drop_last else math.ceil(count / num_processes))
            if cost > best:
                best = cost
                self.largest_batch = rows
            e += 1
            steps = math.ceil(per / accumulation)
            if e >= (math.ceil(max_steps / steps) if max_steps > 0 else math.ceil(epochs)) or self.planner.constant:
                break
        self.per = per
        p = self.planner.plan(0, per * self.n)
        self.fill = p.fill
        self.imbalance = p.imbalance

    def set_epoch(self, e):
        self.epoch = e

    def __len__(self):
        return self.per * self.n

    def __iter__(self):
        p = self.planner.plan(self.epoch, self.per * self.n)
        for bs in zip(*(p.batches(r) for r in range(self.n))):
            yield from bs
