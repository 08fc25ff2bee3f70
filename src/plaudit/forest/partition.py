"""Partition of a forest into blocks of bounded size, or into calls of an attention kernel.

A block is a run of tokens in depth-first order that hang below one token. Its queries attend to the path above them,
which they have in common and see in full, and to the block itself, under the mask of the forest. So few scores are
computed that the mask would hide, in few products of matrices. A kernel computes the attention to the path in calls of
its own instead, and needs no bound on scores, which it does not keep.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from plaudit.forest.trie import Chain, chains_of

__all__ = ["Block", "BlockLimits", "KernelCall", "partition_forest", "partition_kernel_calls"]

IndexRanges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BlockLimits:
    """Bounds on the size of blocks. The defaults were measured on CPUs.

    Attributes:
        subtree_tokens: Most tokens of the subtrees that make a block together. A further block costs as much as some
            30,000 masked scores, which are those of two subtrees of 128 tokens.
        scores: Most scores of a part of a long chain, over all heads. The default is 2 MB in float32, about the size of
            the caches of a core.
        queries: Least queries of a part of a long chain, however many scores: products of fewer rows are slow.
    """

    subtree_tokens: int = 256
    scores: int = 1 << 19
    queries: int = 32


_LIMITS = BlockLimits()
_CALL_TOKENS = 128  # fewer than for blocks, since a call of a kernel costs less than the products of a block


@dataclass(frozen=True)
class Block:
    """Consecutive queries below one token, and the keys that they may see.

    Attributes:
        start: Index of the first query.
        stop: One past the last query.
        path: Index ranges of the keys above the block, in the order of their positions.
        first_position: Position of the first key of the path: 0, or more where a window hides the beginning.
        positions: Positions of the queries, shape [L].
        ends: `subtree_end` of the queries, shape [L].
        window: Sliding window of the layer, as in `ScoreRules`.
        device: Device of the masks.
    """

    start: int
    stop: int
    path: IndexRanges
    first_position: int
    positions: NDArray[np.int64]
    ends: NDArray[np.int64]
    window: int | None = None
    device: torch.device | str = "cpu"
    _biases: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def path_length(self) -> int:
        """Number of keys above the block."""
        return sum(stop - start for start, stop in self.path)

    @cached_property
    def rows(self) -> int:
        """Number of queries, rounded up."""
        return _round_up(self.stop - self.start)

    @cached_property
    def keys(self) -> int:
        """Number of keys, rounded up."""
        return _round_up(self.path_length + self.stop - self.start)

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the bias to add to the last n columns of the scores [rows, keys], shape [rows, n].

        It is 0 where a query sees a key and -inf elsewhere; the columns before them are seen by all queries. Rows and
        keys that only round a block up see everything and are not seen.
        """
        if dtype not in self._biases:  # all layers of a batch need the same
            hidden = self._hidden()
            queries, keys = hidden.shape
            bias = np.zeros((self.rows, self.keys - self.path_length + keys - queries), dtype=np.float32)
            bias[:queries, :keys][hidden] = -math.inf
            bias[:queries, keys:] = -math.inf
            self._biases[dtype] = torch.from_numpy(bias).to(self.device, dtype)
        return self._biases[dtype]

    def _hidden(self) -> NDArray[np.bool_]:
        """Return which of its keys a query does not see [L, L], or with a window [L, path + L]."""
        hidden = _hidden_below(self.start, self.stop, self.ends)
        if self.window is None:
            return hidden
        path = np.arange(self.first_position, self.first_position + self.path_length)
        distance = self.positions[:, None] - np.concatenate([path, self.positions])[None, :]
        return (distance >= self.window) | np.pad(hidden, ((0, 0), (self.path_length, 0)))


def partition_forest(
    position_ids: NDArray[np.int64],
    subtree_end: NDArray[np.int64],
    heads: int,
    window: int | None = None,
    device: torch.device | str = "cpu",
    limits: BlockLimits = _LIMITS,
) -> list[Block]:
    """Partition a forest into blocks of bounded size, in depth-first order.

    Small subtrees of one parent make a block together; a long chain makes blocks of as many queries as the limit of
    scores allows.

    Args:
        position_ids: Depth of each token, shape [T].
        subtree_end: One past the last descendant of each token, shape [T].
        heads: Number of attention heads, which share the limit of scores.
        window: Sliding window of the layer, as in `ScoreRules`.
        device: Device on which attention is computed.
        limits: Bounds on the size of blocks.
    """
    chains = {chain.start: chain for chain in chains_of(position_ids, subtree_end)}
    paths: dict[int, IndexRanges] = {-1: ()}
    blocks: list[Block] = []

    def add(start: int, stop: int, path: IndexRanges) -> None:
        first = 0 if window is None else max(0, int(position_ids[start]) - window + 1)
        seen = tuple(_from_position(path, first))
        columns = position_ids[start:stop], subtree_end[start:stop]
        blocks.append(Block(start, stop, seen, first, *columns, window, device))

    start = 0
    while start < len(position_ids):
        chain = chains[start]
        above = paths[chain.parent]
        stop = _end_of_small_subtrees(chain, chains, subtree_end, limits.subtree_tokens)
        if stop is not None:
            add(start, stop, above)
            start = stop
            continue
        paths[chain.start] = (*above, (chain.start, chain.stop))
        while start < chain.stop:
            keys = int(position_ids[start]) if window is None else min(int(position_ids[start]), window)
            stop = min(chain.stop, start + max(limits.queries, _fitting_queries(keys, limits.scores / heads)))
            add(start, stop, above if start == chain.start else (*above, (chain.start, start)))
            start = stop
    return blocks


