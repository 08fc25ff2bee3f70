"""The preference world tells the truth about itself: its rewards, its labels, its ceiling and its splits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.errors import DataError
from plaudit.evaluation.baselines import BagOfWords, longer_wins
from plaudit.quickstart import synthetic
from plaudit.quickstart.synthetic import PreferenceWorld, SyntheticPair, ceiling, true_reward

CAPITAL = "What is the capital of France?"
LARGER = "Which is larger, two or five?"
PROMPTS = PreferenceWorld(seed=5).prompts(200)


@pytest.fixture(scope="module")
def train():
    return PreferenceWorld(seed=1).pairs(4000)


@pytest.fixture(scope="module")
def held_out():
    return PreferenceWorld(seed=1).pairs(2000, split="test")


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        (CAPITAL, "Paris.", 3 - 0.02),
        (CAPITAL, "the answer is PARIS", 3 - 0.08),  # case and the full stop do not matter
        (CAPITAL, "Rome.", -3 - 0.02),
        (CAPITAL, "Paris or Rome.", -3 - 0.06),  # hedging is wrong
        (CAPITAL, "Parisian.", -3 - 0.02),  # whole words only
        (CAPITAL, "Gladly. Paris.", 3 + 0.5 - 0.04),
        (CAPITAL, "", -3),
        (CAPITAL, "Paris " * 1000, 3 - 1.2),  # length costs no more beyond sixty words
        (LARGER, "Five.", 3 - 0.02),
        (LARGER, "Five, not two.", -3 - 0.06),  # an option of the choice is a rival, even if named to be refused
        ("What is two plus three?", "Two plus three is five.", 3 - 0.10),  # what a sum itself names is none
        ("Repeat the word tiger.", "Tiger!", 3 - 0.02),
        ("Which one is a tool, lemon or hammer?", "Hammer.", 3 - 0.02),
        (f"{CAPITAL} Answer in one word.", "Paris.", 3 + 2 - 0.02),
        (f"{CAPITAL} Answer in one word.", "It is Paris.", 3 - 2 - 0.06),
        (f"{CAPITAL} Answer in one word.", "Rome.", -3 + 2 - 0.02),
        (f"{CAPITAL} Answer in one word.", "?!", -3 - 2),
        (f"{CAPITAL} Use at least two sentences.", "Paris. Books say so.", 3 + 2 - 0.08),
        (f"{CAPITAL} Use at least two sentences.", "Paris...!", 3 - 2 - 0.02),
        (f"{CAPITAL} Be polite.", "Paris. Thanks for asking.", 3 + 2 + 0.5 - 0.08),
        (f"{CAPITAL} End with an exclamation mark.", "Paris! \n", 3 + 2 - 0.02),
        (f"{CAPITAL} Mention the river.", "Paris. Think of the River.", 3 + 2 - 0.10),
        (f"{CAPITAL} Mention the river.", "Paris. Think of the candle.", 3 - 2 - 0.10),
        (f"  {CAPITAL}\n Mention the river. ", "Paris. Think of the river.", 3 + 2 - 0.10),  # spacing is free
    ],
)
def test_true_reward_by_hand(prompt, response, expected):
    assert true_reward(prompt, response) == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PROMPTS), st.text(max_size=300))
def test_any_text_has_a_bounded_reward(prompt, response):
    assert -6.2 <= true_reward(prompt, response) <= 5.5


def test_a_very_long_response_is_read_quickly_and_bounded():
    assert -6.2 <= true_reward(PROMPTS[0], "a. " * 200_000) <= 5.5


@pytest.mark.parametrize("prompt", ["", "Hello", "What is the capital of Atlantis?", f"{CAPITAL} Sing it."])
def test_a_prompt_from_elsewhere_is_refused_by_name(prompt):
    with pytest.raises(DataError, match=r"PreferenceWorld\.prompts"):
        true_reward(prompt, "Paris.")


def test_boilerplate_neither_answers_nor_mentions_anything():
    """Otherwise padding would spoil a right answer, or follow an instruction by accident."""
    boilerplate = " ".join(synthetic.FILLERS + synthetic.REMARKS + synthetic.FRAMES)
    words = set(synthetic.ResponseFeatures.of(boilerplate).words)
    courtesies = set(synthetic.ResponseFeatures.of(" ".join(synthetic.OPENERS + synthetic.CLOSERS)).words)
    answers = {answer.lower() for answer in synthetic.ANSWERS}
    assert words.isdisjoint(answers | set(synthetic.TOPICS) | synthetic.COURTESIES)
    assert courtesies.isdisjoint(answers | set(synthetic.TOPICS))
    assert all(synthetic.ResponseFeatures.of(text).polite for text in synthetic.OPENERS + synthetic.CLOSERS)


def test_the_same_seed_gives_the_same_draws_and_fewer_are_a_prefix():
    world = PreferenceWorld(seed=3)
    assert world.pairs(50) == PreferenceWorld(seed=3).pairs(50) == world.pairs(80)[:50]
    assert world.responses(50) == world.responses(80)[:50]
    assert world.candidates(CAPITAL, 5) == world.candidates(CAPITAL, 8)[:5]
    assert world.prompts(50) == world.prompts(80)[:50]
    assert world.pairs(50) != PreferenceWorld(seed=4).pairs(50)


def test_no_held_out_prompt_was_trained_on_whatever_the_seed(train, held_out):
    seen = {pair.prompt for pair in train} | set(PreferenceWorld(seed=9).prompts(4000))
    fresh = PreferenceWorld(seed=7).responses(1000)
    assert seen.isdisjoint({pair.prompt for pair in held_out} | {response.prompt for response in fresh})


def test_pairs_hold_two_different_responses_and_their_bradley_terry_probability(held_out):
    for pair in held_out:
        assert pair.chosen != pair.rejected
        margin = true_reward(pair.prompt, pair.chosen) - true_reward(pair.prompt, pair.rejected)
        assert math.log(pair.probability / (1 - pair.probability)) == pytest.approx(margin)


def test_labels_follow_bradley_terry(train):
    """In every band of certainty the likelier response was chosen as often as it should be, within four sigma."""
    certainty = np.array([max(pair.probability, 1 - pair.probability) for pair in train])
    likelier_won = np.array([pair.probability > 0.5 for pair in train])
    for low, high in itertools.pairwise([0.5, 0.6, 0.9, 0.99, 0.999, 1.0]):
        band = (certainty > low) & (certainty <= high)
        p = certainty[band]
        assert len(p) > 100
        assert abs(likelier_won[band].mean() - p.mean()) < 4 * math.sqrt((p * (1 - p)).sum()) / len(p)


def test_qualities_vary_independently():
    """Right answers are neither more obedient, nor more polite, nor longer than wrong ones."""
    rows = []
    for item in PreferenceWorld(seed=2).responses(4000):
        reading = synthetic.ResponseFeatures.of(item.response)
        rest = item.reward - synthetic.POLITE * reading.polite - synthetic.WORD * len(reading.words)
        if round(rest) in (3, -3):  # no instruction to follow
            continue
        # What is left is 3 for the answer and 2 for the instruction, each with its sign.
        rows.append([rest > 0, round(rest) in (5, -1), reading.polite, len(reading.words)])
    right, *others = np.array(rows, dtype=float).T
    assert right.mean() == pytest.approx(0.5, abs=0.03)
    for other in others:
        assert abs(np.corrcoef(right, other)[0, 1]) < 0.06


def test_ceiling_by_hand():
    pairs = [SyntheticPair("p", "a", "b", probability) for probability in (0.9, 0.2, 0.5)]
    assert ceiling(pairs) == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    with pytest.raises(DataError, match="at least one"):
        ceiling([])


def test_nothing_but_reading_the_prompt_comes_near_the_ceiling(train, held_out):
    best = ceiling(held_out)
    assert 0.85 < best < 0.93
    chosen, rejected = [pair.chosen for pair in held_out], [pair.rejected for pair in held_out]
    words = BagOfWords().fit([pair.chosen for pair in train], [pair.rejected for pair in train])
    assert words.accuracy(chosen, rejected) < best - 0.10
    assert 0.4 < longer_wins(chosen, rejected) < 0.6


def test_a_row_is_conversational():
    assert SyntheticPair("p", "a", "b", 0.7).row() == {
        "prompt": [{"role": "user", "content": "p"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }


def test_candidates_are_responses_to_one_prompt_right_half_of_the_time():
    found = PreferenceWorld(seed=4).candidates(CAPITAL, 1000)
    assert {each.prompt for each in found} == {CAPITAL}
    assert all(each.reward == true_reward(CAPITAL, each.response) for each in found)
    assert np.mean([each.reward > 0 for each in found]) == pytest.approx(0.5, abs=0.06)
