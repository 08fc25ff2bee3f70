"""Preference models that see two responses and not their prompt, as baselines for a reward model.

A benchmark on which such a baseline comes close to the reward model measures length or vocabulary, not judgement.
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
    """Return the accuracy of preferring the response of more characters; equal lengths count one half.

    Raises:
        ValueError: There are no pairs, or the two lists are of different lengths.
    """
    return accuracy([len(text) for text in chosen], [len(text) for text in rejected])


class BagOfWords:
    """A Bradley-Terry model whose reward is a weighted count of words.

    P(a beats b) = sigmoid(w · (counts(a) - counts(b))), where w minimises the summed logistic loss plus l2/2 · |w|².
    The problem is strictly convex, so it has one solution, and Newton's method finds it without a seed.

    Attributes:
        vocabulary_size: Number of the most frequent words to count. The cost of fitting is quadratic in it.
        l2: Strength of the regularisation.
        weights: The weight of each word; empty before `fit`.
    """

    def __init__(self, vocabulary_size: int = 1000, l2: float = 1.0) -> None:
        self.vocabulary_size = vocabulary_size
        self.l2 = l2
        self.weights: dict[str, float] = {}

    def fit(self, chosen: Sequence[str], rejected: Sequence[str]) -> Self:
        """Fit the weights to pairs of responses.

        Raises:
            DataError: There are no pairs, or the two lists are of different lengths.
        """
        if not len(chosen) or len(chosen) != len(rejected):
            raise DataError(
                f"expected one or more pairs, but got {len(chosen)} chosen and {len(rejected)} rejected responses"
            )
        frequency = Counter(word for texts in (chosen, rejected) for text in texts for word in _words(text))
        # Alphabetical among equally frequent words, so that the vocabulary does not depend on the order of the rows.
        vocabulary = sorted(frequency, key=lambda word: (-frequency[word], word))[: self.vocabulary_size]
        differences = _counts(chosen, vocabulary) - _counts(rejected, vocabulary)
        self.weights = dict(zip(vocabulary, _minimise(differences, self.l2).tolist(), strict=True))
        return self

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Return the reward of each text; words outside the vocabulary have no weight."""
        return np.array([sum(self.weights.get(word, 0.0) for word in _words(text)) for text in texts])

    def accuracy(self, chosen: Sequence[str], rejected: Sequence[str]) -> float:
        """Return the share of pairs whose chosen response has the greater reward; equal rewards count one half.

        Raises:
            ValueError: There are no pairs, or the two lists are of different lengths.
        """
        return accuracy(self.score(chosen), self.score(rejected))


def _words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _counts(texts: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    column = {word: i for i, word in enumerate(vocabulary)}
    counts = np.zeros((len(texts), len(vocabulary)))  # [texts, words]
    for row, text in zip(counts, texts, strict=True):
        for word in _words(text):
            if word in column:
                row[column[word]] += 1
    return counts


def _minimise(x: np.ndarray, l2: float, tolerance: float = 1e-6, most_steps: int = 50) -> np.ndarray:
    """Minimise by Newton's method, halving a step that overshoots, as it may where a few words separate the pairs."""

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -x @ w).sum() + l2 / 2 * w @ w)

    w = np.zeros(x.shape[1])
    for _ in range(most_steps):
        p = 1 / (1 + np.exp(np.clip(x @ w, -500, 500)))  # [pairs]: probability of the rejected response
        gradient = l2 * w - x.T @ p
        if np.abs(gradient).max(initial=0.0) < tolerance:
            break
        hessian = (x * (p * (1 - p))[:, None]).T @ x + l2 * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        before = loss(w)
        while loss(w - step) > before and np.abs(step).max() > tolerance:
            step /= 2
        w -= step
    return w
