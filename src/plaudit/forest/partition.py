"""A forest cut into blocks of bounded size: small subtrees whole, long chains in pieces.

A block is a run of tokens in depth-first order that hang below the same token. Its queries attend to their path above,
which all of them share and see in full, and to the block itself, under the one-line mask. So scores that no mask would
keep are few, and so are the calls.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from plaudit.forest.trie import Chain, chains_of

__all__ = ["Block", "partition_forest"]

# Tokens of small subtrees that make a block together. A block more costs as much as some 30,000 scores that are masked:
# two subtrees of 128 tokens.
_SMALL = 256
# Scores of a piece of a long chain, over all heads: 2 MB in float32, about what a core's caches hold.
_SCORES = 1 << 19
_LEAST_QUERIES = 32  # fewer rows make matrix products slow


@dataclass(frozen=True)
class Block:
    """Consecutive queries below one token, and the keys they may see.

    Attributes:
        start: Index of the first query.
        stop: One past the last.
        above: Index ranges of the keys of the path above, in the order of their positions.
        first: Position of the first of these: 0, or later where a window leaves out the beginning.
        positions: Positions of the queries, shape [L].
        ends: Their `subtree_end`, shape [L].
        window: As in `ScoreRules`.
        device: Where attention is computed.
    """

    start: int
    stop: int
    above: tuple[tuple[int, int], ...]
    first: int
    positions: NDArray[np.int64]
    ends: NDArray[np.int64]
    window: int | None = None
    device: torch.device | str = "cpu"
    hidden: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, compare=False)

    @cached_property
    def before(self) -> int:
        """Keys of the path above."""
        return sum(stop - start for start, stop in self.above)

    @cached_property
    def rows(self) -> int:
        """Queries, rounded up."""
        return _round_up(self.stop - self.start)

    @cached_property
    def keys(self) -> int:
        """Keys, rounded up."""
        return _round_up(self.before + self.stop - self.start)

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the last columns of the scores [rows, keys]: 0 where a query sees a key, else -inf.

        Shape [rows, n], for the n columns from which on something is hidden. Rows and keys that only fill up see
        everything, and are seen by nobody who counts.
        """
        if dtype not in self.hidden:  # the layers of a batch ask for the same
            queries = np.arange(self.start, self.stop)[:, None]
            hidden = (queries < queries.T) | (queries >= self.ends[None, :])  # [L, L]
            if self.window is not None:
                above = np.arange(self.first, self.first + self.before)
                late = self.positions[:, None] - np.concatenate([above, self.positions])[None, :] >= self.window
                hidden = late | np.pad(hidden, ((0, 0), (self.before, 0)))
            bias = np.zeros((self.rows, self.keys - self.before + hidden.shape[1] - len(hidden)), dtype=np.float32)
            bias[: len(hidden), : hidden.shape[1]][hidden] = -math.inf
            bias[: len(hidden), hidden.shape[1] :] = -math.inf
            self.hidden[dtype] = torch.from_numpy(bias).to(self.device, dtype)
        return self.hidden[dtype]


def partition_forest(
    position_ids: NDArray[np.int64],
    subtree_end: NDArray[np.int64],
    heads: int,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Block]:
    """Cut a forest into blocks of bounded size.

    Args:
        position_ids: Shape [T].
        subtree_end: Shape [T].
        heads: Attention heads, which share the room for scores.
        window: As in `ScoreRules`.
        device: Where attention is computed.
    """
    chains = {chain.start: chain for chain in chains_of(position_ids, subtree_end)}
    paths: dict[int, tuple[tuple[int, int], ...]] = {-1: ()}
    blocks: list[Block] = []

    def add(start: int, stop: int, above: tuple[tuple[int, int], ...]) -> None:
        first = 0 if window is None else max(0, int(position_ids[start]) - window + 1)
        seen = tuple(_from_position(above, first))
        columns = position_ids[start:stop], subtree_end[start:stop]
        blocks.append(Block(start, stop, seen, first, *columns, window, device))

    start = 0
    while start < len(position_ids):
        chain = chains[start]
        above = paths[chain.parent]
        stop = _small_subtrees(chain, chains, subtree_end)
        if stop is not None:
            add(start, stop, above)
            start = stop
            continue
        paths[chain.start] = (*above, (chain.start, chain.stop))
        while start < chain.stop:
            keys = int(position_ids[start]) if window is None else min(int(position_ids[start]), window)
            # The number of queries for which queries * (keys + queries) scores fit.
            fitting = int((math.sqrt(keys * keys + 4 * _SCORES / heads) - keys) / 2)
            stop = min(chain.stop, start + max(_LEAST_QUERIES, fitting))
            add(start, stop, above if start == chain.start else (*above, (chain.start, start)))
            start = stop
    return blocks


def _small_subtrees(chain: Chain, chains: dict[int, Chain], subtree_end: NDArray[np.int64]) -> int | None:
    """Where the run of small subtrees ends that begins with this chain's and its siblings'; `None` if it is large."""
    stop = None
    sibling: Chain | None = chain
    while sibling is not None and sibling.parent == chain.parent:
        end = int(subtree_end[sibling.start])
        if end - chain.start > _SMALL:
            break
        stop = end
        sibling = chains.get(end)
    return stop


def _from_position(path: tuple[tuple[int, int], ...], first: int) -> Iterator[tuple[int, int]]:
    for start, stop in path:
        if stop - start > first:
            yield start + first, stop
        first = max(0, first - (stop - start))


def _round_up(length: int) -> int:
    """A product of a shape not seen before costs ten times one that was (a kernel is generated): few shapes, then."""
    step = 16 if length <= 128 else 64
    return -(-length // step) * step
