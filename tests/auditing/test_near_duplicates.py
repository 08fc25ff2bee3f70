"""Candidates by MinHash, compared with the exact similarity of all pairs."""

import random
from itertools import combinations

import numpy as np
import pytest
from made_pairs import made_pairs, near_copy

from plaudit.auditing.near_duplicates import candidate_pairs, jaccard, shingles
from plaudit.evaluation.word_counts import WordStore


def grams(text):
    words = text.lower().split()
    width = min(3, len(words))
    return {tuple(words[at : at + width]) for at in range(len(words) - width + 1)} if words else set()


def test_the_similarity_is_that_of_sets_of_word_triples():
    texts = [
        "one two three four five",
        "one two three four six",
        "One Two",
        "one two",
        "",
        "one two three four one two three",
    ]
    store = WordStore(texts)
    of_texts = [shingles(store.hashes(), store.words(place, place + 1)) for place in range(len(texts))]
    for one, two in combinations(range(len(texts)), 2):
        a, b = grams(texts[one]), grams(texts[two])
        assert jaccard(of_texts[one], of_texts[two]) == pytest.approx(len(a & b) / len(a | b) if a | b else 0)


def test_pairs_of_similarity_three_quarters_are_found_as_by_comparing_all():
    generator = random.Random(0)
    rows = made_pairs(300)
    rows += [near_copy(row, generator.uniform(0, 0.12), seed) for seed, row in enumerate(rows)]
    texts = [" ".join(row.values()) for row in rows]
    similar = set()
    for one, two in ((n, n + 300) for n in range(300)):
        a, b = grams(texts[one]), grams(texts[two])
        if len(a & b) >= 0.75 * len(a | b):
            similar.add((one, two))
    found = set(map(tuple, candidate_pairs(WordStore(texts), [(n, n + 1) for n in range(600)])))
    assert len(similar) > 100
    assert len(similar & found) >= 0.99 * len(similar)


def test_many_copies_of_one_text_take_pairs_in_proportion_to_their_number():
    store = WordStore(["the same words again and again"] * 500)
    pairs = np.array(list(candidate_pairs(store, [(n, n + 1) for n in range(500)])))
    assert set(pairs[:, 1]) == set(range(1, 500))
    assert len(pairs) < 500 * 30


def test_only_pairs_across_are_given_where_that_is_asked():
    store = WordStore(["the same few words"] * 4)
    assert list(candidate_pairs(store, [(n, n + 1) for n in range(4)], first=2)) == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_texts_without_words_are_no_candidates():
    assert list(candidate_pairs(WordStore(["", "?!"]), [(0, 1), (1, 2)])) == []
