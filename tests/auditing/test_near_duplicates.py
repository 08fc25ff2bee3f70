"""Signatures and near pairs, compared with the exact similarity of all pairs."""

import random
from itertools import combinations

import numpy as np
import pytest
from made_pairs import made_pairs, made_text, near_copy

from plaudit.auditing.near_duplicates import near_pairs, signatures, similarity


def signed(texts):
    return signatures(texts).astype(np.uint8)


def exact(one, two):
    one, two = ({tuple(words[at : at + 3]) for at in range(len(words) - 2)} for words in (one.split(), two.split()))
    return len(one & two) / len(one | two)


def near_copies(count):
    generator = random.Random(0)
    rows = made_pairs(count)
    rows += [near_copy(row, generator.uniform(0, 0.12), seed) for seed, row in enumerate(rows)]
    return [" ".join(row.values()) for row in rows]


def test_the_similarity_is_that_of_sets_of_word_triples():
    texts = near_copies(200)
    low = signed(texts)
    truth = np.array([exact(texts[number], texts[number + 200]) for number in range(200)])
    assert similarity(low[:200], low[200:]) - truth == pytest.approx(np.zeros(200), abs=0.2)
    assert np.mean(similarity(low[:200], low[200:]) - truth) == pytest.approx(0, abs=0.01)


def test_the_minimum_of_signatures_is_the_signature_of_all_texts_together():
    one, two = made_text(random.Random(0), 60), made_text(random.Random(1), 60)
    of_one, of_two, together = signatures([one, two, f"{one} {two}"])
    assert (np.minimum(of_one, of_two) == together).mean() > 0.9  # but for the triples across the border


def test_pairs_of_similarity_three_quarters_are_found_as_by_comparing_all():
    texts = near_copies(300)
    similar = {(n, n + 300) for n in range(300) if exact(texts[n], texts[n + 300]) >= 0.75}
    found = set(map(tuple, near_pairs(signed(texts)).tolist()))
    assert len(similar) > 100
    assert len(similar & found) >= 0.97 * len(similar)
    assert all(exact(texts[one], texts[two]) > 0.5 for one, two in found)


def test_many_copies_of_one_text_take_pairs_in_proportion_to_their_number():
    pairs = near_pairs(signed(["the same words again and again"] * 500))
    assert set(pairs[:, 1]) == set(range(1, 500))
    assert len(pairs) < 500 * 30


def test_only_the_texts_or_sides_that_are_asked_for_are_compared():
    low = signed(["the same few words"] * 4)
    assert near_pairs(low, first=2).tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert near_pairs(low, np.array([0, 3])).tolist() == [[0, 3]]


def test_each_test_text_is_found_however_many_texts_are_alike():
    question = "Tell me in plain words, and in as few of them as you can, how I should make and serve the dish number"
    low = signed([f"{question} {n}" for n in range(140)])
    found = near_pairs(low, first=40)
    assert found[:, 0].max() < 40
    assert set(found[:, 1].tolist()) == set(range(40, 140))


def test_texts_of_less_than_three_words_are_compared_too():
    assert near_pairs(signed(["one two", "one", "two", "One, two!", "two one"])).tolist() == [[0, 3]]


def test_chinese_texts_without_spaces_are_compared_by_characters():
    first = "奖励模型从人们的偏好中学习并为每个回答给出一个分数这样策略就能够通过强化学习得到改进"
    others = ["今天的天气很好我们一起去公园散步然后喝一杯茶", "机器翻译是自然语言处理的一个重要任务研究者很多"]
    texts = [first, first.replace("分数", "评分"), *others]
    assert near_pairs(signed(texts)).tolist() == [[0, 1]]
    assert all(similarity(*signed(pair)[:, None])[0] < 0.2 for pair in combinations(texts[1:], 2))
