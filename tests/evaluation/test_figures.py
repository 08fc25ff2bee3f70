"""The figures of an evaluation, worked by hand, and what must and must not change them."""

import math

import numpy as np
import pytest

from plaudit.evaluation.figures import METRICS, calibration_table, compute_figures
from plaudit.evaluation.preference_data import read_preferences
from plaudit.metrics import preference_metrics, wilson_interval
from plaudit.scoring.completions import count_characters

COUNTS = ("rows", "prompts", "comparisons", "ties", "identical")


def number_in(text):
    """The reward of a response, which is written in it."""
    return float(text.split("=")[1])


def evaluated(rows, reward=number_in):
    """The comparisons, the rewards and the lengths of some rows."""
    data = read_preferences(rows)
    rewards = np.array([reward(text) for text in data.sequences])
    return data, rewards, np.array([count_characters(text) for text in data.sequences], dtype=float)


def figures_of(rows, reward=number_in, *, subset=None):
    selected = [subset is None or row.get("subset") == subset for row in rows]
    return compute_figures(*evaluated(rows, reward), np.array(selected))


def pair(prompt, chosen, rejected, **columns):
    return {"prompt": prompt, "chosen": f" ={chosen}", "rejected": f" ={rejected}"} | columns


def random_rows(size=120, seed=0):
    draw = np.random.default_rng(seed)
    values = draw.integers(-32, 32, (size, 2)) / 8 + [0.75, 0]  # exact as floats, also moved and doubled
    return [
        pair(f"Q{n // 3}", *value, subset="even" if n % 2 else "odd", weight=float(n % 4 + 1))
        for n, value in enumerate(values.tolist())
    ]


def test_the_figures_are_those_worked_by_hand():
    rows = [
        pair("a", 2.0, 1.0, subset="x"),  # right; equally long
        pair("b", 1.0, 1.0, subset="x") | {"rejected": "  =1.0"},  # equal rewards; the shorter is chosen
        pair("b", -1.5, 0.5, subset="y"),  # wrong; the longer is chosen
        pair("c", 0, 0.5, subset="y", tie=True),
        pair("d", 3, 3, subset="y"),
    ]
    figures = figures_of(rows)
    assert list(figures) == list(METRICS)
    assert [figures[name] for name in COUNTS] == [5, 2, 3, 1, 1]
    assert figures["accuracy"] == pytest.approx(1.5 / 3)
    assert figures["reward_ties"] == 1
    assert figures["longer_wins"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert figures["shorter_wins"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert figures["margin"] == pytest.approx((1 + 0 - 2) / 3)
    losses = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(2))]
    assert figures["log_loss"] == pytest.approx(sum(losses) / 3)
    confidences = [1 / (1 + math.exp(-1)), 0.5, 1 / (1 + math.exp(-2))]
    assert figures["calibration_error"] == pytest.approx(sum(confidences) / 3 - 0.5)
    data, values, _ = evaluated(rows)
    assert calibration_table(data, values) == [
        {"confidence": pytest.approx(sum(confidences) / 3), "accuracy": pytest.approx(0.5), "share": 1.0}
    ]
    assert figures["temperature"] == math.inf
    assert figures["calibrated_log_loss"] == pytest.approx(math.log(2))
    # 1, 0, -2 and -1, 0, 2 against 0, -1, 1 and 0, 1, -1: ranks 5 3.5 1 2 3.5 6 and 3.5 1.5 5.5 3.5 5.5 1.5.
    assert figures["length_correlation"] == pytest.approx(-10 / math.sqrt(17 * 16))
    rewards = [2, 1, 1, 1, -1.5, 0.5]  # of the comparisons
    assert figures["mean_reward"] == pytest.approx(np.mean(rewards))
    assert figures["std_reward"] == pytest.approx(np.std(rewards))
    assert (figures["min_reward"], figures["max_reward"]) == (-1.5, 2)


def test_the_figures_of_some_rows_are_those_of_these_rows_alone():
    rows = random_rows()
    for subset in ("even", "odd"):
        assert figures_of(rows, subset=subset) == figures_of([row for row in rows if row["subset"] == subset])


def test_a_model_that_sees_length_alone_has_a_length_balanced_accuracy_of_one_half():
    texts = [("x" * (n % 5 + 1), "y" * (n % 3 + 1)) for n in range(60)]
    rows = [{"prompt": f"Q{n}", "chosen": chosen, "rejected": rejected} for n, (chosen, rejected) in enumerate(texts)]
    figures = figures_of(rows, len)
    assert figures["accuracy"] > 0.6
    assert (figures["longer_accuracy"], figures["shorter_accuracy"]) == (1, 0)
    assert figures["length_balanced_accuracy"] == 0.5


def test_a_group_counts_as_one_pair_does():
    group = {"prompt": "g", "completions": [" =3", " =2", " =1"], "ranks": [0, 1, 2]}
    figures = figures_of([group, pair("p", 0, 1)])
    assert figures["comparisons"] == 4
    assert figures["accuracy"] == pytest.approx(1 / 2)
    assert figures["margin"] == pytest.approx((4 / 3 - 1) / 2)
    assert figures["mean_reward"] == pytest.approx((2 + 1 / 2) / 2)
    assert figures["std_reward"] == pytest.approx(math.sqrt(((9 + 4 + 1) / 3 + (0 + 1) / 2) / 2 - 1.25**2))


def test_soft_labels_count_for_the_better_one_and_as_shares_in_the_loss():
    rows = [pair("a", 0, 1, label=0.25), pair("b", 5, 0, label=0.5)]
    figures = figures_of(rows)
    assert (figures["comparisons"], figures["accuracy"], figures["margin"]) == (2, 1.0, 1.0)
    better, worse = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    undecided = (math.log(1 + math.exp(-5)) + math.log(1 + math.exp(5))) / 2
    assert figures["log_loss"] == pytest.approx((0.75 * better + 0.25 * worse + undecided) / 2)


