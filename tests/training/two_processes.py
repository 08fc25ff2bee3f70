"""What each of two processes runs in `test_two_processes.py`: all its cases, in one start."""

import faulthandler
import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import build_trainer, pair_rows
from plaudit.errors import TrainingError
from plaudit.training import layout_choice

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
ROWS = pair_rows()
REPLIES = [" Yes", " No, it is", " Yes, the sky is blue", " sorry"]
RANKS = [[1, 0, 2, 1], [1, 0], [0, 2, 1], [3, 0, 1, 1], [0, 1], [2, 1, 0], [1, 0], [0, 0, 1]]
GROUPS = [
    {"prompt": row["prompt"], "completions": REPLIES[: len(ranks)], "ranks": ranks}
    for row, ranks in zip(ROWS, RANKS, strict=False)
]


def evaluate(folder, rows, streaming):
    """Predictions, labels and metrics, and how many rows `compute_metrics` saw at each of its calls."""
    calls = []
    trainer = build_trainer(
        folder, compute_metrics=lambda p: calls.append(p.predictions.shape) or {"seen": len(p.predictions)}
    )
    dataset = Dataset.from_list([*ROWS, ROWS[0] | {"prompt": "Who?"}][:rows])
    output = trainer.predict(dataset.to_iterable_dataset() if streaming else dataset)
    assert calls == [(rows, 2)], calls
    return {"predictions": output.predictions, "labels": output.label_ids}, output.metrics


def evaluate_groups(folder):
    """Predictions and metrics of groups, of which each makes several comparisons."""
    output = build_trainer(folder, loss_type="ties", tie_threshold=0.5).predict(Dataset.from_list(GROUPS[:7]))
    return {"predictions": output.predictions, "labels": output.label_ids}, output.metrics


def parameters_of(trainer):
    named = [*trainer.model.named_parameters(), *trainer.objective.named_parameters()]
    return {name: parameter.detach().numpy() for name, parameter in named}


