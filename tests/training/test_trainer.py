import numpy as np
import pytest
import torch
from by_hand import SGD, STILL, greatest_difference, negative_log_sigmoid, rewards_by_hand, weights_of
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from plaudit import RewardTrainer
from plaudit.errors import ConfigError, DataError, ModelError


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
