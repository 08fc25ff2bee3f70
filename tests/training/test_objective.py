"""Losses, labels, weights and ties, as a run uses them."""

import json

import numpy as np
import pytest
import torch
from by_hand import SGD, rewards_by_hand, weights_of
from datasets import Dataset
from safetensors import safe_open

from plaudit import DataCollatorForPreference
from plaudit.errors import ConfigError, DataError

TIES = {"loss_type": "ties", "learning_rate": 1e-3}


def step(make_trainer, rows, **options):
    """What one step takes off each weight."""
    trainer = make_trainer(train_dataset=rows, per_device_train_batch_size=len(rows), max_steps=1, **SGD | options)
    before = weights_of(trainer.model)
    trainer.train()
    return {name: before[name] - weight for name, weight in weights_of(trainer.model).items()}


def assert_same_step(first, second, scale=1.0):
    assert max(delta.abs().max().item() for delta in second.values()) > 0.01
    for name, delta in first.items():
        torch.testing.assert_close(delta, scale * second[name], rtol=1e-4, atol=2e-6, msg=name)


def log_sigmoid(z):
    return -np.log1p(np.exp(-z))


def with_ties(rows):
    return [row | {"tie": n % 3 == 0} for n, row in enumerate(rows)]


# Losses worked by hand, in training as in evaluation


def bradley_terry(lead, q):
    return -q * log_sigmoid(lead) - (1 - q) * log_sigmoid(-lead)


def hinge(lead, q):
    return q * np.maximum(0, 1 - lead) + (1 - q) * np.maximum(0, 1 + lead)


def rao_kupper(lead, q, eta=0.7):
    return -q * log_sigmoid(lead - eta) - (1 - q) * log_sigmoid(-lead - eta)


@pytest.mark.parametrize("layout", ["forest", "padded"])
@pytest.mark.parametrize(
    ("loss", "by_hand"), [("bradley_terry", bradley_terry), ("hinge", hinge), ("ties", rao_kupper)]
)
def test_margins_labels_weights_and_smoothing_are_those_worked_by_hand(make_trainer, text_rows, loss, by_hand, layout):
    margins, labels, weights = np.arange(10) / 8, 1 - np.arange(10) / 10, np.arange(10) % 3
    rows = [
        row | {"margin": float(margin), "label": float(label), "weight": float(weight)}
        for row, margin, label, weight in zip(text_rows, margins, labels, weights, strict=True)
    ]
    options = {"loss_type": loss, "label_smoothing": 0.1, "batch_layout": layout}
    options |= {"tie_threshold": 0.7} if loss == "ties" else {}
    trainer = make_trainer(train_dataset=rows, eval_dataset=rows, per_device_train_batch_size=10, **options)
    first, second = rewards_by_hand(trainer, trainer.train_dataset).T
    losses = by_hand(first - second - margins, 0.9 * labels + 0.1 * (1 - labels))
    assert trainer.evaluate()["eval_loss"] == pytest.approx((losses * weights).sum() / 10, rel=1e-5)
    trainer.args.max_steps = 1
    trainer.train()
    assert trainer.state.log_history[-2]["loss"] == pytest.approx((losses * weights).sum() / 10, rel=1e-5)


def test_ties_are_those_worked_by_hand(make_trainer, text_rows):
    rows = with_ties(text_rows)
    trainer = make_trainer(train_dataset=rows, eval_dataset=rows, loss_type="ties", tie_threshold=0.7)
    lead = -np.diff(rewards_by_hand(trainer, trainer.train_dataset))[:, 0]
    first, second = np.exp(log_sigmoid(lead - 0.7)), np.exp(log_sigmoid(-lead - 0.7))
    expected = -np.log([1 - a - b if n % 3 == 0 else a for n, (a, b) in enumerate(zip(first, second, strict=True))])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.mean(), rel=1e-5)
    decided = lead[[n % 3 != 0 for n in range(10)]]
    assert metrics["eval_accuracy"] == pytest.approx((decided > 0).mean())
    assert metrics["eval_margin"] == pytest.approx(decided.mean(), rel=1e-5)


def test_equal_ranks_of_a_group_are_ties(make_trainer):
    prompt, replies = "Is the sky?", [" Yes", " No", " sorry"]
    group = {"prompt": prompt, "completions": replies, "ranks": [1, 0, 1]}
    pairs = [
        {"prompt": prompt, "chosen": replies[a], "rejected": replies[b], "tie": tie}
        for a, b, tie in ((1, 0, False), (1, 2, False), (0, 2, True))
    ]
    options = {"loss_type": "ties", "tie_threshold": 0.7}
    assert_same_step(step(make_trainer, [group], **options), step(make_trainer, pairs, **options))


