"""Near duplicates among texts: candidates by MinHash, verified by the exact Jaccard similarity of word 3-grams."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from plaudit.evaluation.word_counts import WordStore, mix

__all__ = ["SIMILAR", "candidate_pairs", "jaccard", "shingles", "sorted_unique"]

SIMILAR = 0.7  # the Jaccard similarity from which two texts are near duplicates
_PERMUTATIONS, _BANDS, _ROWS = 128, 25, 5  # two texts of similarity s meet with probability 1 - (1 - s^5)^25
_BUCKET = 24  # neighbours in a bucket that are compared with each text
_ESTIMATE = 0.57  # of 128 values, 3.5 standard deviations below `SIMILAR`
_WORDS = 1 << 12  # hashed at a time


def shingles(hashes: NDArray[np.uint64], words: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the hashes of the different word 3-grams of a text, sorted; of a text of one or two words, that of all."""
    values = hashes[words]
    width = min(3, len(values))
    if not width:
        return values
    grams = np.zeros(len(values) - width + 1, dtype=np.uint64)
    for place in range(width):
        grams = mix(grams * np.uint64(3) + values[place : len(values) - width + 1 + place])
    return sorted_unique(grams)


def sorted_unique(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the different values, sorted; for a few hundred of them much faster than `numpy.unique`."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def jaccard(one: NDArray[np.uint64], two: NDArray[np.uint64]) -> float:
    """Return the Jaccard similarity of two sorted arrays without repetitions; 0 where both are empty."""
    both = np.sort(np.concatenate([one, two]))
    common = int((both[1:] == both[:-1]).sum())
    return common / (len(both) - common) if len(both) else 0.0


def candidate_pairs(
    store: WordStore, spans: Sequence[tuple[int, int]], first: int | None = None
) -> Iterator[list[int]]:
    """Yield the pairs of texts whose word 3-grams seem to have a Jaccard similarity of `SIMILAR` or more.

    MinHash with 128 permutations in 25 bands of 5 (A. Broder, 1997; J. Leskovec et al., "Mining of Massive Datasets",
    chapter 3) finds 99.9% of the pairs of similarity 0.75. In a bucket of more than 24 texts, a text meets its
    neighbours and the first one only, so that many copies of one text take linear time.

    Args:
        store: The words.
        spans: For each of D texts, the first text in the store and one past the last.
        first: If given, yield only pairs of one of the first `first` texts and one of the others.

    Yields:
        Pairs of indices, the lower one first, in ascending order.
    """
    bands, digests = _signatures(store, store.hashes(), spans)
    pairs = _candidates(bands, first)
    for start in range(0, len(pairs), 4096):
        part = pairs[start : start + 4096]
        alike = (digests[part[:, 0]] == digests[part[:, 1]]).mean(axis=1) >= _ESTIMATE
        yield from part[alike].tolist()


def _signatures(
    store: WordStore, hashes: NDArray[np.uint64], spans: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return a hash of each band of the MinHash signature [D, 25], and the low byte of each of its values [D, 128].

    The low bytes estimate the similarity (b-bit MinHash, P. Li and A. König, 2010). A text without words has zeros.
    """
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 1 << 63, size=(_PERMUTATIONS, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = generator.integers(0, 1 << 63, size=(_PERMUTATIONS, 1), dtype=np.uint64)
    bands, digests = np.zeros((len(spans), _BANDS), np.uint32), np.zeros((len(spans), _PERMUTATIONS), np.uint8)
    pending: list[NDArray[np.uint64]] = []
    places: list[int] = []
    for place, span in enumerate(spans):
        grams = shingles(hashes, store.words(*span))
        if len(grams):
            pending.append(grams)
            places.append(place)
        if places and (sum(map(len, pending)) >= _WORDS or place == len(spans) - 1):
            starts = np.cumsum([0, *map(len, pending[:-1])])
            values = np.concatenate(pending)
            least = np.empty((_PERMUTATIONS, len(pending)), np.uint64)
            for number in range(_PERMUTATIONS):
                permuted = (values * factors[number] + shifts[number]) >> np.uint64(32)
                least[number] = np.minimum.reduceat(permuted, starts)
            digests[places] = least.T.astype(np.uint8)
            for band in range(_BANDS):
                joined = np.zeros(len(pending), np.uint64)
                for row in least[band * _ROWS : (band + 1) * _ROWS]:
                    joined = mix(joined * np.uint64(3) + row)
                bands[places, band] = joined >> np.uint64(32) | np.uint64(1)
            pending, places = [], []
    return bands, digests


def _candidates(bands: NDArray[np.uint32], first: int | None) -> NDArray[np.int64]:
    """Return the pairs of texts that share a band [P, 2], each once."""
    count, codes = len(bands), [np.empty(0, np.int64)]
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        order = order[band[order] != 0]  # texts without words
        keys = band[order]
        leader = np.searchsorted(keys, keys)
        for offset in [*range(1, _BUCKET + 1), 0]:  # the last one: each with the first of its bucket
            one, two = (order[:-offset], order[offset:]) if offset else (order[leader], order)
            same = keys[:-offset] == keys[offset:] if offset else leader < np.arange(len(order))
            if not same.any():
                break
            one, two = one[same], two[same]
            if first is not None:
                across = (one < first) & (two >= first)
                one, two = one[across], two[across]
            codes.append(one * count + two)
        codes = [np.unique(np.concatenate(codes))]
    return np.stack(np.divmod(codes[0], max(count, 1)), axis=1)
