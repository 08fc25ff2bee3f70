"""`RewardTrainer`: data on its way in, what evaluations and the log tell, and code of a user in its place."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from by_hand import SGD, STILL, greatest_difference, negative_log_sigmoid, rewards_by_hand, weights_of
from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from plaudit import DataCollatorForPreference, RewardTrainer
from plaudit.errors import DataError


def swapped(rows):
    return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def stream(rows):
    return Dataset.from_list(rows).to_iterable_dataset()


def log_entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# Data on its way in


def test_a_collator_of_ones_own_in_the_common_shape_trains_alike(make_trainer, tokenizer):
    def collate(rows):  # pads on the left, names no comparisons
        sequences = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        width = max(map(len, sequences)) + 3
        return {
            "input_ids": torch.tensor([[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in sequences]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences]),
        }

    weights, rewards = [], []
    for collator in (None, DataCollatorForPreference(tokenizer.pad_token_id, pad_to_multiple_of=16), collate):
        trainer = make_trainer(data_collator=collator, max_steps=2, **SGD)
        rewards.append(trainer.predict(trainer.train_dataset).predictions)
        trainer.train()
        weights.append(weights_of(trainer.model))
    for other in (1, 2):
        np.testing.assert_allclose(rewards[other], rewards[0], atol=2e-6)  # float32, padded otherwise
        assert greatest_difference(weights[0], weights[other]) < 1e-6


def test_streams_train_and_evaluate_like_tables(make_trainer, text_rows):
    results = []
    for make in (Dataset.from_list, stream):
        trainer = make_trainer(train_dataset=make(text_rows), eval_dataset=make(text_rows), max_steps=3, **SGD)
        trainer.train()
        results.append((weights_of(trainer.model), log_entries(trainer), trainer.evaluate()))
    assert isinstance(trainer.train_dataset, IterableDataset)
    assert greatest_difference(results[0][0], results[1][0]) == 0.0
    for table, streamed in ((results[0][2], results[1][2]), *zip(results[0][1], results[1][1], strict=True)):
        assert {key: value for key, value in table.items() if "runtime" not in key and "second" not in key} == {
            key: value for key, value in streamed.items() if "runtime" not in key and "second" not in key
        }


def test_a_stream_has_its_dropped_rows_counted(make_trainer, text_rows):
    rows = [*text_rows[:4], text_rows[0] | {"rejected": text_rows[0]["chosen"]}]
    trainer = make_trainer(train_dataset=stream(rows), max_steps=1, **STILL)
    trainer.train()
    assert (trainer.reports["train"].pairs, trainer.reports["train"].identical) == (5, 1)


def test_a_stream_of_which_nothing_is_left_is_refused(make_trainer, text_rows):
    nothing = stream([row | {"rejected": row["chosen"]} for row in text_rows])
    with pytest.raises(DataError, match=r"train: no pair is left of 10 \(10 with the same ids"):
        make_trainer(train_dataset=nothing, max_steps=1).train()
    with pytest.raises(DataError, match="eval: no pair is left of 10"):
        make_trainer(eval_dataset=nothing).evaluate()


@pytest.mark.parametrize("shards", [1, 4])
def test_loader_workers_evaluate_every_row_once(make_trainer, text_rows, shards):
    table = Dataset.from_list(text_rows)
    alone = make_trainer().predict(table)
    trainer = make_trainer(dataloader_num_workers=2)
    np.testing.assert_array_equal(trainer.predict(table).predictions, alone.predictions)
    streamed = trainer.predict(table.to_iterable_dataset(num_shards=shards))
    # Workers read different shards, so the order of a stream is theirs.
    np.testing.assert_allclose(np.sort(streamed.predictions, 0), np.sort(alone.predictions, 0), atol=2e-6)
    assert streamed.metrics["test_num_tokens"] == alone.metrics["test_num_tokens"]


def test_several_evaluation_sets_are_told_apart(make_trainer, text_rows):
    for sets in ({"a": text_rows, "b": swapped(text_rows)}, None):
        chosen = sets and {name: Dataset.from_list(rows) for name, rows in sets.items()}
        chosen = chosen or DatasetDict(a=Dataset.from_list(text_rows), b=Dataset.from_list(swapped(text_rows)))
        metrics = make_trainer(eval_dataset=chosen).evaluate()
        assert metrics["eval_a_margin"] == pytest.approx(-metrics["eval_b_margin"], rel=1e-6)
        assert metrics["eval_a_loss"] != metrics["eval_b_loss"]


def test_a_set_of_sets_is_evaluated_while_training(make_trainer, text_rows):
    sets = {"a": Dataset.from_list(text_rows), "b": stream(text_rows)}
    trainer = make_trainer(eval_dataset=sets, eval_strategy="steps", eval_steps=1, max_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_a_loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    streamed = [entry["eval_b_loss"] for entry in trainer.state.log_history if "eval_b_loss" in entry]
    assert streamed == [entry["eval_a_loss"] for entry in logged]


def test_raw_rows_and_tokenised_rows_evaluate_and_predict_alike(make_trainer, text_rows):
    trainer = make_trainer()
    raw, tokenised = Dataset.from_list(text_rows), trainer.train_dataset
    by_hand = rewards_by_hand(trainer, tokenised)
    for dataset in (raw, tokenised, stream(text_rows)):
        output = trainer.predict(dataset)
        assert output.predictions.dtype == np.float32
        np.testing.assert_allclose(output.predictions, by_hand, atol=2e-6)
        assert output.label_ids.tolist() == [0] * 10
        assert output.metrics["test_accuracy"] == pytest.approx(float((by_hand[:, 0] > by_hand[:, 1]).mean()))
        assert trainer.evaluate(dataset)["eval_margin"] == pytest.approx(output.metrics["test_margin"], rel=1e-6)
    assert trainer.evaluate({"x": raw})["eval_x_margin"] == pytest.approx(output.metrics["test_margin"], rel=1e-6)


def test_rows_tokenised_before_train_like_raw_ones(make_trainer, text_rows):
    raw = make_trainer(train_dataset=[row | {"margin": 0.5} for row in text_rows], max_steps=2, **SGD)
    rows = raw.train_dataset.to_list()
    made = {"row_number", "prompt_key", "num_tokens", "sequence_lengths"}
    assert set(rows[0]) == {"chosen_ids", "rejected_ids", "margin"} | made
    tokenised = make_trainer(train_dataset=rows, max_steps=2, **SGD)
    old_names = {"chosen_ids": "chosen_input_ids", "rejected_ids": "rejected_input_ids"}
    with pytest.warns(FutureWarning, match="rename them to `chosen_ids`"):
        legacy = make_trainer(
            train_dataset=[{old_names.get(name, name): value for name, value in row.items()} for row in rows],
            max_steps=2,
            **SGD,
        )
    for trainer in (raw, tokenised, legacy):
        trainer.train()
    assert greatest_difference(weights_of(raw.model), weights_of(tokenised.model)) == 0.0
    assert greatest_difference(weights_of(raw.model), weights_of(legacy.model)) == 0.0


def test_further_columns_do_not_disturb(make_trainer, text_rows):
    rows = [row | {"source": "web", "score": 0.5} for row in text_rows]
    trainer = make_trainer(train_dataset=rows, eval_dataset=rows, max_steps=1)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])


# What an evaluation tells


def test_compute_metrics_sees_every_row_once_in_order(make_trainer, text_rows):
    seen = []

    def compute(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.predictions), "eval_named": 1.0}

    trainer = make_trainer(eval_dataset=text_rows, compute_metrics=compute, include_for_metrics=["loss"])
    metrics = trainer.evaluate()
    assert len(seen) == 1
    np.testing.assert_allclose(seen[0].predictions, rewards_by_hand(trainer, trainer.eval_dataset), atol=2e-6)
    assert seen[0].label_ids.tolist() == [0] * 10
    assert seen[0].losses.mean() == pytest.approx(metrics["eval_loss"], rel=1e-6)
    assert (metrics["eval_rows"], metrics["eval_named"]) == (10, 1.0)
    assert "eval_accuracy" in metrics


def test_compute_metrics_may_come_batch_by_batch(make_trainer, text_rows):
    calls = []

    def compute(prediction, compute_result):
        calls.append((len(prediction.predictions), compute_result))
        return {"rows": sum(rows for rows, _ in calls)} if compute_result else {}

    trainer = make_trainer(eval_dataset=text_rows, compute_metrics=compute, batch_eval_metrics=True)
    assert trainer.evaluate()["eval_rows"] == 10
    assert calls == [(4, False), (4, False), (2, True)]


def test_logits_may_be_changed_before_compute_metrics_sees_them(make_trainer, text_rows):
    seen = []
    trainer = make_trainer(
        eval_dataset=text_rows,
        compute_metrics=lambda prediction: seen.append(prediction.predictions) or {},
        preprocess_logits_for_metrics=lambda rewards, labels: rewards.argmax(-1) + labels,
    )
    accuracy = trainer.evaluate()["eval_accuracy"]
    assert seen[0].shape == (10,)
    assert (seen[0] == 0).mean() == accuracy


def test_swapping_chosen_and_rejected_turns_the_metrics_round(make_trainer, text_rows):
    trainer = make_trainer()
    forward, swap = (trainer.evaluate(Dataset.from_list(rows)) for rows in (text_rows, swapped(text_rows)))
    assert 0 < forward["eval_accuracy"] < 1
    assert swap["eval_accuracy"] == pytest.approx(1 - forward["eval_accuracy"])
    assert swap["eval_margin"] == pytest.approx(-forward["eval_margin"], rel=1e-6)
    assert swap["eval_chosen_reward"] == pytest.approx(forward["eval_rejected_reward"], rel=1e-6)
    assert swap["eval_loss"] != pytest.approx(forward["eval_loss"], rel=1e-3)


def test_equal_rewards_count_one_half(make_trainer, text_rows):
    trainer = make_trainer(eval_dataset=text_rows)
    with torch.no_grad():
        trainer.model.score.weight.zero_()
    metrics = trainer.evaluate()
    assert (metrics["eval_accuracy"], metrics["eval_reward_ties"]) == (0.5, 10)
    assert metrics["eval_loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_an_evaluation_reports_true_means_and_extremes(make_trainer, text_rows):
    trainer = make_trainer(eval_dataset=text_rows)
    metrics = trainer.evaluate()
    rewards = rewards_by_hand(trainer, trainer.eval_dataset)
    chosen, rejected = rewards.T
    expected = {
        "accuracy": (chosen > rejected).mean(), "margin": (chosen - rejected).mean(),
        "mean_reward": rewards.mean(), "min_reward": rewards.min(), "max_reward": rewards.max(),
        "chosen_reward": chosen.mean(), "min_chosen_reward": chosen.min(), "max_chosen_reward": chosen.max(),
        "rejected_reward": rejected.mean(), "min_rejected_reward": rejected.min(),
        "max_rejected_reward": rejected.max(), "reward_ties": 0, "loss": negative_log_sigmoid(chosen - rejected).mean(),
        "num_tokens": sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.eval_dataset),
    }  # fmt: skip
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, rel=2e-6, abs=2e-6)


# What the training log tells


def test_the_training_log_is_of_all_comparisons_of_its_interval(make_trainer):
    trainer = make_trainer(logging_steps=3, num_train_epochs=1, **STILL)  # 10 rows: batches of 4, 4 and 2
    rewards = rewards_by_hand(trainer, trainer.train_dataset)
    trainer.train()
    chosen, rejected = rewards.T
    losses = negative_log_sigmoid(chosen - rejected)
    expected = {
        "loss": np.mean([losses[:4].mean(), losses[4:8].mean(), losses[8:].mean()]),  # of steps, as in the Trainer
        "accuracy": (chosen > rejected).mean(), "margin": (chosen - rejected).mean(),
        "mean_reward": rewards.mean(), "chosen_reward": chosen.mean(), "rejected_reward": rejected.mean(),
        "min_reward": rewards.min(),
        "max_reward": rewards.max(),
        "min_chosen_reward": chosen.min(),
        "max_chosen_reward": chosen.max(),
        "min_rejected_reward": rejected.min(),
        "max_rejected_reward": rejected.max(),
        "reward_ties": 0,
        "num_tokens": sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset),
    }  # fmt: skip
    (entry,) = log_entries(trainer)
    assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_tokens_add_up_over_the_run_and_over_a_resumed_one(make_trainer):
    whole = make_trainer(max_steps=6)
    whole.train()
    counted = [entry["num_tokens"] for entry in log_entries(whole)]
    sizes = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in whole.train_dataset]
    batches = [sum(sizes[:4]), sum(sizes[4:8]), sum(sizes[8:])]
    assert counted == np.cumsum(batches * 2).tolist()
    first = make_trainer(max_steps=6, save_strategy="steps", save_steps=2)
    first.train()
    resumed = make_trainer(max_steps=6)
    resumed.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-4")
    assert [entry["num_tokens"] for entry in log_entries(resumed)] == counted


def test_evaluations_in_between_leave_the_training_figures_alone(make_trainer, text_rows):
    logs = []
    for options in ({}, {"eval_dataset": swapped(text_rows), "eval_strategy": "steps", "eval_steps": 1}):
        trainer = make_trainer(max_steps=4, logging_steps=2, **SGD, **options)
        trainer.train()
        logs.append(log_entries(trainer))
    assert logs[0] == logs[1]


# Code of a user in the trainer's place


def test_trls_own_compute_loss_can_be_pasted_into_a_subclass(make_trainer, text_rows):
    class Pasted(RewardTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            inputs["use_cache"] = False
            outputs = model(**inputs)
            rewards_chosen, rewards_rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
            loss = -torch.nn.functional.logsigmoid(rewards_chosen - rewards_rejected).mean()
            return (loss, outputs) if return_outputs else loss

    pasted, own = (
        make_trainer(trainer_class=each, eval_dataset=text_rows, max_steps=2, **SGD) for each in (Pasted, RewardTrainer)
    )
    for trainer in (pasted, own):
        trainer.train()
    assert greatest_difference(weights_of(pasted.model), weights_of(own.model)) < 1e-6
    assert pasted.evaluate()["eval_loss"] == pytest.approx(own.evaluate()["eval_loss"], rel=1e-5)


def test_a_loader_of_ones_own_may_give_dicts(make_trainer):
    class OwnLoader(RewardTrainer):
        def get_train_dataloader(self):
            collator = DataCollatorForPreference(self.processing_class.pad_token_id)
            rows = self.train_dataset.select_columns(["chosen_ids", "rejected_ids"])
            return DataLoader(rows, batch_size=4, collate_fn=collator)

    trainers = [make_trainer(trainer_class=each, max_steps=3, **SGD) for each in (OwnLoader, RewardTrainer)]
    for trainer in trainers:
        trainer.train()
    assert greatest_difference(*(weights_of(trainer.model) for trainer in trainers)) < 1e-6


def test_evaluation_sets_that_were_joined_after_tokenisation_count_every_row(make_trainer, text_rows):
    sets = {"a": Dataset.from_list(text_rows[:6]), "b": Dataset.from_list(text_rows[4:])}
    trainer = make_trainer(eval_dataset=sets)
    trainer.eval_dataset = concatenate_datasets(list(trainer.eval_dataset.values()))
    assert trainer.evaluate()["eval_num_tokens"] == sum(sum(row["sequence_lengths"]) for row in trainer.eval_dataset)


def test_a_callback_that_is_added_later_still_sees_a_save_before_the_trainer_ends_the_run(make_trainer):
    seen = []

    class Uploader(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_save(self, args, state, control, **_):
            seen.append(state.global_step)

    trainer = make_trainer(max_steps=4)
    trainer.add_callback(Uploader())
    with pytest.raises(SystemExit):
        trainer.train()
    assert seen == [2]
