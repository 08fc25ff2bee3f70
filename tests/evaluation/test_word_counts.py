"""The differences between texts in words and word pairs, compared with scikit-learn's counts."""

import numpy as np
import pytest
from made_pairs import made_pairs
from sklearn.feature_extraction.text import CountVectorizer

from plaudit.evaluation.baselines import baseline_accuracies, cross_validate
from plaudit.evaluation.word_counts import WordStore, presence_differences, split_words


def test_each_chinese_character_is_a_word():
    assert split_words("Hello 你好, wörld_2") == ["hello", "你", "好", "wörld_2"]


@pytest.mark.parametrize("least", [1, 2])
def test_differences_are_those_of_words_and_neighbours(least):
    rows = made_pairs(10, seed=2)  # words of which no two fall into one column
    rows = [{side: row[side] + " and so on" for side in row} for row in rows] + rows
    chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
    counter = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\w+", dtype=np.int32)
    counts = counter.fit_transform([*chosen, *rejected]).toarray()
    expected = (counts[:20] - counts[20:])[:, counts.sum(axis=0) >= least]
    found = presence_differences(WordStore([*chosen, *rejected]), np.arange(20), np.arange(20, 40), least).astype(int)
    assert np.array_equal((found @ found.T).toarray(), expected @ expected.T)


def test_turning_all_comparisons_round_turns_the_signs():
    store, one, two = WordStore(["a b c", "a c b", "b a c", "a b"]), np.array([0, 1]), np.array([2, 3])
    there, back = presence_differences(store, one, two, 1), presence_differences(store, two, one, 1)
    assert np.array_equal(there.toarray(), -back.toarray())


def test_the_same_word_has_the_same_hash_in_any_store():
    first, second = WordStore(["one two"]), WordStore(["two three one"])
    assert first.hashes()[0] == second.hashes()[2]


def test_baselines_are_cross_validated_by_prompt():
    rows = made_pairs(100)
    chosen = [row["chosen"] + " truly and surely" for row in rows]
    figures = baseline_accuracies(chosen, [row["rejected"] for row in rows], np.arange(100))
    assert figures["bag_of_words"]["accuracy"] > 0.95
    assert figures["longer"]["low"] <= figures["longer"]["accuracy"] <= figures["longer"]["high"]
    # Words that mark the better response on one prompt alone say nothing about other prompts.
    of_prompt = [f"word{number // 5} is it" for number in range(100)]
    alone = baseline_accuracies(of_prompt, [f"other{number // 5} is it" for number in range(100)], np.arange(100) // 5)
    assert alone["bag_of_words"]["accuracy"] == 0.5


def test_no_model_is_fitted_to_one_prompt():
    figures, margins = cross_validate(np.ones((2, 6)), np.ones((2, 3)), np.zeros(2), np.ones(2))
    assert np.isnan(figures["style"]["accuracy"])
    assert figures["longer"]["accuracy"] == 1
    assert margins.tolist() == [0, 0]
