"""Numbers that are not finite stop a run, name their rows, and reach no checkpoint."""

import re
from pathlib import Path

import pytest
import torch
from by_hand import weights_of
from datasets import Dataset
from transformers import TrainerCallback

from plaudit import DataCollatorForPreference, RewardTrainer
from plaudit.errors import CheckpointError, TrainingError
from plaudit.training.batch import Batch

CAN_SAVE = {"save_strategy": "steps", "save_steps": 1}


def poison(trainer, text, value=float("inf")):
    """From now on the reward of every sequence with the token of `text` is `value`, whatever the layout."""
    (token,) = set(trainer.processing_class(text)["input_ids"])
    forward = trainer.model.forward

    def poisoned(*args, input_ids, **kwargs):
        outputs = forward(*args, input_ids=input_ids, **kwargs)
        count = len(outputs.logits)
        batch = Batch({"input_ids": input_ids} | kwargs, *[torch.zeros(count)] * 3)
        bad = torch.tensor([token in batch.sequence(number) for number in range(count)])
        outputs.logits = torch.where(bad[:, None], torch.full_like(outputs.logits, value), outputs.logits)
        return outputs

    trainer.model.forward = poisoned


@pytest.fixture
def rows():
    """Ten rows, of which the seventh alone has a "!"."""
    return [
        {
            "prompt": "Is the sky blue?",
            "chosen": " Yes" * (n + 1),
            "rejected": " No" * (n + 1) + ("!" if n == 7 else ""),
        }
        for n in range(10)
    ]


def grouped(rows):
    return [{"prompt": r["prompt"], "completions": [r["chosen"], r["rejected"]], "ranks": [0, 1]} for r in rows]


