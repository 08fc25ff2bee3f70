"""Near duplicates among texts: their word 3-grams compared by MinHash."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.word_differences import WORD

__all__ = ["HASHES", "SIMILAR", "near_pairs", "signatures", "similarity"]

# The estimated Jaccard similarity from which two texts are near duplicates. With its standard error of .04, 95% of the
# pairs of similarity .75 exceed it, and 5% of those of .6.
SIMILAR = 0.68
HASHES, _BANDS, _ROWS = 100, 20, 5  # two texts of similarity s meet with probability 1 - (1 - s^5)^20
_NEIGHBOURS = 24  # in a bucket that each text is compared with, so that many copies of one text take linear time


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return MinHash signatures of texts (A. Broder, "On the resemblance and containment of documents", 1997).

    The signature of several texts together is the minimum of theirs. A Chinese or Japanese character counts as a word.

    Returns:
        For each text, the least of 100 hashes of its word 3-grams, shape [T, 100].
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    generator = np.random.default_rng(0)
    factors, shifts = generator.integers(0, 1 << 63, size=(2, HASHES), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    options = {"norm": None, "alternate_sign": False, "n_features": (1 << 31) - 1}
    padded = [f"_ _ {text} _ _" for text in texts]  # for texts of one or two words
    grams = HashingVectorizer(token_pattern=WORD, ngram_range=(3, 3), **options).transform(padded)
    values, least = grams.indices.astype(np.uint64), np.empty((len(texts), HASHES), dtype=np.uint32)
    for number in range(HASHES):
        hashed = (values * factors[number] + shifts[number]) >> np.uint64(32)
        least[:, number] = np.minimum.reduceat(hashed, grams.indptr[:-1])
    return least


def near_pairs(
    low_bytes: NDArray[np.uint8], texts: NDArray[np.int64] | None = None, first: int | None = None
) -> NDArray[np.int64]:
    """Return the pairs of texts whose estimated Jaccard similarity is `SIMILAR` or more.

    Only texts with an equal band of their signatures are compared (J. Leskovec et al., "Mining of Massive Datasets",
    chapter 3): 99.6% of the pairs of similarity 0.75. The estimate has a standard error of .04.

    Args:
        low_bytes: The low bytes of signatures, which estimate as well (P. Li and A. König, "b-bit minwise hashing",
            2010), shape [T, 100].
        texts: Indices of the texts to compare, in ascending order; all where `None`.
        first: If given, return only pairs of one of the first `first` texts and one of the others.

    Returns:
        Pairs of indices, the lower one first, in ascending order, shape [P, 2].
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    texts = np.arange(len(low_bytes)) if texts is None else texts
    for band in range(_BANDS):
        keys = low_bytes[:, band * _ROWS : (band + 1) * _ROWS] @ (1 << 8 * np.arange(_ROWS))
        for one, two in _neighbours(keys, texts) if first is None else _neighbours_across(keys, texts, first):
            near = similarity(low_bytes[one], low_bytes[two]) >= SIMILAR
            pairs.append(np.stack([one[near], two[near]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _neighbours(keys: NDArray[np.int64], texts: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield pairs of texts with equal keys, at most `_NEIGHBOURS` for each text."""
    order = texts[np.argsort(keys[texts], kind="stable")]
    for offset in range(1, _NEIGHBOURS + 1):
        one, two = order[:-offset], order[offset:]
        same = keys[one] == keys[two]
        if not same.any():
            return
        yield one[same], two[same]


def _neighbours_across(
    keys: NDArray[np.int64], texts: NDArray[np.int64], first: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield pairs of one of the first texts and another one with equal keys, at most `_NEIGHBOURS` for each other."""
    ours, others = texts[texts < first], texts[texts >= first]
    order = ours[np.argsort(keys[ours], kind="stable")]
    start = np.searchsorted(keys[order], keys[others])
    for offset in range(_NEIGHBOURS if len(order) else 0):
        one = order[np.minimum(start + offset, len(order) - 1)]
        same = (start + offset < len(order)) & (keys[one] == keys[others])
        if not same.any():
            return
        yield one[same], others[same]


def similarity(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity of each two texts from the low bytes of their signatures [P, 100]."""
    return (one == two).mean(axis=1)
