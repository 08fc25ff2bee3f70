"""Batches by tokens, and with the rows of one prompt together."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from by_hand import weights_of
from datasets import Dataset
from transformers import TrainerCallback

from plaudit import RewardTrainer
from plaudit.errors import ConfigError
from plaudit.training.dataloaders import make_batch_sampler

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
RANDOM = {"train_sampling_strategy": "random"}
BUDGET = {"max_tokens_per_batch": 60} | RANDOM
WORDS = ["sky", "blue", "four", "two", "quick", "lazy", "dog", "over", "the", "fox"]
ROWS = [
    {"prompt": f"Is the {word}?", "chosen": f" Yes, the {word}" * (n % 4 + 1), "rejected": " No, it is" * (n % 3 + 1)}
    for n, word in enumerate(WORDS * 2)
]
LONG = [f"{word} " + "The quick brown fox jumps over the lazy dog. " * 3 for word in WORDS[:4]]
SHARING = [
    {"prompt": LONG[n % 4], "chosen": f" Yes, the {word}", "rejected": f" No, {word} it is"}
    for n, word in enumerate(WORDS + WORDS[:2])
]


class Watched(RewardTrainer):
    """Keeps every batch that it trains on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def training_step(self, model, inputs, *args):
        self.seen.append((int(self.state.epoch or 0), inputs))
        return super().training_step(model, inputs, *args)

    def tokens(self):
        return [inputs["input_ids"].numel() for _, inputs in self.seen]

    def rows(self):
        """The numbers of the rows of each batch seen."""
        return [inputs.row_number.tolist() for _, inputs in self.seen]


def trained(make_trainer, checkpoint=None, **options):
    trainer = make_trainer(**{"trainer_class": Watched, "train_dataset": ROWS} | SGD | options)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


@pytest.fixture
def epochs(make_trainer):
    """A run of two epochs by tokens, and the rows of its batches in each."""

    def run(**options):
        trainer = trained(make_trainer, num_train_epochs=2, **BUDGET | options)
        batches = trainer.rows()
        half = len(batches) // 2
        assert len(batches) == 2 * half
        return trainer, batches[:half], batches[half:]

    return run


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_batches_keep_to_the_budget_and_see_every_row_once_an_epoch(epochs, layout):
    budget = 90 if layout == "forest" else 200
    trainer, first, second = epochs(batch_layout=layout, max_tokens_per_batch=budget)
    for batches in (first, second):
        assert sorted(row for batch in batches for row in batch) == list(range(len(ROWS)))
        assert max(map(len, batches)) > 1
    assert first != second
    assert max(trainer.tokens()) <= budget
    if layout == "forest":
        assert sum(trainer.tokens()) > 0.8 * 90 * len(trainer.tokens())


