"""The token forest: a batch as the prefix trie of its sequences, in depth-first order, as one row.

NumPy only; it knows token ids, no tokenizer and no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Chain", "SHARED_TOKENS", "TokenForest", "chains_of", "common_tokens"]

# The cost model of sharing across rows: sharing saves the common tokens once and costs the attention over one more
# chain. On two CPU cores a chain costs as much as 10 tokens of a 25M-parameter model (`benchmarks/sharing_cost.py`),
# and fewer of a larger one, whose tokens cost more; on a GPU, FlexAttention skips blocks of 128 keys, so that fewer
# save no block. Sequences of one row always share: they are what is compared.
SHARED_TOKENS = 32


@dataclass(frozen=True)
class TokenForest:
    """N sequences as one row of T distinct prefix tokens.

    In this order, "k is an ancestor of q, or q itself" is `k <= q < subtree_end[k]`, which is the attention mask.

    Attributes:
        input_ids: Each distinct prefix's last token, once; shape [T].
        position_ids: Its depth, which is its position in every sequence it belongs to; shape [T].
        subtree_end: One past the last token below it; shape [T].
        leaf: The index of each sequence's last token, in the order given; shape [N].
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    subtree_end: NDArray[np.int64]
    leaf: NDArray[np.int64]

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[ArrayLike], rows: Sequence[int] | None = None, *, shared_tokens: int = SHARED_TOKENS
    ) -> "TokenForest":
        """Lay sequences out.

        Args:
            sequences: N lists of one or more token ids, from 0 on.
            rows: Which row each belongs to, shape [N]; all one row if `None`. Sequences of one row share every common
                prefix.
            shared_tokens: Rows share a prefix from so many tokens on.

        Raises:
            ValueError: There is no sequence, or one is empty.
        """
        # Big-endian, so that the order of the bytes is the order of the ids.
        arrays = [np.asarray(sequence, dtype=">i8") for sequence in sequences]
        if not arrays or any(array.ndim != 1 or not len(array) for array in arrays):
            raise ValueError("expected one or more sequences of one or more token ids each")
        groups = _trees(arrays, [0] * len(arrays) if rows is None else rows, shared_tokens)
        total = sum(map(len, arrays))  # at most; cut to what is used below
        columns = np.empty((3, total), dtype=np.int64)
        leaf = np.empty(len(arrays), dtype=np.int64)
        size = 0
        for group in groups:
            size = _write_trie(arrays, group, columns, leaf, size)
        input_ids, position_ids, subtree_end = columns[:, :size]
        return cls(input_ids, position_ids, subtree_end, leaf)

    def __len__(self) -> int:
        return len(self.input_ids)

    def sequences(self) -> list[NDArray[np.int64]]:
        """The N sequences, read back from their leaves."""
        chains = chains_of(self.position_ids, self.subtree_end)
        first = [chain.start for chain in chains]
        paths: dict[int, NDArray[np.int64]] = {}
        for chain in chains:
            above = paths[chain.parent][: chain.depth] if chain.depth else self.input_ids[:0]
            paths[chain.start] = np.concatenate([above, self.input_ids[chain.start : chain.stop]])
        chain_numbers = np.searchsorted(first, self.leaf, side="right") - 1
        return [
            paths[first[number]][: self.position_ids[leaf] + 1]
            for number, leaf in zip(chain_numbers, self.leaf, strict=True)
        ]


@dataclass(frozen=True)
class Chain:
    """Tokens `start` to `stop` of a forest, each the only child of the one before.

    Attributes:
        start: Index of the first token.
        stop: One past the last.
        depth: Position of the first token.
        parent: `start` of the chain above, -1 for a root.
    """

    start: int
    stop: int
    depth: int
    parent: int


def chains_of(position_ids: NDArray[np.int64], subtree_end: NDArray[np.int64]) -> list[Chain]:
    """The forest's chains in depth-first order."""
    new = np.ones(len(position_ids), dtype=bool)
    new[1:] = (position_ids[1:] != position_ids[:-1] + 1) | (subtree_end[1:] != subtree_end[:-1])
    starts = np.flatnonzero(new)
    stops = [*starts[1:].tolist(), len(position_ids)]
    chains: list[Chain] = []
    above: list[Chain] = []  # the path to the current chain
    for start, stop, depth in zip(starts.tolist(), stops, position_ids[starts].tolist(), strict=True):
        while above and above[-1].depth >= depth:
            above.pop()
        chains.append(Chain(start, stop, depth, above[-1].start if above else -1))
        above.append(chains[-1])
    return chains


def _trees(arrays: list[NDArray[np.int64]], rows: Sequence[int], shared_tokens: int) -> Iterator[list[int]]:
    """Sequences by the tree (or trees) they share, each group in lexicographic order, in the order of the rows."""
    keys = [array.tobytes() for array in arrays]
    members: dict[int, list[int]] = {}
    for number in sorted(range(len(arrays)), key=keys.__getitem__):
        members.setdefault(rows[number], []).append(number)
    joined: list[list[int]] = []
    previous: list[int] = []
    # Each row's first sequence stands for it. Rows in lexicographic order have most in common with their neighbours.
    for row in members.values():
        if previous and common_tokens(arrays[previous[0]], arrays[row[0]]) >= shared_tokens:
            joined[-1].extend(row)
        else:
            joined.append(list(row))
        previous = row
    for group in sorted(joined, key=min):
        yield sorted(group, key=keys.__getitem__)


def common_tokens(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    different = first[:length] != second[:length]
    return int(different.argmax()) if different.any() else length


def _write_trie(
    arrays: list[NDArray[np.int64]],
    group: list[int],
    columns: NDArray[np.int64],  # [3, at least T]
    leaf: NDArray[np.int64],  # [N]
    start: int,
) -> int:
    """Write one group's trie from `start` on; return one past its end."""
    input_ids, position_ids, subtree_end = columns
    path = np.empty(max(len(arrays[number]) for number in group), dtype=np.int64)  # index of the token at each depth
    depth, previous = 0, arrays[group[0]][:0]
    for number in group:
        sequence = arrays[number]
        length, shared = len(sequence), common_tokens(previous, sequence)
        subtree_end[path[shared:depth]] = start  # below these, nothing more comes
        stop = start + length - shared
        input_ids[start:stop] = sequence[shared:]
        position_ids[start:stop] = np.arange(shared, length)
        path[shared:length] = np.arange(start, stop)
        leaf[number] = path[length - 1]
        depth, previous, start = length, sequence, stop
    subtree_end[path[:depth]] = start
    return start