WAYS = {
    "forest": lambda rows: {},
    "padded": lambda rows: {"batch_layout": "padded"},
    "shuffled": lambda rows: {"train_sampling_strategy": "random"},
    "by tokens": lambda rows: {"max_tokens_per_batch": 80, "train_sampling_strategy": "random"},
    "groups": lambda rows: {"train_dataset": grouped(rows)},
    "accumulated": lambda rows: {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1},
    "stream": lambda rows: {"train_dataset": Dataset.from_list(rows).to_iterable_dataset(), "max_steps": 9},
    "workers": lambda rows: {"dataloader_num_workers": 1},
    "own collator": lambda rows: {"data_collator": DataCollatorForPreference(0)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_the_first_reward_that_is_not_finite_stops_the_run_and_names_the_row(make_trainer, rows, way, value):
    options = {"train_dataset": rows, "num_train_epochs": 2, "learning_rate": 1e-2} | CAN_SAVE | WAYS[way](rows)
    trainer = make_trainer(**options)
    poison(trainer, "!", value)
    with pytest.raises(TrainingError) as raised:
        trainer.train()
    message = str(raised.value)
    assert f"step {trainer.state.global_step + 1}: a loss or a reward is not finite" in message
    assert "\n  row 7: 'Is the sky blue? Yes Yes" in message
    assert message.count("\n  row") == 1, message
    assert all(weight.isfinite().all() for weight in weights_of(trainer.model).values())
    done = trainer.state.global_step
    saved = sorted(path.name for path in Path(trainer.args.output_dir).glob("*")) if done else []
    assert saved == [f"checkpoint-{step}" for step in range(1, done + 1)]
    assert (
        f"The last checkpoint, '{trainer.args.output_dir}/checkpoint-{done}'" if done else "no checkpoint"
    ) in message


@pytest.fixture
def spoilt(make_model, tokenizer):
    """A model with no number for "!": what it makes of it spreads, as in a model and not as `poison` does it."""
    model = make_model(tie_word_embeddings=False)
    (token,) = tokenizer("!")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    return {"model": model, "processing_class": tokenizer}


@pytest.mark.parametrize("way", ["forest", "padded", "groups", "accumulated"])
def test_a_number_that_spreads_in_a_forest_is_found_in_its_batch(make_trainer, rows, spoilt, way):
    """In a forest masked positions weigh nothing, and nothing times NaN is NaN: all rows of the batch have it."""
    trainer = make_trainer(**{"train_dataset": rows, "eval_dataset": rows} | spoilt | WAYS[way](rows))
    assert trainer.layout == ("padded" if way == "padded" else "forest")
    batch = {"padded": [7], "forest": range(4, 8), "groups": range(4, 8), "accumulated": [7]}[way]
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(TrainingError) as raised:
            run()
        named = [int(each) for each in re.findall(r"\n  row (\d+): ", str(raised.value))]
        assert named == list(range(4, 8) if run == trainer.evaluate and way == "accumulated" else batch)


def test_a_row_of_a_stream_that_several_workers_deal_out_has_no_number(make_trainer, rows):
    """Each worker counts its own rows alone: a number would be that of another row."""
    stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=2)
    trainer = make_trainer(train_dataset=stream, max_steps=9, dataloader_num_workers=2)
    poison(trainer, "!")
    with pytest.raises(TrainingError, match="\n  a row of unknown number: 'Is the sky blue"):
        trainer.train()


def test_the_optimiser_does_not_take_the_step(make_trainer, rows):
    trainer = make_trainer(train_dataset=rows, train_sampling_strategy="sequential")
    before = weights_of(trainer.model)
    poison(trainer, "Is")  # all rows
    with pytest.raises(TrainingError, match="(?s)row 0: .*row 3: ") as raised:
        trainer.train()
    assert "row 4" not in str(raised.value)
    for name, weight in weights_of(trainer.model).items():
        assert torch.equal(weight, before[name])


def test_an_infinite_reward_that_the_loss_hides_is_seen(make_trainer, rows):
    trainer = make_trainer(train_dataset=[row | {"chosen": " Yes!"} for row in rows[:2]] + rows[2:6])
    poison(trainer, "!")  # the loss of these is zero
    with pytest.raises(TrainingError, match="(?s)row 0: .*row 1: "):
        trainer.train()


def test_a_gradient_that_is_not_finite_stops_the_run_though_every_reward_is(make_trainer, rows):
    trainer = make_trainer(train_dataset=rows)
    before = weights_of(trainer.model)
    trainer.model.score.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(TrainingError, match="(?s)step 1: the gradient is not finite.*row 0: .*row 3: "):
        trainer.train()
    assert torch.equal(trainer.model.score.weight, before["score.weight"])


def test_a_loss_of_ones_own_is_looked_at_too(make_trainer, rows):
    class Own(RewardTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.sum() / 0

    with pytest.raises(TrainingError, match="(?s)row 0: .*row 3: "):
        make_trainer(train_dataset=rows, trainer_class=Own).train()


@pytest.fixture
def make_waiting_trainer(make_trainer):
    """`make_trainer`, whose guard reads late whether a step was finite, as on a GPU."""

    def make(**options):
        trainer = make_trainer(**options)
        trainer.guard.reads_late = True
        return trainer

    return make


@pytest.mark.parametrize("cause", ["reward", "gradient"])
def test_an_optimiser_that_can_leaves_the_step_out_until_the_host_reads_of_it(make_waiting_trainer, rows, cause):
    """The third step has row 7; the steps before are taken, this one is not, and no other one follows."""
    options = {"train_dataset": rows, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 3}
    trainer = make_waiting_trainer(**options, learning_rate=1e-2, num_train_epochs=2)
    seen = []

    class Weights(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append((weights_of(trainer.model), trainer.optimizer.state_dict()["state"][0]["step"].item()))

    trainer.add_callback(Weights())
    if cause == "reward":
        poison(trainer, "!")
    else:
        steps = iter([1, 1, 0])
        trainer.model.score.weight.register_hook(lambda gradient: gradient / next(steps, 1))
    found = "a loss or a reward" if cause == "reward" else "the gradient"
    with pytest.raises(TrainingError, match=f"(?s)step 3: {found} is not finite.*row 7: "):
        trainer.train()
    assert trainer.state.global_step == 2
    assert [step for _, step in seen] == [1, 2, 2]
    before, taken, left_out = (weights for weights, _ in seen)
    assert not torch.equal(before["score.weight"], taken["score.weight"])
    for weights in (left_out, weights_of(trainer.model)):
        assert all(torch.equal(weight, taken[name]) for name, weight in weights.items())


@pytest.mark.parametrize("kind", ["log", "save", "evaluation", "end"])
def test_a_step_that_was_left_out_reaches_no_log_and_no_save(make_waiting_trainer, rows, kind):
    bad, good = [row for row in rows if "!" in row["rejected"]], rows[:3]
    by_steps = {
        "log": {"logging_steps": 1},
        "save": {"save_strategy": "steps", "save_steps": 1, "logging_strategy": "no"},
        "evaluation": {"eval_strategy": "steps", "eval_steps": 1, "logging_strategy": "no"},
        "end": {"logging_strategy": "no"},
    }[kind]
    trainer = make_waiting_trainer(train_dataset=bad, eval_dataset=good, max_steps=1, **by_steps)
    poison(trainer, "!")
    with pytest.raises(TrainingError, match="(?s)step 1: a loss or a reward is not finite.*row 0: "):
        trainer.train()
    assert not trainer.state.log_history
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*/model.safetensors"))


def test_finite_steps_are_the_same_whether_they_are_read_late_or_not(make_trainer, make_waiting_trainer, rows):
    options = {"train_dataset": rows, "num_train_epochs": 2, "learning_rate": 1e-2}
    at_once, late = make_trainer(**options), make_waiting_trainer(**options)
    for trainer in (at_once, late):
        trainer.train()
    for name, weight in weights_of(late.model).items():
        assert torch.equal(weight, weights_of(at_once.model)[name])


def test_an_optimiser_that_cannot_leave_a_step_out_waits_for_the_answer(make_waiting_trainer, rows):
    trainer = make_waiting_trainer(train_dataset=rows, optim="adamw_torch", max_steps=3)
    before = weights_of(trainer.model)
    poison(trainer, "Is")  # all rows
    with pytest.raises(TrainingError, match="step 1: "):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(trainer.model).items())


def test_finite_runs_are_left_alone(make_trainer, rows):
    trainer = make_trainer(train_dataset=rows, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_an_evaluation_that_is_not_finite_is_an_error_that_names_the_rows(make_trainer, rows, streaming):
    dataset = Dataset.from_list(rows)
    trainer = make_trainer(eval_dataset=dataset.to_iterable_dataset() if streaming else dataset)
    poison(trainer, "!")
    with pytest.raises(TrainingError, match="(?s)eval: .*\n  row 7: 'Is the sky blue\\? Yes Yes"):
        trainer.evaluate()


def test_weights_that_are_not_finite_are_not_saved(make_trainer, rows):
    trainer = make_trainer(train_dataset=rows, max_steps=2, **CAN_SAVE)
    trainer.train()
    trainer.save_model()
    output = Path(trainer.args.output_dir)
    files = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with torch.no_grad():
        trainer.model.score.weight[0, 3] = float("nan")
    for folder in (None, str(output / "checkpoint-2")):
        with pytest.raises(CheckpointError, match=r"1 of \d+ weights hold .* the first 'score.weight'"):
            trainer.save_model(folder, _internal_call=folder is not None)
    assert files == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