@dataclass(frozen=True)
class KernelCall:
    """One call of an attention kernel: consecutive queries, and consecutive keys that they see.

    Attributes:
        queries: The indices of the queries.
        keys: The indices of the keys.
        is_causal: True where queries and keys are the same chain of tokens.
        is_first: True where no earlier call has these queries.
        hidden: Which keys a query does not see, shape [L, L]; `None` where the call is causal or all see all.
    """

    queries: slice
    keys: slice
    is_causal: bool
    is_first: bool
    hidden: NDArray[np.bool_] | None = None
    _biases: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the bias to add to the scores [L, L]: 0 where a query sees a key and -inf elsewhere, or `None`."""
        if self.hidden is None:
            return None
        if dtype not in self._biases:  # all layers of a batch need the same
            bias = np.where(self.hidden, np.float32(-math.inf), np.float32(0))
            self._biases[dtype] = torch.from_numpy(bias).to(dtype)
        return self._biases[dtype]


def partition_kernel_calls(
    position_ids: NDArray[np.int64], subtree_end: NDArray[np.int64], subtree_tokens: int = _CALL_TOKENS
) -> list[KernelCall]:
    """Partition the attention of a forest into calls of a kernel, in depth-first order.

    Small subtrees of one parent make a call together, under a mask. A longer chain makes a causal call, and another in
    which all tokens below the chain see all of it. So each query has a call for itself and one for each long chain
    above it.

    Args:
        position_ids: Depth of each token, shape [T].
        subtree_end: One past the last descendant of each token, shape [T].
        subtree_tokens: Most tokens of the subtrees that make a call together. With fewer, the fixed cost of a call
            counts; with more, the scores that the mask hides. The default was measured on a CPU.
    """
    chains = {chain.start: chain for chain in chains_of(position_ids, subtree_end)}
    calls: list[KernelCall] = []
    start = 0
    while start < len(position_ids):
        chain = chains[start]
        is_root = chain.parent < 0
        stop = _end_of_small_subtrees(chain, chains, subtree_end, subtree_tokens)
        if stop is not None and stop > chain.stop:
            own = slice(start, stop)
            hidden = _hidden_below(start, stop, subtree_end[start:stop])
            calls.append(KernelCall(own, own, is_causal=False, is_first=is_root, hidden=hidden))
            start = stop
            continue
        # A single chain needs no mask, however short: the causal call is it.
        own, end = slice(start, chain.stop), int(subtree_end[start])
        calls.append(KernelCall(own, own, is_causal=True, is_first=is_root))
        if end > chain.stop:
            calls.append(KernelCall(slice(chain.stop, end), own, is_causal=False, is_first=is_root))
        start = chain.stop
    return calls


def _hidden_below(start: int, stop: int, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens of a run of subtrees, whose `subtree_end` is given [L], each of them does not see [L, L]."""
    tokens = np.arange(start, stop)[:, None]
    return (tokens < tokens.T) | (tokens >= ends[None, :])


def _fitting_queries(keys: int, scores: float) -> int:
    """Return the greatest number of queries for which `queries * (keys + queries)` is at most `scores`."""
    return int((math.sqrt(keys * keys + 4 * scores) - keys) / 2)


def _end_of_small_subtrees(
    chain: Chain, chains: dict[int, Chain], subtree_end: NDArray[np.int64], most: int
) -> int | None:
    """Return the end of the run of at most `most` tokens that this chain's subtree and its next siblings make.

    `None` if this chain's subtree alone has more.
    """
    stop = None
    sibling: Chain | None = chain
    while sibling is not None and sibling.parent == chain.parent:
        end = int(subtree_end[sibling.start])
        if end - chain.start > most:
            break
        stop = end
        sibling = chains.get(end)
    return stop


def _from_position(path: IndexRanges, first: int) -> Iterator[tuple[int, int]]:
    """Yield the index ranges of a path from position `first` on."""
    for start, stop in path:
        if stop - start > first:
            yield start + first, stop
        first = max(0, first - (stop - start))


def _round_up(length: int) -> int:
    # Few shapes: the first product of matrices of a shape generates a kernel, and takes ten times as long as the next.
    step = 16 if length <= 128 else 64
    return -(-length // step) * step
