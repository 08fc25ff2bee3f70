"""Time of a training step and of scoring with five heads over one head, on real rows, alternating."""

import tempfile
import time
from statistics import median

import datasets
from ensemble_files import new_tokenizer, read_rows
from ensemble_world import be_quiet, new_decoder
from transformers import PrinterCallback, TrainerCallback

from plaudit import RewardConfig, RewardModel, RewardTrainer

HIDDEN, REPEATS = 512, 5


class StepTimes(TrainerCallback):
    """The seconds of each step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, *_, **__):
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.started)


def measure_speed(sizes, data):
    """Return the medians of one and of five heads, and their ratios."""
    be_quiet()
    rows = read_rows(data, "hh_harmless", sizes)[: 8 * sizes.speed_steps]
    tokenizer = new_tokenizer(rows)
    conversations = [row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")]
    steps, scoring, models = {1: [], sizes.members: []}, {1: [], sizes.members: []}, {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            for heads in steps:
                times = StepTimes()
                trainer = RewardTrainer(
                    model=new_decoder(tokenizer, 0, HIDDEN), processing_class=tokenizer, callbacks=[times],
                    train_dataset=datasets.Dataset.from_list(rows),
                    args=RewardConfig(
                        f"{folder}/{heads}", num_heads=heads, per_device_train_batch_size=8, num_train_epochs=1,
                        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
                        gradient_checkpointing=False, verify_on_save=False,
                    ),
                )  # fmt: skip
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                steps[heads].append(times.seconds)
                if heads not in models:
                    trainer.save_model()
                    models[heads] = RewardModel.from_pretrained(trainer.args.output_dir)
        for _ in range(REPEATS + 1):  # the first is a warm-up
            for heads, model in models.items():
                started = time.perf_counter()
                model.score(conversations, return_std=heads > 1)
                scoring[heads].append(time.perf_counter() - started)
    # The same step of each run has the same rows, so that steps are compared one by one.
    pairs = zip(*(zip(*steps[heads], strict=True) for heads in steps), strict=True)
    ratios = [median(several) / median(one) for one, several in pairs]
    result = {
        "step_seconds": {heads: median(median(each) for each in runs) for heads, runs in steps.items()},
        "step_ratio": median(ratios),
        "scoring_seconds": {heads: median(each[1:]) for heads, each in scoring.items()},
    }
    one, several = result["scoring_seconds"].values()
    result["scoring_ratio"] = several / one
    print(f"  {sizes.members} heads over one: a step {result['step_ratio']:.3f}, scoring {result['scoring_ratio']:.3f}")
    return result
