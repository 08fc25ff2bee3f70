"""What evaluation counts: Plaudit beside TRL, on 10 rows in batches of 4, and with a model that rewards all alike.

Usage: python benchmarks/evaluation_trl.py
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from results import add_output, write_results
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from workload import write_base_model

import plaudit

try:
    import trl
except ImportError:
    sys.exit("this compares with TRL: pip install --no-deps --target FOLDER trl==1.16.0, and put FOLDER on PYTHONPATH")

ROWS = [
    {"prompt": f"Is {n} even?", "chosen": " Yes." if n % 2 == 0 else " No.", "rejected": " Maybe."} for n in range(10)
]


def evaluate(library, base, output, *, blank):
    """How many rewards `compute_metrics` saw, and the accuracy."""
    seen = []

    def count(prediction):
        seen.append(np.size(prediction.predictions))
        return {}

    config = library.RewardConfig(
        output_dir=output, per_device_eval_batch_size=4, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True
    )
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    if blank:
        torch.nn.init.zeros_(model.score.weight)
    dataset = Dataset.from_list(ROWS)
    trainer = library.RewardTrainer(
        model=model,
        args=config,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(base),
        compute_metrics=count,
    )
    accuracy = trainer.evaluate()["eval_accuracy"]
    return seen[-1], accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_output(parser)
    options, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        base, _ = write_base_model(Path(folder) / "base", ROWS, hidden=128, layers=2, vocab_size=400)
        for library in (plaudit, trl):
            output = str(Path(folder) / library.__name__)
            seen, _ = evaluate(library, base, output, blank=False)
            _, accuracy = evaluate(library, base, output, blank=True)
            print(f"{library.__name__:8s} sees {seen} of 20 rewards; accuracy where all are alike: {accuracy:.0%}")
            rows.append({"library": library.__name__, "rewards seen of 20": seen, "accuracy, all alike": accuracy})
    write_results(options.output, rows)


if __name__ == "__main__":
    main()
