"""Is Plaudit's loss TRL's loss, step by step?

Same weights, same data in the same order, float32: trains both for some steps in one run and compares the loss of each
step. Usage: python benchmarks/parity_trl.py DATA.jsonl.gz [--steps 40]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from results import add_output, write_results
from transformers import PrinterCallback
from workload import read_rows, write_base_model

import plaudit

try:
    import trl
except ImportError:
    sys.exit("this compares with TRL: pip install --no-deps --target FOLDER trl==1.16.0, and put FOLDER on PYTHONPATH")


def train(library, base, rows, steps, output, checkpointing):
    """The figures of every step, by name, and the seconds that training took."""
    config = library.RewardConfig(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=8,
        logging_steps=1,
        learning_rate=1e-4,
        train_sampling_strategy="sequential",
        gradient_checkpointing=checkpointing,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = library.RewardTrainer(model=str(base), args=config, train_dataset=Dataset.from_list(rows))
    trainer.remove_callback(PrinterCallback)
    seconds = trainer.train().metrics["train_runtime"]
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("loss", "grad_norm", "accuracy", "margin", "num_tokens")
    return [[entry[name] for entry in steps] for name in names], seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--checkpointing", action="store_true")
    add_output(parser)
    options = parser.parse_args()
    rows = read_rows(options.data)
    with tempfile.TemporaryDirectory() as folder:
        base, size = write_base_model(Path(folder) / "base", rows, hidden=256, layers=4)
        curves = {
            library.__name__: train(
                library, base, rows, options.steps, str(Path(folder) / library.__name__), options.checkpointing
            )
            for library in (plaudit, trl)
        }
    names = ("loss", "grad norm", "accuracy", "margin", "tokens")
    worst = [
        max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(curves["plaudit"][0], curves["trl"][0], strict=True)
    ]
    losses = torch.tensor([curves["plaudit"][0][0], curves["trl"][0][0]])
    print(f"{options.steps} steps of 8 pairs, float32, {size / 1e6:.1f}M parameters, TRL {trl.__version__}")
    print(f"loss: first {losses[0, 0]:.6f}, last {losses[0, -1]:.6f} (TRL {losses[1, -1]:.6f})")
    print(f"trained in {curves['plaudit'][1]:.1f} s (TRL {curves['trl'][1]:.1f} s)")
    measured = [
        {"steps": options.steps, "seconds": curves["plaudit"][1], "TRL's seconds": curves["trl"][1],
         "last loss": losses[0, -1], "TRL's loss": losses[1, -1]},
    ]  # fmt: skip
    for name, difference in zip(names, worst, strict=True):
        print(f"largest difference of {name} at any step: {difference:.2e}")
        measured.append({"figure": name, "largest difference at any step": difference})
    write_results(options.output, measured)
    if worst[0] > options.tolerance:
        sys.exit(f"the loss differs by more than {options.tolerance:g}")


if __name__ == "__main__":
    main()