def test_the_order_follows_from_the_seed(make_trainer):
    trainer = make_trainer(train_dataset=ROWS, **BUDGET)

    def order(**seeds):
        args = replace(trainer.args, **seeds)
        return list(make_batch_sampler(trainer.train_dataset, args, "forest"))

    assert order() == order(seed=42) != order(seed=7)
    assert order(data_seed=7) == order(seed=7)
    assert order(seed=7, data_seed=42) == order()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_number_of_steps_is_known_before_training_and_held(make_trainer, accumulation):
    told = []

    class Tell(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            told.append(state.max_steps)

    trainer = trained(
        make_trainer, num_train_epochs=2, gradient_accumulation_steps=accumulation, callbacks=[Tell()],
        lr_scheduler_type="linear", optimizer_cls_and_kwargs=None, learning_rate=1e-3, **BUDGET,
    )  # fmt: skip
    steps = 2 * -(-len(trainer.sampler) // accumulation)
    assert told == [steps] == [trainer.state.global_step]
    assert trainer.state.epoch == 2.0
    assert trainer.lr_scheduler.get_last_lr()[0] == 0.0
    assert trainer.state.log_history[-3]["learning_rate"] > 0.0


@pytest.mark.parametrize("length", [{"num_train_epochs": 2}, {"max_steps": 18}])
def test_every_epoch_has_the_same_number_of_batches(make_trainer, length):
    trainer = trained(make_trainer, **BUDGET | {"max_tokens_per_batch": 90, "seed": 5} | length)
    assert trainer.state.global_step == len(trainer.seen) == 18
    for batches in (trainer.rows()[:9], trainer.rows()[9:]):
        assert sorted(row for batch in batches for row in batch) == list(range(len(ROWS)))
    assert trainer.state.epoch == 2.0


def test_max_steps_ends_in_the_middle_of_an_epoch(make_trainer):
    trainer = trained(make_trainer, max_steps=11, **BUDGET)
    assert trainer.state.global_step == len(trainer.seen) == 11
    assert 11 % len(trainer.sampler) != 0


@pytest.mark.parametrize("options", [BUDGET, BUDGET | {"max_tokens_per_batch": 250, "group_by_prompt": True}])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_resumed_in_its_second_epoch_is_the_one_not_stopped_to_the_bit(make_trainer, options, accumulation):
    options = options | {"num_train_epochs": 2, "gradient_accumulation_steps": accumulation, "learning_rate": 1e-3}
    options |= {"optimizer_cls_and_kwargs": None, "train_dataset": SHARING if "group_by_prompt" in options else ROWS}
    whole = trained(make_trainer, save_strategy="steps", save_steps=0.55, **options)
    step = math.ceil(0.55 * whole.state.max_steps)
    assert whole.state.max_steps / 2 < step < whole.state.max_steps
    resumed = trained(make_trainer, f"{whole.args.output_dir}/checkpoint-{step}", **options)
    assert resumed.rows() == whole.rows()[-len(resumed.seen) :]
    assert len(resumed.seen) < len(whole.seen) // 2
    assert all(torch.equal(weight, weights_of(resumed.model)[name]) for name, weight in weights_of(whole.model).items())
    assert resumed.state.global_step == whole.state.global_step


def test_a_batch_counts_its_comparisons_however_few(make_trainer):
    """Batches of unequal rows, accumulated, make the step of one batch."""
    budget = trained(make_trainer, max_steps=1, gradient_accumulation_steps=100, **BUDGET)
    assert len({len(batch) for batch in budget.rows()}) > 1
    whole = trained(make_trainer, max_steps=1, per_device_train_batch_size=len(ROWS))
    first, second = weights_of(budget.model), weights_of(whole.model)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 2e-6


# Rows of one prompt


@pytest.mark.parametrize("budget", [None, 250])
def test_rows_of_one_prompt_come_in_one_batch_that_runs_it_once(make_trainer, budget):
    trainer = trained(
        make_trainer, train_dataset=SHARING, group_by_prompt=True, max_tokens_per_batch=budget, num_train_epochs=2,
        per_device_train_batch_size=3, **RANDOM,
    )  # fmt: skip
    prompts = [{LONG.index(SHARING[row]["prompt"]) for row in batch} for batch in trainer.rows()]
    assert Counter(prompt for batch in prompts for prompt in batch) == dict.fromkeys(range(4), 2)
    prompt = min(
        next(n for n, (a, b) in enumerate(zip(row["chosen_ids"], row["rejected_ids"], strict=False)) if a != b)
        for row in trainer.train_dataset
    )
    for (_, inputs), batch, rows in zip(trainer.seen, prompts, trainer.rows(), strict=True):
        depths = inputs["position_ids"][0]
        assert (depths == 0).sum() == (depths == prompt // 2).sum() == len(batch)
        replies = sum(
            len(row["chosen_ids"]) + len(row["rejected_ids"]) - 2 * prompt for row in trainer.train_dataset.select(rows)
        )
        assert len(depths) <= len(batch) * prompt + replies
        assert budget is None or len(depths) <= budget


def test_a_prompt_of_many_rows_keeps_to_the_budget(make_trainer):
    rows = [row | {"prompt": LONG[0]} for row in SHARING[:10]]
    trainer = trained(
        make_trainer, train_dataset=rows, group_by_prompt=True, max_tokens_per_batch=150, num_train_epochs=1, **RANDOM
    )
    assert max(trainer.tokens()) <= 150
    assert len(trainer.seen) < len(rows) / 2
    assert sorted(row for batch in trainer.rows() for row in batch) == list(range(len(rows)))


def test_a_key_of_ones_own_keeps_to_the_budget_whatever_the_rows_share(make_trainer):
    """The rejected sequences share nothing, so the rows' trees may not join."""
    rows = [{"chosen_ids": [5] * 40 + [6 + n], "rejected_ids": [4, 20 + n, 8, 9], "prompt_key": 1} for n in range(12)]
    trainer = trained(
        make_trainer, train_dataset=rows, group_by_prompt=True, max_tokens_per_batch=100, num_train_epochs=1
    )
    assert max(trainer.tokens()) <= 100


# What is refused, and what stays


@pytest.mark.parametrize("option", [{"max_tokens_per_batch": 60}, {"group_by_prompt": True}])
def test_a_stream_is_refused(make_trainer, option):
    rows = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(ConfigError, match="is a stream. Load it whole, or use `per_device_train_batch_size`"):
        make_trainer(train_dataset=rows, max_steps=1, **option)


def test_a_row_above_the_budget_is_named_with_what_to_do(make_trainer):
    with pytest.raises(ConfigError, match=r"row 14 alone has 57 distinct tokens, and the budget is 30 .*at least 57"):
        trained(make_trainer, **BUDGET | {"max_tokens_per_batch": 30})


def test_a_row_above_the_budget_has_its_number_in_the_data_of_the_user(make_trainer):
    rows = [ROWS[0] | {"rejected": ROWS[0]["chosen"]}, *ROWS]  # the first is dropped
    with pytest.raises(ConfigError, match="row 15 alone has 57 distinct tokens"):
        trained(make_trainer, **BUDGET | {"max_tokens_per_batch": 30, "train_dataset": rows})


def test_without_a_budget_a_batch_is_a_number_of_rows(make_trainer):
    trainer = trained(make_trainer, per_device_train_batch_size=3, num_train_epochs=1, **RANDOM)
    assert [len(batch) for batch in trainer.rows()] == [3] * 6 + [2]
    assert trainer.sampler is None


def test_with_a_budget_rows_do_not_count(make_trainer):
    runs = [
        trained(make_trainer, per_device_train_batch_size=size, num_train_epochs=1, **BUDGET).rows() for size in (1, 8)
    ]
    assert runs[0] == runs[1]
    assert max(map(len, runs[0])) > 1


def test_in_order_rows_stay_in_order(make_trainer):
    options = BUDGET | {"train_sampling_strategy": "sequential"}
    trainer = trained(make_trainer, num_train_epochs=1, **options)
    assert [row for batch in trainer.rows() for row in batch] == list(range(len(ROWS)))
    assert max(trainer.tokens()) <= 60


def test_loader_workers_take_the_same_batches(make_trainer):
    runs = [
        trained(make_trainer, dataloader_num_workers=workers, num_train_epochs=2, **BUDGET).rows() for workers in (0, 1)
    ]
    assert runs[0] == runs[1]
