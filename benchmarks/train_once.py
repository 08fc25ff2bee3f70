"""One training run of one library in a process of its own, for `train_speed.py`: its times, its memory, its losses.

Usage: python benchmarks/train_once.py JOB.json RESULT.json
"""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_from_disk
from machine import now, peak_memory, start_measuring_memory
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback


class Stopwatch(TrainerCallback):
    """Stamps the end of every step, and counts the positions that the model was called with until then."""

    def __init__(self, device):
        self.device, self.ends, self.positions = device, [], []
        self._seen = self.largest = 0

    def count(self, model, _args, kwargs):
        """Hook of the model: remember how many positions a call has."""
        if model.training:
            self._seen += kwargs["input_ids"].numel()
            self.largest = max(self.largest, kwargs["input_ids"].numel())

    def on_train_begin(self, _args, _state, _control, **_):
        """Forget what was tried before the first step."""
        self._seen = 0

    def on_step_end(self, _args, _state, _control, **_):
        """Take the time."""
        self.ends.append(now(self.device))
        self.positions.append(self._seen)
        self._seen = 0


@dataclass
class ManyPairsARow:
    """Hands a library's own collator the pairs of rows that hold several each."""

    collator: Any

    def __call__(self, rows):
        """Make one batch of all their pairs."""
        sides = ("chosen_ids", "rejected_ids")
        pairs = [pair for row in rows for pair in zip(*(row[side] for side in sides), strict=True)]
        return self.collator([dict(zip(sides, pair, strict=True)) for pair in pairs])


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    library = importlib.import_module(job["library"])
    options = {}
    if job["many_pairs_a_row"]:
        pad = AutoTokenizer.from_pretrained(job["model"]).pad_token_id
        options["data_collator"] = ManyPairsARow(library.trainer.reward_trainer.DataCollatorForPreference(pad))
    device = "cpu" if job["config"]["use_cpu"] else "cuda"
    watch = Stopwatch(device)
    trainer = library.RewardTrainer(
        model=job["model"],
        args=library.RewardConfig(**job["config"]),
        train_dataset=load_from_disk(job["data"]),
        callbacks=[watch],
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model.register_forward_pre_hook(watch.count, with_kwargs=True)
    loaded = start_measuring_memory(device)
    trainer.train()
    result = {
        "ends": watch.ends,
        "positions": watch.positions,
        "largest": watch.largest,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "tokens": [entry["num_tokens"] for entry in trainer.state.log_history if "loss" in entry],
        "loaded": loaded,
        "peak": peak_memory(device),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
