"""What each of two processes runs in `test_two_processes.py`: all its cases, in one start."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import build_trainer, pair_rows

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
ROWS = pair_rows()


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


def train(folder, processes, **options):
    """Weights at the end and the training log: 8 rows, as many a step as 4 on one process."""
    options = {"train_dataset": ROWS[:8]} | options
    trainer = build_trainer(folder, per_device_train_batch_size=4 // processes, max_steps=4, **options)
    trainer.train()
    weights = {name: parameter.detach().numpy() for name, parameter in trainer.model.named_parameters()}
    return trainer, weights, [entry for entry in trainer.state.log_history if "loss" in entry]


CASES = {
    "sgd": SGD,
    "adamw": {"learning_rate": 1e-3},
    "checkpointing": SGD | {"gradient_checkpointing": True},
    "centred": SGD | {"center_rewards_coefficient": 0.1},
    "stream": SGD | {"train_dataset": Dataset.from_list(ROWS[:8]).to_iterable_dataset()},
    "margin": SGD | {"train_dataset": [row | {"margin": n / 4} for n, row in enumerate(ROWS[:8])]},
    "adapter": SGD | {"peft_config": LoraConfig(), "gradient_checkpointing": True},
}


def accumulated(folder, processes):
    """Steps of 8 rows; on two processes in two micro-batches of 2 rows each."""
    return train(folder, processes, **SGD, gradient_accumulation_steps=2)


def main(folder, rank):
    torch.set_num_threads(1)
    metrics = {}
    for rows in (10, 11):
        for streaming in (False, True):
            name = f"{rows}-{'stream' if streaming else 'table'}"
            arrays, metrics[name] = evaluate(folder / "run", rows, streaming)
            np.savez(folder / f"{name}.{rank}.npz", **arrays)
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
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import os

    main(Path(sys.argv[1]), int(os.environ["RANK"]))
