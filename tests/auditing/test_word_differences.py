"""Differences in words, compared with scikit-learn's counts of words without hashing."""

import numpy as np
from made_pairs import made_pairs
from sklearn.feature_extraction.text import CountVectorizer

from plaudit.auditing.word_differences import WordDifferences


def differences(*batches):
    words = WordDifferences()
    for better, worse in batches:
        words.append([*better, *worse], [(place, place + len(better)) for place in range(len(better))])
    return words.most_frequent().astype(int)


def test_differences_are_those_of_words_and_neighbours_in_any_batches():
    rows = made_pairs(4, seed=2)  # words of which no two fall into one column
    chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
    counter = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\w+", dtype=np.int32)
    counts = counter.fit_transform([*chosen, *rejected]).toarray()
    expected = counts[:4] - counts[4:]
    found = differences((chosen[:1], rejected[:1]), ([], []), (chosen[1:], rejected[1:]))
    assert np.array_equal((found @ found.T).toarray(), expected @ expected.T)


def test_turning_all_comparisons_round_turns_the_signs():
    one, two = ["a b c", "a c b"], ["b a c", "a b"]
    assert np.array_equal(differences((one, two)).toarray(), -differences((two, one)).toarray())


def test_each_chinese_character_is_a_word():
    assert abs(differences((["你好"], [""]))).sum() == 3  # two words and one pair
