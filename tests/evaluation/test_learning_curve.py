"""The learning curve as numbers: nested parts, the fit beside scipy's, its intervals, and what is not identifiable."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import least_squares

from plaudit.calibration import log_loss
from plaudit.errors import DataError
from plaudit.evaluation.learning_curve import (
    LearningCurve,
    fit_learning_curve,
    fit_power_law,
    measure_learning_curve,
    nested_subsets,
)
from plaudit.metrics import preference_metrics

SIZES = [500, 1000, 2000, 4000]


def differences_with(losses):
    """Differences of rewards that have these log losses."""
    return -np.log(np.expm1(np.maximum(losses, 1e-6)))


def world(a=0.4, b=3.0, c=0.35, count=3000, seed=0, sizes=SIZES):
    """Differences [S, C] whose mean losses follow `a + b n^-c` but for chance: hard comparisons are hard for all."""
    draw = np.random.default_rng(seed)
    hard = draw.gamma(1.0, 1.0, count)
    expected = np.array([a + b * size**-c for size in sizes])
    return differences_with(expected[:, None] * hard + 0.15 * draw.normal(size=(len(sizes), count)) * np.sqrt(hard))


# Nested parts


def test_each_part_holds_the_one_before_it_and_whole_prompts():
    keys = np.random.default_rng(0).integers(200, size=1000)
    parts = nested_subsets(keys)
    assert [len(part) for part in parts] == pytest.approx([125, 250, 500, 1000], abs=5)
    for smaller, larger in pairwise(parts):
        assert set(smaller) < set(larger)
    for part in parts:
        assert (np.diff(part) > 0).all()
        outside = np.delete(np.arange(1000), part)
        assert not set(keys[part]) & set(keys[outside])


def test_the_prompts_of_a_part_depend_on_the_seed_and_on_no_order():
    keys = np.random.default_rng(0).integers(200, size=1000)
    order = np.random.default_rng(1).permutation(1000)
    for part, shuffled in zip(nested_subsets(keys), nested_subsets(keys[order]), strict=True):
        assert Counter(keys[part].tolist()) == Counter(keys[order][shuffled].tolist())
    assert nested_subsets(keys)[0].tolist() == nested_subsets(keys)[0].tolist()
    assert nested_subsets(keys)[0].tolist() != nested_subsets(keys, seed=1)[0].tolist()


def test_keys_may_be_texts_and_other_fractions_leave_a_part_as_it_is():
    keys = [f"prompt {number % 50}" for number in range(100)]
    half = nested_subsets(keys, (0.5, 1))[0]
    assert nested_subsets(keys, (0.1, 0.5, 1))[1].tolist() == half.tolist()


def test_parts_that_would_be_empty_or_the_same_are_an_error_that_counts_the_prompts():
    with pytest.raises(DataError, match="they have 2 prompts, the largest with 30 rows.*needs more prompts"):
        nested_subsets([0] * 30 + [1] * 30)
    with pytest.raises(DataError, match="of 0 training rows"):
        nested_subsets([])


# The fit


@pytest.mark.parametrize("curve", [(0.4, 3.0, 0.35), (0.0, 1.2, 0.1), (0.5, 40.0, 1.0)])
def test_a_curve_without_noise_is_found_again(curve):
    a, b, c = curve
    n = np.array(SIZES)
    fit = fit_power_law(n, a + b * n**-c)
    assert fit[2] == pytest.approx(c, rel=0.015)
    assert fit[0] + fit[1] * 8000 ** -fit[2] == pytest.approx(a + b * 8000**-c, abs=1e-3)


def test_the_fit_is_as_good_as_scipys():
    draw, n = np.random.default_rng(0), np.array(SIZES)
    losses = 0.4 + 3 * n**-0.35 + 0.01 * draw.normal(size=(20, 4))
    x = n / n[-1]
    for fit, loss in zip(fit_power_law(n, losses), losses, strict=True):
        ours = ((fit[0] + fit[1] * n ** -fit[2] - loss) ** 2).sum()
        starts = [(0.3, 0.2, start) for start in (0.05, 0.5, 1.5)]
        bounds = ([0, 0, 0.01], [np.inf, np.inf, 2])
        theirs = min(
            2 * least_squares(lambda p, y=loss: p[0] + p[1] * x ** -p[2] - y, start, bounds=bounds).cost
            for start in starts
        )
        assert ours <= theirs + 1e-6


def test_a_rising_curve_fits_as_a_flat_one():
    a, b, _ = fit_power_law(SIZES, [0.5, 0.6, 0.7, 0.8])
    assert (a, b) == (pytest.approx(0.65), 0)


# The curve


def test_a_curve_predicts_the_loss_at_twice_the_data():
    curve = fit_learning_curve(SIZES, world(), np.arange(3000))
    truth = 0.4 + 3 * 8000**-0.35
    assert curve.identifiable
    assert curve.predicted["size"] == 8000
    assert curve.predicted["low"] < truth < curve.predicted["high"]
    assert curve.predicted["gain_low"] < 0.4 + 3 * 4000**-0.35 - truth < curve.predicted["gain_high"]
    assert curve.predicted["gain"] == pytest.approx(curve.losses[-1] - curve.predicted["loss"])
    assert "Doubling the training rows to 8,000 is predicted to lower the held-out log loss from" in curve.verdict
    assert f"{curve.predicted['loss']:.3f}" in curve.verdict


def test_losses_and_accuracies_are_those_of_an_evaluation():
    draw = np.random.default_rng(0)
    differences, labels, weights = draw.normal(1, 2, (4, 60)), draw.random(60), draw.random(60) + 0.1
    prompts = np.arange(60) // 3
    curve = fit_learning_curve(SIZES, differences, prompts, labels, weights, resamples=50)
    for place, each in enumerate(differences):
        figures = preference_metrics(each, np.zeros(60), labels, weights, prompts)
        assert curve.losses[place] == pytest.approx(log_loss(each, labels, weights))
        assert curve.accuracies[place] == figures["accuracy"]
        assert (curve.accuracy_low[place], curve.accuracy_high[place]) == (
            figures["accuracy_low"],
            figures["accuracy_high"],
        )
        assert curve.loss_low[place] < curve.losses[place] < curve.loss_high[place]
    assert (curve.comparisons, curve.prompts) == (60, 20)


def test_comparisons_of_one_prompt_count_as_one_case():
    differences = world(count=1000)
    alone = fit_learning_curve(SIZES, differences, np.arange(1000))
    copied = fit_learning_curve(SIZES, np.repeat(differences, 5, axis=1), np.repeat(np.arange(1000), 5))
    for low, high in (("loss_low", "loss_high"), ("accuracy_low", "accuracy_high")):
        widths = [np.subtract(getattr(curve, high), getattr(curve, low)) for curve in (alone, copied)]
        assert widths[1] == pytest.approx(widths[0], rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_curve_is_not_identifiable(seed):
    curve = fit_learning_curve(SIZES, world(a=0.6, b=0, seed=seed), np.arange(3000))
    assert not curve.identifiable
    assert curve.predicted is None
    assert "Not identifiable" in curve.verdict
    assert "within chance" in curve.verdict


def test_a_curve_that_falls_within_too_few_comparisons_is_not_identifiable():
    curve = fit_learning_curve(SIZES, world(a=0.5, b=1.5, count=60), np.arange(60))
    assert not curve.identifiable


def test_a_jump_that_no_power_law_has_is_not_identifiable():
    losses = np.array([0.69, 0.69, 0.69, 0.5])
    hard = np.random.default_rng(0).gamma(4.0, 0.25, 5000)
    curve = fit_learning_curve(SIZES, differences_with(losses[:, None] * hard), np.arange(5000))
    assert not curve.identifiable
    assert "less with each doubling" in curve.verdict


def test_accuracy_that_rises_while_the_loss_does_not_is_said():
    draw = np.random.default_rng(0)
    right = np.array([0.55, 0.65, 0.75, 0.85])[:, None] > draw.random(2000)
    scale = np.array([0.5, 1.5, 4.0, 12.0])[:, None]
    curve = fit_learning_curve(SIZES, np.where(right, scale, -scale), np.arange(2000))
    assert "It rises with more data. Accuracy does rise" in curve.verdict


def test_a_curve_survives_json_and_is_the_same_each_time():
    curve = fit_learning_curve(SIZES, world(), np.arange(3000), resamples=200)
    assert LearningCurve(**json.loads(json.dumps(curve.to_dict()))) == curve
    assert fit_learning_curve(SIZES, world(), np.arange(3000), resamples=200) == curve


@pytest.mark.parametrize(
    ("sizes", "differences", "message"),
    [
        ([1, 2, 3], np.ones((3, 5)), "at least 4 ascending sizes"),
        ([4, 3, 2, 1], np.ones((4, 5)), "ascending"),
        (SIZES, np.ones((3, 5)), r"shape \[4, C\], got \(3, 5\)"),
        (SIZES, np.array([[1.0], [1.0], [np.nan], [1.0]]), "the model of 2,000 rows is not finite"),
    ],
)
def test_what_makes_no_curve_is_an_error(sizes, differences, message):
    with pytest.raises(DataError, match=message):
        fit_learning_curve(sizes, differences, np.arange(differences.shape[1]))


def test_held_out_ties_alone_are_an_error():
    with pytest.raises(DataError, match="got ties or weight 0 only"):
        fit_learning_curve(SIZES, np.ones((4, 5)), np.arange(5), labels=[0.5] * 5)


# The measurement


def test_models_train_on_the_parts_from_the_smallest_and_the_whole_may_be_given():
    keys, seen = np.arange(4000), []
    model = dict(zip(SIZES, world(count=500), strict=True))

    def train(rows):
        seen.append(len(rows))
        return model[len(rows)]

    everything = measure_learning_curve(train, keys, np.arange(500))
    assert seen == SIZES
    given = measure_learning_curve(train, keys, np.arange(500), whole=model[4000])
    assert seen == [*SIZES, *SIZES[:-1]]
    assert given == everything
    assert given.sizes == SIZES
