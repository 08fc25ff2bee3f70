"""The figures of the training log: those of all comparisons of an interval, from rewards kept on the device."""

import pytest
import torch
from transformers import TrainerState

from plaudit.metrics import preference_metrics
from plaudit.training.collator import PreferenceCollator
from plaudit.training.reward_log import RewardLog

PAIRS = [{"chosen_ids": [1, 2, 3], "rejected_ids": [1, 5]}, {"chosen_ids": [6], "rejected_ids": [7, 8]}]
GROUP = {
    "sequence_ids": [[1, 2], [1, 3], [1, 4]],
    "ranks": [0.0, 1.0, 2.0],
    "comparisons": [[0, 1], [0, 2], [1, 2]],
}


def collate(rows, **options):
    return PreferenceCollator(pad_token_id=0, **options)(rows)


def logged(*micro_batches, state=None):
    log = RewardLog()
    for batch, rewards in micro_batches:
        log.add(batch, torch.tensor(rewards))
    return log.reduce(state or TrainerState())


def test_micro_batches_of_unequal_size_count_by_their_comparisons():
    figures = logged((collate(PAIRS), [3.0, 1.0, 0.0, 2.0]), (collate(PAIRS[:1]), [5.0, 5.0]))
    expected = preference_metrics([3.0, 1.0, 5.0], [0.0, 2.0, 5.0])
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["accuracy"] == pytest.approx(1.5 / 3)


def test_the_extremes_are_those_of_the_interval_and_not_means_over_batches():
    figures = logged((collate(PAIRS[:1]), [9.0, 1.0]), (collate(PAIRS[:1]), [2.0, -7.0]))
    assert (figures["min_reward"], figures["max_reward"]) == (-7, 9)
    assert (figures["min_chosen_reward"], figures["max_rejected_reward"]) == (2, 1)


def test_the_better_response_is_the_one_that_the_label_prefers():
    batch = collate([row | {"label": label} for row, label in zip(PAIRS, (0.2, 0.5), strict=True)])
    figures = logged((batch, [1.0, 0.0, 3.0, 9.0]))
    assert figures["accuracy"] == 1  # 3 above 1; a label of one half is a tie, which counts nowhere
    assert figures["margin"] == 2


def test_a_ranked_group_counts_as_much_as_one_pair():
    group = (collate([GROUP]), [3.0, 2.0, 1.0])  # all three comparisons right
    pair = (collate(PAIRS[:1]), [0.0, 1.0])  # wrong
    assert logged(group, pair)["accuracy"] == pytest.approx(0.5)


def test_a_row_counts_by_its_weight():
    batch = collate([row | {"weight": weight} for row, weight in zip(PAIRS, (3.0, 1.0), strict=True)])
    assert logged((batch, [1.0, 0.0, 0.0, 1.0]))["accuracy"] == pytest.approx(0.75)


@pytest.mark.parametrize("layout", ["padded", "forest"])
def test_tokens_count_as_if_none_were_shared_and_none_were_padding(layout):
    assert logged((collate(PAIRS, layout=layout), [0.0] * 4))["num_tokens"] == 3 + 2 + 1 + 2


def test_tokens_add_up_to_those_that_were_logged_before():
    state = TrainerState(log_history=[{"num_tokens": 100.0}, {"loss": 0.5}])
    assert logged((collate(PAIRS), [0.0] * 4), state=state)["num_tokens"] == 108


def test_each_log_begins_a_new_interval():
    log = RewardLog()
    log.add(collate(PAIRS[:1]), torch.tensor([0.0, 1.0]))
    assert log.reduce(TrainerState())["accuracy"] == 0
    log.add(collate(PAIRS[:1]), torch.tensor([1.0, 0.0]))
    assert log.reduce(TrainerState())["accuracy"] == 1


def test_an_interval_without_comparisons_has_no_figures():
    log = RewardLog()
    assert log.reduce(TrainerState()) == {}
    log.add(collate(PAIRS), torch.zeros(4))
    log.clear()
    assert log.reduce(TrainerState()) == {}


def test_an_interval_of_ties_alone_has_its_tokens():
    batch = collate([row | {"tie": True} for row in PAIRS], with_ties=True)
    assert logged((batch, [1.0, 2.0, 3.0, 4.0])) == {"num_tokens": 8}


def test_rewards_are_kept_without_their_graph_and_in_float32():
    rewards = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    log = RewardLog()
    log.add(collate(PAIRS[:1]), rewards)
    assert log.reduce(TrainerState())["margin"] == -1
    assert rewards.grad is None
