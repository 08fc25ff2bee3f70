"""The table of an evaluation: each comparison once and in order, and the figures that are made of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from plaudit.errors import DataError
from plaudit.metrics import preference_metrics
from plaudit.training.batch import Batch
from plaudit.training.collator import PreferenceCollator
from plaudit.training.evaluated_comparisons import EvaluatedComparisons
from plaudit.uncertainty import MemberUncertainty

PAIRS = [
    {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 5]},
    {"chosen_ids": [6], "rejected_ids": [7, 8]},
    {"chosen_ids": [9, 1], "rejected_ids": [9, 2]},
]
GROUP = {
    "sequence_ids": [[1, 2], [1, 3], [1, 4]],
    "ranks": [0.0, 1.0, 2.0],
    "comparisons": [[0, 1], [0, 2], [1, 2]],
}


def columns(rows, numbers, rewards, losses=None, preprocess=None, **options):
    """The columns of one batch of rows with the given numbers; every row has a prompt of its own."""
    batch = PreferenceCollator(pad_token_id=0, **options)(rows)
    batch = replace(batch, row_number=torch.tensor(numbers), prompt_key=torch.tensor(numbers))
    losses = [0.0] * len(batch.comparisons) if losses is None else losses
    return EvaluatedComparisons.columns_of(batch, torch.tensor(rewards), torch.tensor(losses), preprocess)


def gathered(*batches):
    return EvaluatedComparisons.gather(list(batches))


def table(*args, **options):
    """The table of one batch."""
    return gathered(columns(*args, **options))


@pytest.fixture
def figures(tmp_path):
    """Figures of a table under their plain names; the options are those of `TrainingArguments`."""

    def figures(compared, compute_metrics=None, **options):
        args = TrainingArguments(str(tmp_path), use_cpu=True, **options)
        metrics = compared.metrics("eval", compute_metrics, args)
        return {name.removeprefix("eval_"): value for name, value in metrics.items()}

    return figures


def test_rows_that_a_loader_repeats_to_fill_up_a_batch_count_once():
    filled = columns([PAIRS[2], PAIRS[0]], [2, 0], [5.0, 1.0, 4.0, 0.0])
    both = gathered(columns(PAIRS[:2], [0, 1], [1.0, 2.0, 0.0, 3.0]), filled)
    assert both.first.tolist() == [1, 2, 5]


def test_comparisons_are_in_the_order_of_the_dataset():
    both = gathered(columns(PAIRS[:2], [7, 3], [1.0, 2.0, 0.0, 0.0]), columns(PAIRS[2:], [5], [3.0, 0.0]))
    assert both.numbers.tolist() == [[3, 0], [5, 0], [7, 0]]
    assert both.predictions.tolist() == [[2, 0], [3, 0], [1, 0]]


def test_the_comparisons_of_a_group_are_told_apart_by_their_place():
    two = columns([GROUP, GROUP], [4, 9], [3.0, 2.0, 1.0, 6.0, 5.0, 4.0])
    assert gathered(two).numbers.tolist() == [[4, 0], [4, 1], [4, 2], [9, 0], [9, 1], [9, 2]]
    assert len(gathered(two, two)) == 6


def test_an_evaluation_without_rows_is_refused():
    with pytest.raises(DataError, match="no row is left to evaluate"):
        gathered()


def test_the_figures_are_those_of_the_common_function(figures):
    metrics = figures(table(PAIRS, [0, 1, 2], [3.0, 1.0, 2.0, 0.0, 2.0, 2.0], [0.1, 0.2, 0.6]))
    expected = preference_metrics([3, 1, 2], [0, 2, 2], prompts=[0, 1, 2])
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["loss"] == pytest.approx(0.3)


def test_the_loss_counts_a_group_as_one_pair_and_a_row_by_its_weight(figures):
    group = columns([GROUP | {"weight": 2.0}], [0], [3.0, 2.0, 1.0], [0.3, 0.6, 0.9])
    pair = columns([PAIRS[0] | {"weight": 1.0}], [1], [1.0, 0.0], [0.2])
    assert figures(gathered(group, pair))["loss"] == pytest.approx((2 * 0.6 + 0.2) / 2)


@pytest.mark.parametrize("layout", ["padded", "forest"])
def test_the_tokens_of_a_row_count_once_however_many_comparisons_it_has(figures, layout):
    group = columns([GROUP], [0], [3.0, 2.0, 1.0], layout=layout)
    pairs = columns(PAIRS[:2], [1, 2], [0.0] * 4, layout=layout)
    assert figures(gathered(group, pairs))["num_tokens"] == 6 + (3 + 2) + (1 + 2)


def test_labels_name_the_better_column_and_leave_ties_out():
    rows = [row | {"label": label} for row, label in zip(PAIRS, (0.9, 0.2, 0.5), strict=True)]
    assert table(rows, [0, 1, 2], [0.0] * 6).labels.tolist() == [0, 1, -100]
    tied = table([PAIRS[0] | {"tie": True}], [0], [0.0, 0.0], with_ties=True)
    assert tied.labels.tolist() == [-100]


def test_a_preprocessing_function_is_given_rewards_and_labels_and_makes_the_predictions(figures):
    def preprocess(rewards, labels):
        assert labels.tolist() == [0, 0]
        return rewards[:, :1] - rewards[:, 1:]

    compared = table(PAIRS[:2], [0, 1], [3.0, 1.0, 1.0, 2.0], preprocess=preprocess)
    assert compared.predictions.tolist() == [[2], [-1]]
    assert figures(compared)["margin"] == 0.5  # the figures are of the rewards themselves


@pytest.mark.parametrize(
    ("rewards", "losses"), [([1.0, 2.0, float("nan"), 0.0], [0.1, 0.2]), ([0.0] * 4, [float("inf"), 0.2])]
)
def test_rows_that_are_not_finite_are_named_by_number(rewards, losses):
    assert table(PAIRS[:2], [30, 12], rewards, losses).rows_not_finite() == [30]


def test_the_constants_of_members_are_those_of_both_sides_of_all_comparisons():
    batch = Batch(
        {}, torch.tensor([[0, 2], [1, 3]]), torch.arange(2), torch.tensor([0, 1, 0, 1]),
        row_number=torch.arange(2), prompt_key=torch.arange(2),
    )  # fmt: skip
    batch.model_inputs["input_ids"] = torch.ones(4, 1, dtype=torch.long)
    members = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0], [2.0, 0.0]])
    alone = EvaluatedComparisons.columns_of(batch, members.mean(1), torch.zeros(2))
    ensemble = EvaluatedComparisons.columns_of(batch, members.mean(1), torch.zeros(2), members=members)
    assert gathered(ensemble).member_constants() == MemberUncertainty.measure(members.numpy())
    assert gathered(alone).member_constants() is None


def test_the_scale_is_that_of_all_rewards():
    mean, std = table(PAIRS[:2], [0, 1], [1.0, 2.0, 3.0, 6.0]).scale()
    assert (mean, std) == pytest.approx((3, np.std([1, 2, 3, 6])))


def test_compute_metrics_is_called_once_with_all_comparisons(figures):
    def compute(prediction):
        return {"rows": np.int64(len(prediction.predictions)), "losses": prediction.losses.tolist()}

    compared = table(PAIRS, [0, 1, 2], [1.0] * 6, [0.5, 0.25, 0.125])
    result = figures(compared, compute, include_for_metrics=["loss"])
    assert (result["rows"], result["losses"]) == (3, [0.5, 0.25, 0.125])
    assert type(result["rows"]) is int  # the log is written as JSON


def test_compute_metrics_may_be_called_for_each_batch(figures):
    calls = []

    def compute(prediction, *, compute_result):
        calls.append((len(prediction.predictions), compute_result))
        return {"calls": len(calls)}

    compared = table(PAIRS, [0, 1, 2], [1.0] * 6)
    assert figures(compared, compute, batch_eval_metrics=True, per_device_eval_batch_size=2)["calls"] == 2
    assert calls == [(2, False), (1, True)]


def test_every_figure_has_the_prefix_once(tmp_path):
    metrics = table(PAIRS, [0, 1, 2], [1.0] * 6).metrics(
        "test", lambda _: {"own": 1.0, "test_own": 2.0, "accuracy": 0.0}, TrainingArguments(str(tmp_path), use_cpu=True)
    )
    assert all(name.startswith("test_") and not name.startswith("test_test_") for name in metrics)
    assert metrics["test_accuracy"] == 0  # a figure of the user's own replaces Plaudit's of that name
