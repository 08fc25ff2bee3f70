"""Preference models that see two responses and not their prompt, as baselines for a reward model.

A benchmark on which such a baseline comes close to the reward model measures length or vocabulary, not judgement.
"""

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import DataError
from plaudit.evaluation.word_counts import WordStore, presence_differences
from plaudit.metrics import accuracy, accuracy_interval_by_prompt

__all__ = [
    "BagOfWords",
    "STYLE",
    "baseline_accuracies",
    "cross_validate",
    "longer_wins",
    "out_of_fold",
    "share_and_interval",
    "style_counts",
]

_MOST_FITTED = 10_000  # comparisons
_PENALTY = 0.1  # scikit-learn's C, which suits a few hundred to many thousand pairs

STYLE = {
    "characters": re.compile(r"(?s)."),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "list": re.compile(r"^[ \t]*(?:[-*+•]|\d{1,2}[.)])[ \t]+\S", re.MULTILINE),
    "header": re.compile(r"^#{1,6} ", re.MULTILINE),
    "exclamation": re.compile("!"),
    "question": re.compile(r"\?"),
}


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
    return [len(text), *(len(pattern.findall(text)) for name, pattern in STYLE.items() if name != "characters")]


def baseline_accuracies(
    chosen: Sequence[str], rejected: Sequence[str], prompts: ArrayLike
) -> dict[str, dict[str, float]]:
    """Return the cross-validated accuracies of three baselines on C pairs of responses.

    Args:
        chosen: The better responses, C.
        rejected: The other responses, C.
        prompts: Whole numbers, equal for pairs of one prompt, shape [C].

    Returns:
        For `longer`, `style` and `bag_of_words`: `accuracy` and the ends `low` and `high` of its 95% interval by
        prompt. The models of style and of words are fitted to four fifths of the prompts and used on the fifth.

    Raises:
        ValueError: There are no pairs, or the lists are of different lengths.
    """
    longer_wins(chosen, rejected)  # raises where the lists do not fit
    sides = [np.array([style_counts(text) for text in side], dtype=np.float64) for side in (chosen, rejected)]
    places = np.arange(len(chosen))
    words = presence_differences(WordStore([*chosen, *rejected]), places, places + len(chosen))
    return cross_validate(sides[0] - sides[1], words, np.asarray(prompts), np.ones(len(chosen)))[0]


def cross_validate(
    style: NDArray[np.float64], words: Any, prompts: NDArray[Any], weights: NDArray[np.float64]
) -> tuple[dict[str, dict[str, float]], NDArray[np.float64]]:
    """Return the figures of `baseline_accuracies`, and the margins of the bag of words, shape [C].

    Args:
        style: Differences of the counts of `STYLE`, shape [C, 6].
        words: Differences of words, as of `presence_differences`, shape [C, columns].
        prompts: Equal for comparisons of one prompt, shape [C].
        weights: Weight of each comparison, shape [C].
    """
    margins = {
        "longer": style[:, 0],
        "style": out_of_fold(_standardised(style), prompts, weights),
        "bag_of_words": out_of_fold(words, prompts, weights),
    }
    figures = {name: share_and_interval(each, prompts, weights) for name, each in margins.items()}
    if len(np.unique(prompts)) == 1:  # nothing to fit a model to
        figures |= dict.fromkeys(("style", "bag_of_words"), dict.fromkeys(("accuracy", "low", "high"), math.nan))
    return figures, margins["bag_of_words"]


