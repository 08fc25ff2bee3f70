"""The token forest: a batch as the prefix trie of its sequences, in depth-first order, as one row.

NumPy only; the module knows token ids, but no tokenizer and no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Chain", "SHARED_TOKENS", "TokenForest", "chains_of", "common_tokens"]

# Least length of a prefix that two rows share. Sharing saves the computation of the common tokens, and costs attention
# over one more chain. On two CPU cores a chain costs as much as 10 tokens of a 25M-parameter model
# (`benchmarks/sharing_cost.py`), and fewer tokens of a larger model. On a GPU, FlexAttention skips blocks of 128 keys,
# so a shorter prefix saves no block. Sequences of one row always share their prefixes: the row compares them.
SHARED_TOKENS = 32


@dataclass(frozen=True)
class TokenForest:
    """N sequences as one row of T tokens: each distinct prefix is one token, in depth-first order.

    In this order, token k is an ancestor of token q, or q itself, exactly where `k <= q < subtree_end[k]`. This is the
    attention mask.

    Attributes:
        input_ids: Last token of each distinct prefix, shape [T].
        position_ids: Depth of each token, which is its position in every sequence that has it, shape [T].
        subtree_end: One past the last descendant of each token, shape [T].
        leaf: Index of the last token of each sequence, in the given order, shape [N].
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    subtree_end: NDArray[np.int64]
    leaf: NDArray[np.int64]

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[ArrayLike], rows: Sequence[int] | None = None, *, shared_tokens: int = SHARED_TOKENS
    ) -> "TokenForest":
        """Lay sequences out as a forest.

        Args:
            sequences: N lists of one or more token ids, each 0 or more.
            rows: Row of each sequence, shape [N]; a single row if `None`. Sequences of one row share every common
                prefix.
            shared_tokens: Least length of a prefix that different rows share.

        Raises:
            ValueError: There is no sequence, or a sequence is empty.
        """
        # Big-endian, so that the order of the bytes is the order of the ids.
        arrays = [np.asarray(sequence, dtype=">i8") for sequence in sequences]
        if not arrays or any(array.ndim != 1 or not len(array) for array in arrays):
            raise ValueError("expected one or more sequences of one or more token ids each")
        most = sum(map(len, arrays))
        columns = np.empty((3, most), dtype=np.int64)
        leaf = np.empty(len(arrays), dtype=np.int64)
        size = 0
        for group in _sharing_groups(arrays, [0] * len(arrays) if rows is None else rows, shared_tokens):
            size = _write_trie(arrays, group, columns, leaf, size)
        input_ids, position_ids, subtree_end = columns[:, :size]
        return cls(input_ids, position_ids, subtree_end, leaf)

    def __len__(self) -> int:
        return len(self.input_ids)

    def sequences(self) -> list[NDArray[np.int64]]:
        """Return the N sequences in the order in which they were given."""
        chains = chains_of(self.position_ids, self.subtree_end)
        starts = [chain.start for chain in chains]
        paths: dict[int, NDArray[np.int64]] = {}
        for chain in chains:
            above = paths[chain.parent][: chain.depth] if chain.depth else self.input_ids[:0]
            paths[chain.start] = np.concatenate([above, self.input_ids[chain.start : chain.stop]])
        leaf_chains = np.searchsorted(starts, self.leaf, side="right") - 1
        lengths = self.position_ids[self.leaf] + 1
        return [paths[starts[chain]][:length] for chain, length in zip(leaf_chains, lengths, strict=True)]


@dataclass(frozen=True)
class Chain:
    """Tokens `start` to `stop` of a forest, each the only child of the one before it.

    Attributes:
        start: Index of the first token.
        stop: One past the last token.
        depth: Position of the first token.
        parent: `start` of the chain above; -1 for a root.
    """

    start: int
    stop: int
    depth: int
    parent: int


def chains_of(position_ids: NDArray[np.int64], subtree_end: NDArray[np.int64]) -> list[Chain]:
    """Split a forest (columns of shape [T]) into its chains, in depth-first order."""
    new = np.ones(len(position_ids), dtype=bool)
    new[1:] = (position_ids[1:] != position_ids[:-1] + 1) | (subtree_end[1:] != subtree_end[:-1])
    starts = np.flatnonzero(new)
    stops = [*starts[1:].tolist(), len(position_ids)]
    chains: list[Chain] = []
    path: list[Chain] = []  # from the root to the last chain
    for start, stop, depth in zip(starts.tolist(), stops, position_ids[starts].tolist(), strict=True):
        while path and path[-1].depth >= depth:
            path.pop()
        chains.append(Chain(start, stop, depth, path[-1].start if path else -1))
        path.append(chains[-1])
    return chains


def common_tokens(first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]) -> int:
    """Return the length of the longest common prefix of two arrays of token ids."""
    length = min(len(first), len(second))
    different = first[:length] != second[:length]
    return int(different.argmax()) if different.any() else length


def _sharing_groups(arrays: list[NDArray[np.int64]], rows: Sequence[int], shared_tokens: int) -> Iterator[list[int]]:
    """Yield groups of sequences that share prefixes, each in lexicographic order, the groups in the given order."""
    keys = [array.tobytes() for array in arrays]
    members: dict[int, list[int]] = {}
    for number in sorted(range(len(arrays)), key=keys.__getitem__):
        members.setdefault(rows[number], []).append(number)
    groups: list[list[int]] = []
    previous: list[int] = []
    # Rows are compared by their first sequences. In lexicographic order, neighbours have the longest common prefixes.
    for row in members.values():
        if previous and common_tokens(arrays[previous[0]], arrays[row[0]]) >= shared_tokens:
            groups[-1].extend(row)
        else:
            groups.append(list(row))
        previous = row
    for group in sorted(groups, key=min):
        yield sorted(group, key=keys.__getitem__)


def _write_trie(
    arrays: list[NDArray[np.int64]],
    group: list[int],
    columns: NDArray[np.int64],  # [3, at least T]
    leaf: NDArray[np.int64],  # [N]
    start: int,
) -> int:
    """Write the trie of one group of sequences from index `start` on; return one past its end."""
    input_ids, position_ids, subtree_end = columns
    path = np.empty(max(len(arrays[number]) for number in group), dtype=np.int64)  # index of the token at each depth
    depth, previous = 0, arrays[group[0]][:0]
    for number in group:
        sequence = arrays[number]
        length, shared = len(sequence), common_tokens(previous, sequence)
        subtree_end[path[shared:depth]] = start  # the previous sequence ends here, as do its tokens' subtrees
        stop = start + length - shared
        input_ids[start:stop] = sequence[shared:]
        position_ids[start:stop] = np.arange(shared, length)
        path[shared:length] = np.arange(start, stop)
        leaf[number] = path[length - 1]
        depth, previous, start = length, sequence, stop
    subtree_end[path[:depth]] = start
    return start