def train(folder, processes, **options):
    """Weights at the end and the training log: 8 rows, as many a step as 4 on one process."""
    options = {"train_dataset": ROWS[:8], "max_steps": 4} | options
    trainer = build_trainer(folder, per_device_train_batch_size=4 // processes, **options)
    trainer.train()
    return trainer, parameters_of(trainer), [entry for entry in trainer.state.log_history if "loss" in entry]


CASES = {
    "sgd": SGD,
    "adamw": {"learning_rate": 1e-3},
    "checkpointing": SGD | {"gradient_checkpointing": True},
    "centred": SGD | {"center_rewards_coefficient": 0.1},
    "stream": SGD | {"train_dataset": Dataset.from_list(ROWS[:8]).to_iterable_dataset()},
    "margin": SGD | {"train_dataset": [row | {"margin": n / 4} for n, row in enumerate(ROWS[:8])]},
    "groups": SGD | {"train_dataset": GROUPS},
    "ties": SGD | {"train_dataset": GROUPS, "loss_type": "ties"},
    # One step sees all rows: on two processes in batches of as many tokens as fit, unequal in rows.
    "tokens": SGD | {"max_tokens_per_batch": 65, "gradient_accumulation_steps": 100, "max_steps": 1},
    "adapter": SGD | {"peft_config": LoraConfig(), "gradient_checkpointing": True},
    "members": SGD | {"num_heads": 3, "peft_config": LoraConfig()},
}


def accumulated(folder, processes):
    """Steps of 8 rows; on two processes in two micro-batches of 2 rows each."""
    return train(folder, processes, **SGD, gradient_accumulation_steps=2)


def resume_by_tokens(folder, rank):
    """A run by tokens, stopped in its second epoch and resumed."""
    options = {"max_tokens_per_batch": 45, "train_sampling_strategy": "random", "learning_rate": 1e-3}
    options |= {"train_dataset": ROWS, "num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 2}
    trainer, weights, log = train(folder / "by-tokens", 2, save_strategy="steps", save_steps=1, **options)
    np.savez(folder / f"by-tokens.{rank}.npz", **weights)
    middle = trainer.state.max_steps // 2 + 1
    assert trainer.state.max_steps > middle
    plans = []
    for epoch in (0, 1):
        trainer.sampler.set_epoch(epoch)
        plans.append(list(trainer.sampler)[rank::2])
    again = build_trainer(folder / "by-tokens-resumed", per_device_train_batch_size=2, **options)
    again.train(resume_from_checkpoint=str(folder / "by-tokens" / f"checkpoint-{middle}"))
    np.savez(folder / f"by-tokens-resumed.{rank}.npz", **parameters_of(again))
    (folder / f"plans.{rank}.json").write_text(json.dumps(plans))
    return log


RESUMED = {
    "rows": {"num_train_epochs": 2, "max_steps": -1},
    "stream": {"train_dataset": lambda: Dataset.from_list(ROWS).to_iterable_dataset().shuffle(seed=1), "max_steps": 6},
    "shards": {"train_dataset": lambda: Dataset.from_list(ROWS).to_iterable_dataset(num_shards=2), "max_steps": 6},
}


def resume_in_the_second_epoch(folder, rank):
    """Runs of three steps an epoch, each stopped at the fourth and resumed."""
    for name, options in RESUMED.items():

        def run(output, checkpoint=None, options=options, **more):
            options = options | {"train_dataset": options.get("train_dataset", lambda: ROWS)()} | more
            trainer = build_trainer(
                output, per_device_train_batch_size=2, train_sampling_strategy="random", learning_rate=1e-3,
                disable_dropout=False, **options,
            )  # fmt: skip
            trainer.train(resume_from_checkpoint=checkpoint)
            return trainer

        whole = run(folder / f"whole-{name}", save_strategy="steps", save_steps=1)
        assert whole.state.global_step == 6
        again = run(folder / f"again-{name}", str(folder / f"whole-{name}" / "checkpoint-4"))
        np.savez(folder / f"whole-{name}.{rank}.npz", **parameters_of(whole))
        np.savez(folder / f"again-{name}.{rank}.npz", **parameters_of(again))


def fail_together(folder, rank):
    """What each process says of a reward that is not finite on the second."""
    said = []
    trainer = build_trainer(folder / "poisoned", train_dataset=ROWS[:8], per_device_train_batch_size=2, max_steps=2)
    if rank == 1:
        trainer.model.score.register_forward_hook(lambda *parts: parts[-1] / 0)
    before = parameters_of(trainer)["score.weight"].copy()
    try:
        trainer.train()
    except TrainingError as error:
        said.append(str(error))
    assert (before == parameters_of(trainer)["score.weight"]).all()
    (folder / f"said.{rank}.json").write_text(json.dumps(said))


def first_decides(folder, rank):
    """The layouts of runs in which only the first process, or only the second, finds that the layouts differ."""
    layouts, compare = [], layout_choice.layouts_differ
    for doubter in (0, 1):

        def differ(*args, doubter=doubter, **options):
            return "of a doubt" if rank == doubter else compare(*args, **options)

        layout_choice.layouts_differ = differ
        trainer = build_trainer(folder, max_steps=1)
        trainer.train()
        layouts.append(trainer.layout)
    layout_choice.layouts_differ = compare
    (folder / f"layouts.{rank}.json").write_text(json.dumps(layouts))


def main(folder, rank):
    faulthandler.dump_traceback_later(300, exit=True)  # a hang says where it hangs
    torch.set_num_threads(1)
    metrics = {}
    for rows in (10, 11):
        for streaming in (False, True):
            name = f"{rows}-{'stream' if streaming else 'table'}"
            arrays, metrics[name] = evaluate(folder / "run", rows, streaming)
            np.savez(folder / f"{name}.{rank}.npz", **arrays)
    arrays, metrics["evaluated-groups"] = evaluate_groups(folder / "run")
    np.savez(folder / f"evaluated-groups.{rank}.npz", **arrays)
    metrics["by-tokens"] = resume_by_tokens(folder, rank)
    first_decides(folder, rank)
    resume_in_the_second_epoch(folder, rank)
    fail_together(folder, rank)
    for name, options in CASES.items():
        _, weights, metrics[name] = train(folder / name, 2, **options)
        np.savez(folder / f"{name}.{rank}.npz", **weights)
    _, weights, metrics["accumulated"] = accumulated(folder / "accumulated", 2)
    np.savez(folder / f"accumulated.{rank}.npz", **weights)

    saving = {
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-3,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 2,
        "train_sampling_strategy": "random",
    }  # fmt: skip
    trainer, weights, _ = train(folder / "saved", 2, eval_dataset=ROWS, **saving)
    trainer.save_model()
    np.savez(folder / f"saved.{rank}.npz", **weights, rewards=trainer.predict(trainer.eval_dataset).predictions)
    resumed = build_trainer(
        folder / "resumed", train_dataset=ROWS[:8], per_device_train_batch_size=2, max_steps=4, learning_rate=1e-3,
        train_sampling_strategy="random",
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(folder / "saved" / "checkpoint-2"))
    np.savez(folder / f"resumed.{rank}.npz", **{n: p.detach().numpy() for n, p in resumed.model.named_parameters()})
    if rank == 0:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    del trainer
    gc.collect()  # earlier trainers hold the process group, and the end of Python may abort where its threads are alive
    resumed.end()


if __name__ == "__main__":
    import os

    main(Path(sys.argv[1]), int(os.environ["RANK"]))
