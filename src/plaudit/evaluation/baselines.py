"""What can be won without understanding: preference models that a reward model has to beat.

They see the two responses and never the prompt. A benchmark on which they come close to the reward model measures
length or vocabulary rather than judgement.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Self

import numpy as np

from plaudit.errors import DataError
from plaudit.metrics import accuracy

__all__ = ["BagOfWords", "longer_wins"]


def longer_wins(chosen: Sequence[str], rejected: Sequence[str]) -> float:
    """The accuracy of preferring the response of more characters; equal lengths count one half."""
    _check_pairs(chosen, rejected)
    return accuracy([len(text) for text in chosen], [len(text) for text in rejected])


class BagOfWords:
    """A Bradley-Terry model whose reward is a weighted count of words.

    P(a beats b) = sigmoid(w · (counts(a) - counts(b))), with w the minimum of the summed logistic loss plus
    l2/2 · |w|². The problem is strictly convex, so there is one answer, and Newton's method finds it without a seed.

    Attributes:
        vocabulary_size: How many of the most frequent words to count; the cost of fitting is quadratic in it.
        l2: The strength of regularisation.
        weights: Word to weight, once fitted.
    """

    def __init__(self, vocabulary_size: int = 1000, l2: float = 1.0) -> None:
        self.vocabulary_size = vocabulary_size
        self.l2 = l2
        self.weights: dict[str, float] = {}

    def fit(self, chosen: Sequence[str], rejected: Sequence[str]) -> Self:
        """Learn the weights from pairs of responses."""
        _check_pairs(chosen, rejected)
        frequency = Counter(word for texts in (chosen, rejected) for text in texts for word in _words(text))
        # Equally frequent words are taken in alphabetical order: which of them are counted hangs on no row order.
        vocabulary = sorted(frequency, key=lambda word: (-frequency[word], word))[: self.vocabulary_size]
        differences = _counts(chosen, vocabulary) - _counts(rejected, vocabulary)
        self.weights = dict(zip(vocabulary, _minimise(differences, self.l2).tolist(), strict=True))
        return self

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """One reward per text; unknown words count nothing."""
        return np.array([sum(self.weights.get(word, 0.0) for word in _words(text)) for text in texts])

    def accuracy(self, chosen: Sequence[str], rejected: Sequence[str]) -> float:
        """The share of pairs whose chosen response has the higher reward; equal rewards count one half."""
        _check_pairs(chosen, rejected)
        return accuracy(self.score(chosen), self.score(rejected))


def _check_pairs(chosen: Sequence[str], rejected: Sequence[str]) -> None:
    if not len(chosen) or len(chosen) != len(rejected):
        raise DataError(
            f"expected one or more pairs, but got {len(chosen)} chosen and {len(rejected)} rejected responses; "
            "give two lists of the same length"
        )


def _words(text: str) -> list[str]:
    """Words and punctuation marks, without case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _counts(texts: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    column = {word: i for i, word in enumerate(vocabulary)}
    counts = np.zeros((len(texts), len(vocabulary)))  # [texts, words]
    for row, text in zip(counts, texts, strict=True):
        for word in _words(text):
            if word in column:
                row[column[word]] += 1
    return counts


def _objective(x: np.ndarray, w: np.ndarray, l2: float) -> float:
    return float(np.logaddexp(0, -x @ w).sum() + l2 / 2 * w @ w)


def _minimise(x: np.ndarray, l2: float, tolerance: float = 1e-6, most_steps: int = 50) -> np.ndarray:
    """Newton's method, halving a step that overshoots: it may, where a few words separate the pairs."""
    w = np.zeros(x.shape[1])
    for _ in range(most_steps):
        p = 1 / (1 + np.exp(np.clip(x @ w, -500, 500)))  # [pairs], what the model gives to the wrong side
        gradient = l2 * w - x.T @ p
        if np.abs(gradient).max(initial=0.0) < tolerance:
            break
        hessian = (x * (p * (1 - p))[:, None]).T @ x + l2 * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        before = _objective(x, w, l2)
        while _objective(x, w - step, l2) > before and np.abs(step).max() > tolerance:
            step /= 2
        w -= step
    return w
