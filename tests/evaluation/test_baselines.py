"""The baselines, worked by hand."""

import numpy as np
import pytest

from plaudit.evaluation.baselines import BagOfWords, cross_validate, longer_wins


def test_longer_wins_counts_equal_lengths_one_half():
    assert longer_wins(["long one", "b", "cc"], ["short", "bbb", "dd"]) == pytest.approx((1 + 0 + 0.5) / 3)


def test_one_word_has_the_weight_that_solves_its_equation():
    """Three wins and one loss of "good" against the empty text: the gradient 4 sigmoid(w) - 3 + l2 w vanishes."""
    model = BagOfWords(l2=0.5).fit(["good", "good", "good", ""], ["", "", "", "good"])
    w = model.weights["good"]
    assert 4 / (1 + np.exp(-w)) - 3 + 0.5 * w == pytest.approx(0, abs=1e-6)
    assert model.score(["Good, GOOD unknown", ""]) == pytest.approx([2 * w, 0])


def test_accuracy_counts_ties_one_half():
    model = BagOfWords().fit(["yes", "yes"], ["no", "no"])
    assert model.accuracy(["yes", "no", "what"], ["no", "yes", "ever"]) == pytest.approx((1 + 0 + 0.5) / 3)


def test_words_that_stand_on_both_sides_weigh_nothing():
    model = BagOfWords().fit(["the yes", "the yes"], ["the no", "no the"])
    assert model.weights["the"] == pytest.approx(0)
    assert model.weights["yes"] == pytest.approx(-model.weights["no"])


def test_swapping_the_sides_flips_the_weights():
    a, b = ["red fox runs", "blue sky", "red red"], ["green fox", "blue runs sky", "sky"]
    forth, back = BagOfWords().fit(a, b).weights, BagOfWords().fit(b, a).weights
    assert forth.keys() == back.keys()
    assert list(forth.values()) == pytest.approx([-weight for weight in back.values()], abs=1e-6)


def test_the_fit_does_not_hang_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(200)]
    a, b = texts[:100], texts[100:]
    order = rng.permutation(100)
    shuffled = BagOfWords(vocabulary_size=5).fit([a[i] for i in order], [b[i] for i in order])
    straight = BagOfWords(vocabulary_size=5).fit(a, b)
    assert shuffled.weights == pytest.approx(straight.weights, abs=1e-6)
    assert len(straight.weights) == 5


def test_separable_pairs_with_hardly_any_regularisation_still_converge():
    model = BagOfWords(l2=1e-4).fit(["win " * 50] * 20, ["lose " * 50] * 20)
    assert np.isfinite(list(model.weights.values())).all()
    assert model.accuracy(["win"], ["lose"]) == 1.0


def test_steps_that_overshoot_still_end_where_the_loss_is_least():
    """Newton's second step from these counts is too long, and without being halved it never comes back."""
    counts = [(0, 1), (1, 12), (-1, 105), (7, 27)]
    sides = [
        [" ".join(word for word, n in zip("ab", row, strict=True) for _ in range(sign * n)) for row in counts]
        for sign in (1, -1)
    ]
    l2 = 0.00032106153968985686
    weights = BagOfWords(l2=l2).fit(*sides).weights
    x, w = np.array(counts), np.array([weights["a"], weights["b"]])
    assert x.T @ (1 / (1 + np.exp(x @ w))) == pytest.approx(l2 * w, abs=2e-6)  # the slope is zero


def test_pairs_without_a_single_word_are_ties():
    assert BagOfWords().fit([""], [""]).accuracy([""], [""]) == 0.5


@pytest.mark.parametrize(("chosen", "rejected"), [([], []), (["a"], []), (["a"], ["b", "c"])])
def test_uneven_or_missing_pairs_are_refused(chosen, rejected):
    for use in (longer_wins, BagOfWords().fit, BagOfWords().accuracy):
        with pytest.raises(ValueError, match="expected one"):
            use(chosen, rejected)


def test_baselines_are_cross_validated_by_prompt():
    good, style = np.array([[1.0, 0.0]] * 90 + [[0.0, 1.0]] * 10), np.ones((100, 6))
    figures, margins = cross_validate(style, good, np.arange(100), np.ones(100))
    assert figures["bag_of_words"]["accuracy"] > 0.95
    assert figures["longer"]["low"] <= figures["longer"]["accuracy"] == 1
    assert (margins[:90] > 0).all()
    # What marks the better response on one prompt alone says nothing about other prompts.
    alone = np.repeat(np.eye(20), 5, axis=0)
    assert cross_validate(style, alone, np.arange(100) // 5, np.ones(100))[0]["bag_of_words"]["accuracy"] == 0.5


def test_no_model_is_fitted_to_one_prompt_or_none():
    figures, margins = cross_validate(np.ones((2, 6)), np.ones((2, 3)), np.zeros(2), np.ones(2))
    assert np.isnan(figures["style"]["accuracy"])
    assert figures["longer"]["accuracy"] == 1
    assert margins.tolist() == [0, 0]
    figures, margins = cross_validate(np.ones((0, 6)), np.ones((0, 3)), np.zeros(0), np.ones(0))
    assert np.isnan(figures["longer"]["accuracy"])
    assert len(margins) == 0


def test_two_prompts_are_enough_for_a_model():
    _, margins = cross_validate(np.ones((2, 6)), np.ones((2, 3)), np.arange(2), np.ones(2))
    assert (margins > 0).all()