def test_a_label_of_one_half_has_a_log_loss_and_no_figure_that_needs_a_better_response():
    figures = figures_of([pair("a", 0, 1, label=0.5)])
    undefined = {name for name in METRICS if math.isnan(figures[name])}
    assert undefined == {
        "accuracy", "accuracy_low", "accuracy_high", "longer_wins", "shorter_wins", "margin", "mean_reward",
        "std_reward", "min_reward", "max_reward", "length_correlation", "longer_accuracy", "shorter_accuracy",
        "length_balanced_accuracy",
    }  # fmt: skip
    assert (figures["comparisons"], figures["reward_ties"]) == (1, 0)
    assert figures["log_loss"] > math.log(2)


def test_the_interval_takes_the_rows_of_a_prompt_together():
    apart = [pair(f"Q{n}", int(n < 280), 0.5) for n in range(400)]
    together = [row | {"prompt": f"Q{n // 100}"} for n, row in enumerate(apart)]
    wide, narrow = figures_of(together), figures_of(apart)
    assert wide["accuracy"] == narrow["accuracy"] == 0.7
    assert (narrow["accuracy_low"], narrow["accuracy_high"]) == wilson_interval(0.7, 400)
    assert wide["accuracy_high"] - wide["accuracy_low"] > 0.6


def test_figures_that_training_reports_too_are_those_of_preference_metrics():
    rows = [row | {"label": n % 5 / 4} for n, row in enumerate(random_rows()) if row["chosen"] != row["rejected"]]
    rows[0] = pair("Q", 1, "1.0", weight=3.0, label=0.75)  # equal rewards of different responses
    group = {"prompt": "g", "completions": [" =3", " =2", " =2.5", " =1"], "ranks": [0, 1, 1, 2], "weight": 2.0}
    figures = figures_of([*rows, group])
    chosen, rejected = ([number_in(row[side]) for row in rows] for side in ("chosen", "rejected"))
    shared = preference_metrics(
        [*chosen, 3, 3, 3, 2, 2.5],
        [*rejected, 2, 2.5, 1, 1, 1],
        labels=[row["label"] for row in rows] + [1] * 5,
        weights=[row["weight"] for row in rows] + [2 / 5] * 5,
    )
    names = shared.keys() & figures.keys()
    assert names == {"accuracy", "reward_ties", "margin", "mean_reward", "min_reward", "max_reward"}
    assert {name: figures[name] for name in names} == pytest.approx({name: shared[name] for name in names})


# What must and must not change the figures


def test_swapping_chosen_and_rejected_turns_all_verdicts_round():
    rows = random_rows()
    forth = figures_of(rows)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    back = figures_of(swapped)
    for name in ("accuracy", "longer_wins", "shorter_wins"):
        assert back[name] == pytest.approx(1 - forth[name])
    assert back["accuracy_low"] == pytest.approx(1 - forth["accuracy_high"])
    assert back["margin"] == pytest.approx(-forth["margin"])
    assert forth["temperature"] < math.inf == back["temperature"]
    for name in ("mean_reward", "std_reward", "reward_ties", "length_correlation"):  # nothing that people said
        assert back[name] == pytest.approx(forth[name])


def test_turning_the_rewards_round_turns_the_correlation_with_length_round():
    rows = random_rows()
    forth = figures_of(rows)
    back = figures_of(rows, lambda text: -number_in(text))
    assert abs(forth["length_correlation"]) > 0.1
    assert back["length_correlation"] == pytest.approx(-forth["length_correlation"])
    assert back["accuracy"] == pytest.approx(1 - forth["accuracy"])
    assert back["longer_wins"] == forth["longer_wins"] != pytest.approx(0.5)
    assert forth["shorter_wins"] == pytest.approx(1 - forth["longer_wins"])


def test_the_order_of_the_rows_changes_nothing():
    rows = random_rows()
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    assert figures_of(shuffled) == pytest.approx(figures_of(rows))
    for subset in ("even", "odd"):
        assert figures_of(shuffled, subset=subset) == pytest.approx(figures_of(rows, subset=subset))


def test_adding_to_all_rewards_moves_their_level_alone():
    rows = random_rows()
    one = figures_of(rows)
    more = figures_of(rows, lambda text: number_in(text) + 64)
    moved = {name for name in METRICS if more[name] != pytest.approx(one[name])}
    assert moved == {"mean_reward", "min_reward", "max_reward"}
    assert more["mean_reward"] == pytest.approx(one["mean_reward"] + 64)


def test_doubling_all_rewards_doubles_the_temperature_and_no_verdict():
    rows = random_rows()
    one = figures_of(rows)
    twice = figures_of(rows, lambda text: 2 * number_in(text))
    assert twice["temperature"] == pytest.approx(2 * one["temperature"])
    for name in ("accuracy", "accuracy_low", "accuracy_high", "calibrated_log_loss", "length_correlation"):
        assert twice[name] == pytest.approx(one[name])


def test_a_row_of_weight_two_counts_as_two_of_its_prompt():
    rows = [pair("a", 1, 0), pair("b", 0, 1), pair("c", 3, 0)]
    weighted = figures_of([rows[0] | {"weight": 2.0}, *rows[1:]])
    twice = figures_of([rows[0], *rows])
    for name in ("accuracy", "accuracy_low", "margin", "log_loss", "temperature", "longer_wins", "calibration_error"):
        assert weighted[name] == pytest.approx(twice[name]), name