def _standardised(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return differences of root mean square 1 in each column, without a shift, so that a swap turns the sign."""
    size = np.sqrt((differences**2).mean(axis=0))
    return differences / np.where(size > 0, size, 1)


def share_and_interval(
    margins: NDArray[np.float64], prompts: NDArray[Any], weights: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """Return the share of positive margins, ties one half, as `accuracy`, with its 95% interval by prompt."""
    zero = np.zeros(len(margins))
    low, high = accuracy_interval_by_prompt(margins, zero, prompts, weights)
    return {"accuracy": accuracy(margins, zero, weights), "low": low, "high": high}


def out_of_fold(
    differences: Any, prompts: NDArray[Any], weights: NDArray[np.float64] | None = None, folds: int = 5
) -> NDArray[np.float64]:
    """Return the margin that a Bradley-Terry model gives to each comparison, fitted without the comparison's prompt.

    A model is fitted to at most 10,000 comparisons, drawn at random.

    Args:
        differences: Features of the better minus those of the other response, dense or sparse, shape [C, F].
        prompts: Equal for comparisons of one prompt, which stay together, shape [C].
        weights: Weight of each comparison, shape [C].
        folds: Number of folds, or fewer where there are fewer prompts.

    Returns:
        Logits that the better response is preferred, shape [C]; zero where all comparisons have one prompt.
    """
    from sklearn.model_selection import GroupKFold

    margins, weights = np.zeros(len(prompts)), np.ones(len(prompts)) if weights is None else weights
    folds = min(folds, len(np.unique(prompts)))
    fitted = np.sort(np.random.default_rng(0).permutation(len(prompts))[:_MOST_FITTED])
    signed, sign = _turned(differences[fitted])
    for _, test in GroupKFold(folds).split(margins, groups=prompts) if folds > 1 else ():
        # A weight of zero leaves a row out without a copy of all others.
        counted = np.where(np.isin(fitted, test), 0, weights[fitted])
        model = _fit(signed, sign, counted, C=_PENALTY, max_iter=300)
        for part in np.array_split(test, 1 + len(test) // 1000):
            margins[part] = differences[part] @ model
    return margins


def _turned(differences: Any) -> tuple[Any, NDArray[Any]]:
    """Turn every other comparison round, since scikit-learn needs both classes; without an intercept, all is the same.

    Returns:
        The differences as floating-point numbers, and the sign of each row.
    """
    sign = np.where(np.arange(differences.shape[0]) % 2, 1, -1).astype(np.int8)
    if not hasattr(differences, "indptr"):
        return differences * sign[:, None], sign
    values = differences.data.astype(np.float64)  # of float32, every product would make a copy
    values *= np.repeat(sign, np.diff(differences.indptr))
    return type(differences)((values, differences.indices, differences.indptr), shape=differences.shape), sign


def _fit(signed: Any, sign: NDArray[Any], weights: NDArray[np.float64] | None, **options: Any) -> NDArray[np.float64]:
    """Fit the weights of P(better) = sigmoid(w · differences), by scikit-learn's logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(fit_intercept=False, **options)
        return model.fit(signed, sign > 0, sample_weight=weights).coef_[0]


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
        counter = CountVectorizer(tokenizer=_words, token_pattern=None, max_features=self.vocabulary_size)
        counts = counter.fit_transform([*chosen, *rejected]).astype(np.float64)
        places = [*range(len(chosen))] * (1 + (len(chosen) == 1))  # one pair is counted as two halves
        signed, sign = _turned((counts[: len(chosen)] - counts[len(chosen) :])[places])
        weight = np.full(len(places), len(chosen) / len(places))
        weights = _fit(signed, sign, weight, C=1 / self.l2, solver="newton-cg", tol=1e-9, max_iter=1000)
        self.weights = dict(zip(counter.get_feature_names_out().tolist(), weights.tolist(), strict=True))
        return self

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the reward of each text; words outside the vocabulary have no weight."""
        return np.array([sum(self.weights.get(word, 0.0) for word in _words(text.lower())) for text in texts])

    def accuracy(self, chosen: Sequence[str], rejected: Sequence[str]) -> float:
        """Return the share of pairs whose chosen response has the greater reward; equal rewards count one half.

        Raises:
            ValueError: There are no pairs, or the two lists are of different lengths.
        """
        return accuracy(self.score(chosen), self.score(rejected))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
