"""Words and pairs of neighbouring words that only one of two texts has, for many comparisons in little memory."""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["WORD", "WordDifferences"]

WORD = "[\u3040-\u30ff\u3400-\u9fff]|[^\\W\u3040-\u30ff\u3400-\u9fff]+"  # a Chinese or Japanese character is a word
_HASHED = 1 << 17  # columns, which bound the memory (K. Weinberger et al., "Feature hashing", ICML 2009)
_MOST_FREQUENT = 1 << 14  # a model of many more columns takes more memory than the texts


class WordDifferences:
    """The differences of the two texts of comparisons, which grow batch by batch."""

    def __init__(self) -> None:
        self._columns, self._signs, self._ends = array("i"), array("b"), array("i", [0])
        self._frequencies = np.zeros(_HASHED, dtype=np.int64)

    def append(self, texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
        """Add the next comparisons: pairs of indices among some texts, that of the better text first."""
        from sklearn.feature_extraction.text import HashingVectorizer

        options = {"binary": True, "norm": None, "alternate_sign": False, "dtype": np.int8, "n_features": _HASHED}
        present = HashingVectorizer(token_pattern=WORD, ngram_range=(1, 2), **options).transform([*texts, ""])
        better, worse = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
        differences = present[better] - present[worse]
        differences.eliminate_zeros()
        self._frequencies += np.bincount(differences.indices, minlength=_HASHED)
        self._columns.frombytes(differences.indices.astype(np.int32).tobytes())
        self._signs.frombytes(differences.data.tobytes())
        self._ends.extend((differences.indptr[1:] + self._ends[-1]).tolist())

    def most_frequent(self) -> "csr_array":
        """Return the most frequent words and pairs of C comparisons.

        Returns:
            1 where the better text alone has it, -1 where the other one does, sparse, int8, shape [C, 16384].
        """
        from scipy.sparse import csr_array

        kept = np.sort(np.argsort(-self._frequencies, kind="stable")[:_MOST_FREQUENT])
        values = tuple(map(np.asarray, (self._signs, self._columns, self._ends)))
        return csr_array(values, shape=(len(self._ends) - 1, _HASHED))[:, kept]
