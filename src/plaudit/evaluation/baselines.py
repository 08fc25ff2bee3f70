"""Preference models that see two responses and not their prompt, as baselines for a reward model.

A benchmark on which such a baseline comes close to the reward model measures length or vocabulary, not judgement.
"""

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from plaudit.errors import DataError
from plaudit.metrics import accuracy, accuracy_interval_by_prompt

__all__ = [
    "BagOfWords",
    "STYLE",
    "cross_validate",
    "longer_wins",
    "out_of_fold",
    "share_and_interval",
    "style_counts",
]

_PATTERNS = {
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "list": re.compile(r"^[ \t]*(?:[-*+•]|\d{1,2}[.)])[ \t]+\S", re.MULTILINE),
    "header": re.compile(r"^#{1,6} ", re.MULTILINE),
    "exclamation": re.compile("!"),
    "question": re.compile(r"\?"),
}
STYLE = ("characters", *_PATTERNS)
_WORD = r"\w+|[^\w\s]"
_MOST_FITTED = 10_000  # comparisons of a fold
_PENALTY = 0.1  # scikit-learn's C, which suits a few hundred to many thousand pairs


def longer_wins(chosen: Sequence[str], rejected: Sequence[str]) -> float:
    """Return the accuracy of preferring the response of more characters; equal lengths count one half.

    Raises:
        ValueError: There are no pairs, or the two lists are of different lengths.
    """
    return accuracy([len(text) for text in chosen], [len(text) for text in rejected])


def style_counts(text: str) -> list[int]:
    """Count the six features of `STYLE` in a text: characters, bold phrases, list items, headers, "!" and "?".

    Example:
        >>> style_counts("**Yes!**")
        [8, 1, 0, 0, 1, 0]
    """
    return [len(text), *(len(pattern.findall(text)) for pattern in _PATTERNS.values())]


def cross_validate(
    style: NDArray[np.float64], words: Any, prompts: NDArray[Any], weights: NDArray[np.floating]
) -> tuple[dict[str, dict[str, float]], NDArray[np.float64]]:
    """Return the out-of-fold accuracies of three baselines, and the margins of the bag of words, shape [C].

    Args:
        style: Differences of the counts of `STYLE`, shape [C, 6].
        words: Differences of words, sparse, shape [C, columns].
        prompts: Equal for comparisons of one prompt, shape [C].
        weights: Weight of each comparison, shape [C].

    Returns:
        For `longer`, `style` and `bag_of_words`: `accuracy` and the ends `low` and `high` of its 95% interval by
        prompt; NaN where no model can be fitted, since there is one prompt or none.
    """
    size = np.sqrt((style**2).sum(axis=0) / max(len(style), 1))  # no shift, so that a swap turns the sign
    margins = {
        "longer": style[:, 0],
        "style": out_of_fold(style / np.where(size > 0, size, 1), prompts, weights),
        "bag_of_words": out_of_fold(words, prompts, weights),
    }
    count = len(np.unique(prompts))
    undefined = dict.fromkeys(("accuracy", "low", "high"), math.nan)
    figures = {
        name: share_and_interval(each, prompts, weights) if count > (name != "longer") else undefined
        for name, each in margins.items()
    }
    return figures, margins["bag_of_words"]


def share_and_interval(
    margins: NDArray[np.float64], prompts: NDArray[Any], weights: NDArray[np.floating] | None = None
) -> dict[str, float]:
    """Return the share of positive margins, ties one half, as `accuracy`, with its 95% interval by prompt."""
    zero = np.zeros(len(margins))
    low, high = accuracy_interval_by_prompt(margins, zero, prompts, weights)
    return {"accuracy": accuracy(margins, zero, weights), "low": low, "high": high}


def out_of_fold(differences: Any, prompts: NDArray[Any], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the margin that a Bradley-Terry model gives to each comparison, fitted without the comparison's prompt.

    There are five folds, or fewer where there are fewer prompts. A model is fitted to at most 10,000 comparisons, drawn
    at random.

    Args:
        differences: Features of the better minus those of the other response, dense or sparse, shape [C, F].
        prompts: Equal for comparisons of one prompt, which stay together, shape [C].
        weights: Weight of each comparison, shape [C].

    Returns:
        Logits that the better response is preferred, shape [C]; zero where all comparisons have one prompt.
    """
    from sklearn.model_selection import GroupKFold

    margins = np.zeros(len(prompts))
    folds, random = min(5, len(np.unique(prompts))), np.random.default_rng(0)
    for train, test in GroupKFold(folds).split(margins, groups=prompts) if folds > 1 else ():
        fitted = np.sort(random.permutation(train)[:_MOST_FITTED])
        margins[test] = differences[test] @ _fit(differences[fitted], weights[fitted], C=_PENALTY, max_iter=300)
    return margins


def _fit(differences: Any, weights: NDArray[np.floating], **options: Any) -> NDArray[np.float64]:
    """Fit the weights of P(better) = sigmoid(w · differences), by scikit-learn's logistic regression.

    Scikit-learn needs two classes, so every other comparison is turned round, which changes nothing without an
    intercept; one comparison alone is taken as two halves.
    """
    from scipy.sparse import diags_array
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(weights) == 1:
        differences, weights = differences[[0, 0]], np.repeat(weights / 2, 2)
    sign = np.resize(np.array([-1, 1], dtype=np.float32), len(weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(fit_intercept=False, **options)
        return model.fit(diags_array(sign) @ differences, sign > 0, sample_weight=weights).coef_[0]


class BagOfWords:
    """A Bradley-Terry model whose reward is a weighted count of words and punctuation marks.

    P(a beats b) = sigmoid(w · (counts(a) - counts(b))), where w minimises the summed logistic loss plus l2/2 · |w|².

    Attributes:
        vocabulary_size: Number of the most frequent words to count.
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
        from sklearn.feature_extraction.text import CountVectorizer

        if not len(chosen) or len(chosen) != len(rejected):
            raise DataError(
                f"expected one or more pairs, but got {len(chosen)} chosen and {len(rejected)} rejected responses"
            )
        if not any(map(str.strip, (*chosen, *rejected))):
            return self
        counter = CountVectorizer(token_pattern=_WORD, max_features=self.vocabulary_size)
        counts = counter.fit_transform([*chosen, *rejected]).astype(np.float64)
        differences = counts[: len(chosen)] - counts[len(chosen) :]
        options = {"C": 1 / self.l2, "solver": "newton-cg", "tol": 1e-9, "max_iter": 1000}
        weights = _fit(differences, np.ones(len(chosen)), **options)
        self.weights = dict(zip(counter.get_feature_names_out().tolist(), weights.tolist(), strict=True))
        return self

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the reward of each text; words outside the vocabulary have no weight."""
        words = (re.findall(_WORD, text.lower()) for text in texts)
        return np.array([sum(self.weights.get(word, 0.0) for word in each) for each in words])

    def accuracy(self, chosen: Sequence[str], rejected: Sequence[str]) -> float:
        """Return the share of pairs whose chosen response has the greater reward; equal rewards count one half.

        Raises:
            ValueError: There are no pairs, or the two lists are of different lengths.
        """
        return accuracy(self.score(chosen), self.score(rejected))
