"""Seconds of the processor for a training step with several heads over one head, on real rows, alternating.

`uncertainty_cost.py` measures scoring.
"""

import tempfile
import time
from statistics import median

import datasets
from ensemble_files import new_tokenizer, read_rows
from ensemble_world import be_quiet, new_decoder
from transformers import PrinterCallback, TrainerCallback

from plaudit import RewardConfig, RewardTrainer

HIDDEN, LAYERS, REPEATS = 512, 6, 3


class StepTimes(TrainerCallback):
    """The seconds of each step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        """Start the clock."""
        self.started = time.process_time()

    def on_step_end(self, *_, **__):
        """Stop it."""
        self.seconds.append(time.process_time() - self.started)


def timed_run(rows, tokenizer, heads):
    """Train one model, and return the seconds of each step but the first, which is a warm-up."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=new_decoder(tokenizer, 0, HIDDEN, LAYERS), processing_class=tokenizer, callbacks=[times],
            train_dataset=datasets.Dataset.from_list(rows),
            args=RewardConfig(
                folder, num_heads=heads, per_device_train_batch_size=8, num_train_epochs=1, save_strategy="no",
                report_to="none", disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False,
            ),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return times.seconds[1:]


def measure_speed(sizes, data):
    """Return the median seconds of a step with one and with several heads, and the median of their ratios."""
    be_quiet()
    rows = read_rows(data, "hh_harmless", sizes)[: 8 * sizes.speed_steps]
    tokenizer = new_tokenizer(rows)
    runs = {heads: [] for heads in (1, sizes.members)}
    for _ in range(REPEATS):
        for heads, seconds in runs.items():
            seconds.append(timed_run(rows, tokenizer, heads))
    # The same step has the same rows in each run, so that steps are compared one by one.
    of_step = {heads: [median(step) for step in zip(*seconds, strict=True)] for heads, seconds in runs.items()}
    ratios = [several / one for one, several in zip(*of_step.values(), strict=True)]
    result = {"step_seconds": {heads: median(each) for heads, each in of_step.items()}, "step_ratio": median(ratios)}
    print(f"  a training step with {sizes.members} heads takes {result['step_ratio']:.3f} times that with one")
    return result
