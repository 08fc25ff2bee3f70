import math
import os
import signal

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from plaudit import DataCollatorForPreference, RewardTrainer
from plaudit.errors import ConfigError, DataError, ModelError

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1}), "max_grad_norm": 0.0}
STILL = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.0}), "max_grad_norm": 0.0}


@torch.no_grad()
def rewards_by_hand(trainer, rows):
    """Rewards [rows, 2] of tokenised rows, each sequence alone, unpadded, by the stock forward of the class."""
    model = trainer.model.eval()

    def reward(ids):
        return type(model).forward(model, torch.tensor([ids])).logits.item()

    return np.array([[reward(row["chosen_ids"]), reward(row["rejected_ids"])] for row in rows])


def negative_log_sigmoid(difference):
    return np.log1p(np.exp(-difference))


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def greatest_difference(first, second):
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def swapped(rows):
    return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def stream(rows):
    return Dataset.from_list(rows).to_iterable_dataset()


def log_entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# What the constructor refuses


def test_train_dataset_is_required(make_trainer):
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        make_trainer(train_dataset=None)


@pytest.mark.parametrize("dataset", [("a", "b"), DatasetDict({"train": Dataset.from_list([{"chosen": "a"}])})])
def test_train_dataset_must_be_one_dataset(make_trainer, dataset):
    with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`, got `(tuple|DatasetDict)`"):
        make_trainer(train_dataset=dataset)


def test_a_head_with_two_labels_is_refused(make_trainer, tiny_config):
    model = AutoModelForSequenceClassification.from_config(tiny_config(num_labels=2))
    with pytest.raises(ValueError, match="reward models require `num_labels=1`"):
        make_trainer(model=model)


def test_a_language_model_is_refused(make_trainer, tiny_config):
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has .* reward models require `num_labels=1`"):
        make_trainer(model=AutoModelForCausalLM.from_config(tiny_config()))


def test_a_peft_config_that_is_none_is_refused(make_trainer):
    with pytest.raises(ConfigError, match=r"expected a `peft.PeftConfig`, such as LoraConfig\(\), got \{'r': 8\}"):
        make_trainer(peft_config={"r": 8})


def test_two_adapters_at_once_are_refused(make_trainer):
    wrapped = make_trainer(peft_config=LoraConfig()).model
    with pytest.raises(ConfigError, match="the model already has an adapter"):
        make_trainer(model=wrapped, processing_class=make_trainer().processing_class, peft_config=LoraConfig())


@pytest.mark.parametrize("option", ["pad_token", "eos_token"])
def test_a_token_outside_the_vocabulary_is_refused(make_trainer, option):
    with pytest.raises(ValueError, match=rf"`{option}` \('<nowhere>'\) is not found in the vocabulary"):
        make_trainer(**{option: "<nowhere>"})


def test_conversations_need_a_chat_template(make_trainer, new_tokenizer, chat_rows):
    tokenizer = new_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template. Pass `chat_template_path`"):
        make_trainer(train_dataset=chat_rows, processing_class=tokenizer)


def test_a_malformed_row_is_named_with_its_split(make_trainer, text_rows):
    with pytest.raises(DataError, match="row 1: .*'rejected' is missing"):
        make_trainer(eval_dataset=[text_rows[0], text_rows[1] | {"rejected": None}])


def test_a_split_left_empty_is_refused(make_trainer):
    with pytest.raises(DataError, match="train: no pair is left of 10 .10 longer than max_length=2"):
        make_trainer(max_length=2)


def test_inputs_cannot_be_had_for_metrics(make_trainer):
    with pytest.raises(ConfigError, match="'inputs' is not offered"):
        make_trainer(include_for_metrics=["inputs"])


def test_ids_beyond_the_embedding_are_refused(make_trainer):
    with pytest.raises(DataError, match="row 0: the ids of 'chosen' run from 5 to 320, but the model has .* 0 to 319"):
        make_trainer(train_dataset=[{"chosen_ids": [5, 320], "rejected_ids": [5]}])


# The loss


def test_the_loss_of_an_evaluation_is_the_one_worked_by_hand(make_trainer, text_rows):
    margins = [0.5 * n for n in range(len(text_rows))]
    rows = [row | {"margin": margin} for row, margin in zip(text_rows, margins, strict=True)]
    trainer = make_trainer(eval_dataset=rows, center_rewards_coefficient=0.3)
    metrics = trainer.evaluate()
    chosen, rejected = rewards_by_hand(trainer, trainer.eval_dataset).T
    expected = negative_log_sigmoid(chosen - rejected - margins) + 0.3 * (chosen + rejected) ** 2
    assert expected.std() > 0.1
    assert metrics["eval_loss"] == pytest.approx(expected.mean(), rel=2e-6)  # float32


def test_the_centring_term_is_added_to_the_training_loss(make_trainer):
    plain, centred = (
        make_trainer(max_steps=1, **STILL),
        make_trainer(max_steps=1, center_rewards_coefficient=0.25, **STILL),
    )
    for trainer in (plain, centred):
        trainer.train()
    chosen, rejected = rewards_by_hand(plain, plain.train_dataset.select(range(4))).T
    assert log_entries(plain)[0]["loss"] == pytest.approx(negative_log_sigmoid(chosen - rejected).mean(), rel=2e-6)
    added = log_entries(centred)[0]["loss"] - log_entries(plain)[0]["loss"]
    assert added == pytest.approx(0.25 * ((chosen + rejected) ** 2).mean(), rel=1e-5)


def test_forty_steps_teach_a_tiny_model_its_rows(make_trainer, text_rows):
    trainer = make_trainer(max_steps=40, learning_rate=3e-3, eval_dataset=text_rows)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] > 0.4
    assert after["eval_loss"] < 0.05
    assert after["eval_accuracy"] == 1.0


def test_a_margin_column_changes_what_is_learnt(make_trainer, text_rows):
    weights = []
    for margin in (None, 0.0, 2.0):
        rows = text_rows if margin is None else [row | {"margin": margin} for row in text_rows]
        trainer = make_trainer(train_dataset=rows, max_steps=1, **SGD)
        trainer.train()
        weights.append(weights_of(trainer.model))
    assert greatest_difference(weights[0], weights[1]) == 0.0
    assert greatest_difference(weights[0], weights[2]) > 1e-4


def test_accumulated_micro_batches_make_the_gradient_of_one_batch_though_the_last_is_short(make_trainer, text_rows):
    weights = []
    for size, steps in ((7, 1), (2, 4)):
        trainer = make_trainer(
            train_dataset=text_rows[:7],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            num_train_epochs=1,
            **SGD,
        )
        start = weights_of(trainer.model)
        trainer.train()
        assert trainer.state.global_step == 1
        weights.append(weights_of(trainer.model))
    assert greatest_difference(start, weights[0]) > 0.1
    # 1e-6: steps of order 1 in float32, summed in another order.
    assert greatest_difference(*weights) < 1e-6
    # and the loss that is logged is the mean over the seven
    assert log_entries(trainer)[0]["loss"] == pytest.approx(
        negative_log_sigmoid(-np.diff(rewards_by_hand(make_trainer(), trainer.train_dataset))).mean(), rel=2e-6
    )


def test_a_loss_of_ones_own_that_is_a_mean_is_averaged_over_micro_batches(make_trainer, text_rows):
    class OwnLoss(RewardTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            loss = torch.relu(1 - chosen + rejected).mean()
            return (loss, outputs) if return_outputs else loss

    weights, losses = [], []
    for size, steps in ((4, 1), (2, 2)):
        trainer = make_trainer(
            trainer_class=OwnLoss,
            eval_dataset=text_rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            **SGD,
        )
        trainer.train()
        weights.append(weights_of(trainer.model))
        losses.append(log_entries(trainer)[0]["loss"])
    assert greatest_difference(*weights) < 1e-6  # as above
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    chosen, rejected = rewards_by_hand(trainer, trainer.eval_dataset).T
    hinge = np.maximum(1 - chosen + rejected, 0)
    # It gives one number a batch, so eval_loss weighs each batch's mean by its rows: the mean over rows all the same.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(hinge.mean(), rel=2e-6)


def test_a_loss_built_on_top_of_the_trainers_own_is_scaled_alike(make_trainer):
    class Doubled(RewardTrainer):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    def trained(trainer_class, rate, size, steps):
        optimizer = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": rate}), "max_grad_norm": 0.0}
        trainer = make_trainer(
            trainer_class=trainer_class,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            **optimizer,
        )
        trainer.train()
        return weights_of(trainer.model)

    assert greatest_difference(trained(RewardTrainer, 0.2, 4, 1), trained(Doubled, 0.1, 2, 2)) < 1e-6


def test_offloading_activations_changes_nothing_but_where_they_wait(make_trainer):
    weights = []
    for offloading in (False, True):
        trainer = make_trainer(max_steps=2, activation_offloading=offloading, **SGD)
        trainer.train()
        weights.append(weights_of(trainer.model))
    assert greatest_difference(*weights) == 0.0


def test_gradient_checkpointing_changes_nothing_but_memory(make_trainer):
    weights = []
    for checkpointing in (False, True):
        trainer = make_trainer(max_steps=2, gradient_checkpointing=checkpointing, **SGD)
        trainer.train()
        assert trainer.model.is_activation_checkpointing == checkpointing
        weights.append(weights_of(trainer.model))
    assert greatest_difference(*weights) < 1e-7


def test_mixed_precision_keeps_weights_and_rewards_in_float32(make_trainer):
    trainer = make_trainer(bf16=True, max_steps=2, learning_rate=1e-3)
    trainer.train()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    rewards = torch.from_numpy(trainer.predict(trainer.train_dataset).predictions)
    assert rewards.dtype == torch.float32
    assert not (rewards == rewards.bfloat16()).any()  # a head in bf16 would have rounded them all


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


# Adapters


def test_a_plain_lora_config_trains_the_adapter_and_the_head(make_trainer):
    trainer = make_trainer(peft_config=LoraConfig(), max_steps=3, learning_rate=1e-2, gradient_checkpointing=True)
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert any("lora_" in name for name in moved)
    assert any("score.modules_to_save" in name for name in moved)


def test_an_adapter_is_read_like_a_full_model(make_trainer, text_rows):
    full = make_trainer(eval_dataset=text_rows)
    adapted = make_trainer(peft_config=LoraConfig(), eval_dataset=text_rows)  # a new adapter changes nothing yet
    first, second = full.evaluate(), adapted.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    assert first["eval_min_reward"] == second["eval_min_reward"]


# Models by name


def test_a_base_model_by_name_trains_and_says_where_it_came_from(make_trainer, base_folder, text_rows):
    trainer = make_trainer(model=str(base_folder), max_steps=2)
    assert trainer.model.dtype == torch.float32
    trainer.train()
    assert trainer.base_model_name == str(base_folder)


def test_the_same_seed_gives_a_new_head_the_same_weights(make_trainer, base_folder):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(heads))  # what ran before does not matter
        heads.append(make_trainer(model=str(base_folder), seed=seed).model.score.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_default_arguments_name_the_output_after_the_model(base_folder, text_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = RewardTrainer(str(base_folder), train_dataset=Dataset.from_list(text_rows))
    assert trainer.args.output_dir == "base-Reward"
    assert trainer.args.gradient_checkpointing or trainer.args.activation_checkpointing


def test_an_architecture_without_a_sequence_classifier_is_named(make_trainer, tmp_path):
    from transformers import GraniteConfig

    GraniteConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path / "granite")
    with pytest.raises(ModelError, match="no sequence classifier for the architecture 'granite'.*Qwen3, Llama"):
        make_trainer(model=str(tmp_path / "granite"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "`model`: expected a hub id, a path or a sequence classifier, got NoneType"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "`eval_strategy` is .*steps.*, but there is no `eval_dataset`"),
    ],
)
def test_arguments_that_cannot_work_are_named(make_trainer, options, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(**options)


def test_a_stream_needs_max_steps(make_trainer, text_rows):
    with pytest.raises(ConfigError, match="`max_steps`: a stream has no length"):
        make_trainer(train_dataset=stream(text_rows), max_steps=-1)


def test_a_list_of_rows_is_no_dataset(make_trainer, text_rows):
    trainer = make_trainer()
    with pytest.raises(TypeError, match="got `list`.*Dataset.from_list"):
        trainer.evaluate(text_rows)


def test_a_subclass_that_names_its_own_columns_evaluates(make_trainer, text_rows):
    class Named(RewardTrainer):
        def _set_signature_columns_if_needed(self):
            self._signature_columns = self._signature_columns or ["chosen_ids", "rejected_ids"]

    trainer = make_trainer(trainer_class=Named, eval_dataset=text_rows)
    assert trainer.evaluate()["eval_loss"] > 0


def test_an_evaluated_stream_is_counted_once_each_time(make_trainer, text_rows):
    same = [row | {"rejected": row["chosen"]} for row in text_rows[:2]]
    trainer = make_trainer(eval_dataset=stream(text_rows + same))
    for _ in range(2):
        trainer.evaluate()
        assert (trainer.reports["eval"].pairs, trainer.reports["eval"].identical) == (len(text_rows) + 2, 2)


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
