"""Words of many texts in one array, and the words and word pairs by which two texts differ.

A text is cut into lower-case words; each Chinese or Japanese character is a word. A store holds four bytes for a word,
less than the text itself, so that several passes over a large dataset need neither its text nor a second reading.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["WordStore", "mix", "presence_differences", "split_words"]

_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_CHARACTERS}]|[^\\W{_CHARACTERS}]+")
_BUCKETS = 1 << 20
_MOST_COLUMNS = 1 << 14  # a model of many more weights takes more memory than the texts
_COMPARISONS = 128  # compared at a time


def split_words(text: str) -> list[str]:
    """Return the lower-case words of a text, without punctuation.

    Example:
        >>> split_words("It's 4, not 5!")
        ['it', 's', '4', 'not', '5']
    """
    return _WORD.findall(text.lower())


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return well-spread 64-bit hashes of 64-bit numbers: the finaliser of SplitMix64 (G. Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class WordStore:
    """The words of texts as numbers, text after text.

    Attributes:
        ids: Number of each word in the order in which the words first came, shape [W].
        ends: Where each text begins, and where the last one ends, shape [T + 1].
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.ids, self.ends = array("i"), array("q", [0])
        self._numbers: dict[str, int] = {}
        self._hashes = array("Q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add the words of the next text."""
        numbers = self._numbers
        self.ids.extend([numbers.setdefault(word, len(numbers)) for word in split_words(text)])
        self.ends.append(len(self.ids))

    def hashes(self) -> NDArray[np.uint64]:
        """Return a hash of each known word, which depends on nothing but the word, shape [vocabulary]."""
        for word in list(self._numbers)[len(self._hashes) :]:
            self._hashes.append(crc32(word.encode("utf-8", "surrogatepass")))
        return mix(np.array(self._hashes, dtype=np.uint64))

    def words(self, start: int, end: int) -> NDArray[np.int32]:
        """Return the numbers of the words from text `start` up to, but without, text `end`."""
        return np.array(self.ids[self.ends[start] : self.ends[end]], dtype=np.int32)

    def select(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the words of some texts, one text after the other, and the place of the text of each word."""
        words = [self.words(text, text + 1) for text in texts.tolist()]
        owner = np.repeat(np.arange(len(words)), [len(each) for each in words])
        return np.concatenate(words) if words else np.empty(0, np.int32), owner


def presence_differences(
    store: WordStore, better: NDArray[np.int64], worse: NDArray[np.int64], least: int = 2
) -> "csr_array":
    """Return which words and pairs of neighbouring words only one of two texts has, for each of C comparisons.

    Words and pairs are hashed to columns, which bounds the memory (K. Weinberger et al., ICML 2009).

    Args:
        store: The texts.
        better: Indices of the better texts, shape [C].
        worse: Indices of the other texts, shape [C].
        least: A word or pair that fewer texts have is left out, and so are the rarest of more than 16,384.

    Returns:
        1 where the better text alone has it, -1 where the other one does, sparse, int8, shape [C, columns].
    """
    from scipy.sparse import csr_array

    frequency = np.zeros(_BUCKETS, dtype=np.uint8)
    hashes, most = store.hashes(), 0
    for of_better, of_worse in _in_chunks(store, hashes, better, worse):
        codes, counts = np.unique(np.concatenate([of_better, of_worse]) % _BUCKETS, return_counts=True)
        frequency[codes] = np.minimum(frequency[codes] + counts, 255)
        most += int(counts.sum())
    while (frequency >= least).sum() > _MOST_COLUMNS:
        least += 1
    columns = np.flatnonzero(frequency >= least).astype(np.uint32)
    del frequency
    # Arrays of the most that may come: memory is taken when it is written to.
    lengths, indices, data, end = [], np.empty(most, np.int32), np.empty(most, np.int8), 0
    for of_better, of_worse in _in_chunks(store, hashes, better, worse):
        keys, first, counts = np.unique(np.concatenate([of_better, of_worse]), return_index=True, return_counts=True)
        codes = keys % _BUCKETS
        places = np.minimum(np.searchsorted(columns, codes), max(len(columns) - 1, 0))
        kept = (counts == 1) & (columns[places] == codes) if len(columns) else np.zeros(len(codes), dtype=bool)
        start, end = end, end + int(kept.sum())
        indices[start:end] = places[kept]
        data[start:end] = np.where(first[kept] < len(of_better), 1, -1)
        lengths.append(np.bincount((keys[kept] // _BUCKETS).astype(np.int64), minlength=_COMPARISONS))
    pointers = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, []])[: len(better)])]).astype(np.int32)
    shape = (len(better), max(len(columns), 1))
    return csr_array((data[:end], indices[:end], pointers), shape=shape)


def _in_chunks(
    store: WordStore, hashes: NDArray[np.uint64], better: NDArray[np.int64], worse: NDArray[np.int64]
) -> Iterator[list[NDArray[np.uint64]]]:
    """Yield the keys (row of the chunk, bucket) of what the better and what the other texts of a chunk have."""
    for start in range(0, len(better), _COMPARISONS):
        yield [_present(store, hashes, side[start : start + _COMPARISONS]) for side in (better, worse)]


def _present(store: WordStore, hashes: NDArray[np.uint64], texts: NDArray[np.int64]) -> NDArray[np.uint64]:
    words, owner = store.select(texts)
    single = hashes[words]
    together = owner[1:] == owner[:-1]
    pairs = mix(single[:-1] * np.uint64(3) + single[1:])[together] if len(single) else single
    owners = np.concatenate([owner, owner[1:][together]]).astype(np.uint64)
    return np.unique(owners * np.uint64(_BUCKETS) + np.concatenate([single, pairs]) % np.uint64(_BUCKETS))