def test_a_group_of_equal_ranks_alone_is_kept_by_the_loss_that_knows_ties(make_trainer):
    prompt, replies = "Is the sky?", [" Yes", " No", " sorry"]
    groups = [{"prompt": prompt, "completions": replies, "ranks": ranks} for ranks in ([0, 0, 0], [0, 1, 2])]
    assert len(make_trainer(train_dataset=groups).train_dataset) == 1
    trainer = make_trainer(train_dataset=groups, eval_dataset=groups, loss_type="ties", tie_threshold=0.7)
    assert len(trainer.train_dataset) == 2
    assert trainer.reports["train"].pairs == trainer.reports["train"].kept == 6
    output = trainer.predict(trainer.eval_dataset)
    assert output.label_ids.tolist() == [-100] * 3 + [0] * 3
    lead = -np.diff(output.predictions)[:, 0]
    first, second = np.exp(log_sigmoid(lead - 0.7)), np.exp(log_sigmoid(-lead - 0.7))
    losses = -np.log(np.where(output.label_ids == 0, first, 1 - first - second))
    assert output.metrics["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)


# Labels and weights


def test_a_label_below_one_half_prefers_the_second(make_trainer, text_rows):
    seen = []
    rows = [row | {"label": label} for row, label in zip(text_rows, [0.3, 1.0, 0.5] * 3, strict=False)]
    trainer = make_trainer(
        train_dataset=rows, eval_dataset=rows, compute_metrics=lambda p: seen.append(p) or {}, max_steps=1
    )
    metrics = trainer.evaluate()
    assert seen[0].label_ids.tolist() == [1, 0, -100] * 3
    assert seen[0].predictions.shape == (9, 2)
    rewards = rewards_by_hand(trainer, trainer.train_dataset)
    np.testing.assert_allclose(seen[0].predictions, rewards, atol=2e-6)
    lead = -np.diff(rewards)[:, 0] * np.array([-1, 1, 0] * 3)
    assert metrics["eval_accuracy"] == pytest.approx((lead > 0).sum() / 6)
    assert metrics["eval_margin"] == pytest.approx(lead.sum() / 6, rel=1e-5)
    trainer.train()  # on the first four
    log = trainer.state.log_history[-2]
    assert log["accuracy"] == pytest.approx((lead[:4] > 0).sum() / 3)
    assert log["margin"] == pytest.approx(lead[:4].sum() / 3, rel=1e-5)
    assert log["chosen_reward"] == pytest.approx((rewards[0, 1] + rewards[1, 0] + rewards[3, 1]) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", ["bradley_terry", "hinge", "plackett_luce"])
def test_a_label_of_zero_is_the_pair_turned_round(make_trainer, text_rows, loss):
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"], "label": 0.0} for row in text_rows]
    assert_same_step(step(make_trainer, turned, loss_type=loss), step(make_trainer, text_rows, loss_type=loss))


@pytest.mark.parametrize("loss", ["bradley_terry", "hinge", "plackett_luce", "ties"])
def test_weight_two_pulls_as_two_rows_and_weight_zero_not_at_all(make_trainer, text_rows, loss):
    weighted = [row | {"weight": weight} for row, weight in zip(text_rows, (2.0, 0.0, 1.0), strict=False)]
    options = {"loss_type": loss, "center_rewards_coefficient": 0.1}
    doubled = [text_rows[0], text_rows[0], text_rows[2]]
    assert_same_step(step(make_trainer, weighted, **options), step(make_trainer, doubled, **options))
    nothing = step(make_trainer, [row | {"weight": 0.0} for row in text_rows[:3]], **options)
    assert all(not delta.any() for delta in nothing.values())


# Ties


@pytest.mark.parametrize("loss", ["bradley_terry", "hinge", "plackett_luce"])
def test_a_tie_is_refused_by_a_loss_that_needs_a_winner(make_trainer, text_rows, loss):
    rows = with_ties(text_rows)
    message = (
        "4 of 10 pairs are ties .* first is number 0 of those kept.*loss_type='{}' needs a winner. Set `loss_type`"
    )
    for options in ({"train_dataset": rows}, {"eval_dataset": rows}):
        with pytest.raises(DataError, match=message.format(loss)):
            make_trainer(loss_type=loss, **options)
    streamed = make_trainer(train_dataset=Dataset.from_list(rows).to_iterable_dataset(), max_steps=1, loss_type=loss)
    with pytest.raises(DataError, match="a row is a tie .* this loss needs a winner. Set `loss_type` to 'ties'"):
        streamed.train()
    make_trainer(train_dataset=[row | {"tie": False} for row in text_rows], loss_type=loss, max_steps=1).train()


def test_a_threshold_is_learnt_saved_beside_the_model_and_resumed_to_the_bit(make_trainer, text_rows, tmp_path):
    options = TIES | {"train_dataset": with_ties(text_rows), "max_steps": 6, "train_sampling_strategy": "random"}
    whole = make_trainer(**options, save_strategy="steps", save_steps=3)
    before = whole.objective.threshold().item()
    whole.train()
    learnt = whole.objective.raw_threshold
    assert abs(whole.objective.threshold().item() - before) > 0.01
    assert any(learnt is parameter for group in whole.optimizer.param_groups for parameter in group["params"])
    checkpoint = tmp_path / "run" / "checkpoint-3"
    said = json.loads((checkpoint / "reward.json").read_text())
    assert said["loss_type"] == "ties"
    assert said["tie_threshold"] == pytest.approx(np.log1p(np.exp(said["raw_tie_threshold"])), rel=1e-6)
    with safe_open(checkpoint / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) <= set(whole.model.state_dict())
        assert not [name for name in saved.keys() if "threshold" in name]  # noqa: SIM118
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(resumed.objective.raw_threshold, learnt)
    second = [trainer.optimizer.state[trainer.objective.raw_threshold] for trainer in (whole, resumed)]
    assert all(torch.equal(second[0][name], second[1][name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    assert all(torch.equal(weight, weights_of(resumed.model)[name]) for name, weight in weights_of(whole.model).items())


def test_the_best_checkpoint_brings_its_threshold_back(make_trainer, text_rows, tmp_path):
    trainer = make_trainer(
        train_dataset=with_ties(text_rows), eval_dataset=with_ties(text_rows), loss_type="ties", learning_rate=0.3,
        max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="num_tokens", greater_is_better=False,
    )  # fmt: skip
    trainer.train()  # the tokens are the same each time, so the first is the best
    said = json.loads((tmp_path / "run" / "checkpoint-2" / "reward.json").read_text())
    last = json.loads((tmp_path / "run" / "checkpoint-4" / "reward.json").read_text())
    assert trainer.objective.raw_threshold.item() == said["raw_tie_threshold"] != last["raw_tie_threshold"]


def test_a_threshold_that_is_given_stays(make_trainer, text_rows, tmp_path):
    trainer = make_trainer(train_dataset=with_ties(text_rows), tie_threshold=0.7, max_steps=2, **TIES)
    trainer.train()
    trainer.save_model()
    assert trainer.objective.raw_threshold is None
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(weights_of(trainer.model))
    said = json.loads((tmp_path / "run" / "reward.json").read_text())
    assert (said["loss_type"], said["tie_threshold"]) == ("ties", pytest.approx(0.7))
    assert "raw_tie_threshold" not in said


def test_the_gradient_of_a_threshold_is_that_of_the_step_alone(make_trainer, text_rows):
    """Micro-batches add up to one batch, and nothing of the step before is left."""
    thresholds = []
    for size, steps in ((10, 1), (3, 4)):
        trainer = make_trainer(
            train_dataset=with_ties(text_rows), per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            num_train_epochs=3, loss_type="ties", **SGD,
        )  # fmt: skip
        trainer.train()
        assert trainer.state.global_step == 3
        thresholds.append(trainer.objective.raw_threshold.item())
    assert thresholds[0] == pytest.approx(thresholds[1], abs=1e-6)


def test_a_threshold_is_learnt_with_an_optimiser_of_ones_own_too(make_trainer, make_model, tokenizer, text_rows):
    model = make_model()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"model": model, "processing_class": tokenizer, "train_dataset": with_ties(text_rows), "max_steps": 1}
    trainer = make_trainer(**options, loss_type="ties", optimizers=(own, None))
    before = trainer.objective.threshold().item()
    trainer.train()
    trainer.train()  # and is not added twice
    assert trainer.objective.threshold().item() != before
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda step: 1.0)
    with pytest.raises(ConfigError, match="a scheduler of your own it cannot be learnt. Give a number"):
        make_trainer(**options, loss_type="ties", optimizers=(own, schedule)).train()


@pytest.mark.parametrize("loss", ["bradley_terry", "hinge", "plackett_luce", "ties"])
def test_a_collator_of_ones_own_trains_with_each_loss(make_trainer, text_rows, loss):
    own, plain = (
        step(make_trainer, text_rows, loss_type=loss, data_collator=collator)
        for collator in (DataCollatorForPreference(0), None)
    )
    assert_same_step(own, plain)
