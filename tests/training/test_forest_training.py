"""A run on forests takes the steps of the padded one."""

import pytest
import torch
from peft import LoraConfig

STEPS = 10
SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
CASES = {
    "adamw": {"learning_rate": 1e-3},
    "sgd": SGD,
    "accumulated": SGD | {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
    "checkpointed": SGD | {"gradient_checkpointing": True},
    "checkpointed by reentry": SGD
    | {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "adapter": SGD | {"peft_config": LoraConfig(), "gradient_checkpointing": True},
    "centred, with margins": SGD | {"center_rewards_coefficient": 0.05},
    "clipped": SGD | {"max_grad_norm": 1.0},
}


def rows_of(case, text_rows):
    """Rows that share prompts, some of them whole responses too."""
    rows = [*text_rows[:6], text_rows[0] | {"rejected": " No"}, text_rows[1] | {"chosen": " Yes"}, text_rows[0]]
    return [row | {"margin": n / 4} for n, row in enumerate(rows)] if "margins" in case else rows


def trained(make_trainer, layout, **options):
    trainer = make_trainer(batch_layout=layout, max_steps=STEPS, **options)
    trainer.train()
    assert trainer.layout == layout
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    return weights, [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_are_those_of_the_padded_layout(make_trainer, text_rows, case):
    options = CASES[case] | {"train_dataset": rows_of(case, text_rows)}
    (weights, log), (expected, padded) = (trained(make_trainer, layout, **options) for layout in ("forest", "padded"))
    assert len(log) == len(padded) == STEPS
    for entry, other in zip(log, padded, strict=True):
        assert entry["num_tokens"] == other["num_tokens"]
        # float32, summed in another order
        assert entry == pytest.approx(other, rel=2e-5, abs=2e-5)
    assert padded[0]["loss"] > padded[-1]["loss"] + 0.1
    # AdamW divides by the gradient's size, which magnifies what is rounded off a small one.
    bound = 1e-4 if case == "adamw" else 1e-5
    assert max((weights[name] - expected[name]).abs().max().item() for name in weights) < bound


def test_an_evaluation_is_that_of_the_padded_layout(make_trainer, text_rows):
    rows = rows_of("", text_rows)
    trainers = [
        make_trainer(batch_layout=layout, eval_dataset=rows, per_device_eval_batch_size=3)
        for layout in ("forest", "padded")
    ]
    metrics, padded = (trainer.evaluate() for trainer in trainers)
    measured = {name for name in padded if not name.endswith(("runtime", "second", "time"))}
    assert len(measured) > 12
    assert metrics["eval_num_tokens"] == padded["eval_num_tokens"]
    assert {name: metrics[name] for name in measured} == pytest.approx(
        {name: padded[name] for name in measured}, rel=2e-6, abs=2e-6
    )
    first, second = (trainer.predict(trainer.eval_dataset).predictions for trainer in trainers)
    assert abs(first - second).max() < 2e-6


def test_a_forest_runs_each_shared_token_once(make_trainer, text_rows):
    trainer = make_trainer(train_dataset=rows_of("", text_rows))
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    rows = [(row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    # The prompts are shorter than what makes rows share, so prefixes are counted for each row.
    distinct = sum(len({tuple(ids[: n + 1]) for ids in row for n in range(len(ids))}) for row in rows)
    assert batch["input_ids"].shape == (1, distinct)
    assert distinct < sum(len(ids) for row in rows for ids in row)


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_uneven_micro_batches_make_the_gradient_of_one_batch(make_trainer, text_rows, layout):
    rows = rows_of("", text_rows)[:7]
    runs = []
    for size, steps in ((7, 1), (3, 3)):
        trainer = make_trainer(
            batch_layout=layout, train_dataset=rows, per_device_train_batch_size=size, num_train_epochs=2,
            gradient_accumulation_steps=steps, **SGD,
        )  # fmt: skip
        trainer.train()
        assert trainer.state.global_step == 2
        runs.append({name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()})
    assert max((runs[0][name] - runs[1][name]).abs().max().item() for name in runs[0]) < 1e-6
