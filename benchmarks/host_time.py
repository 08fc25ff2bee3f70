"""How long does the host take for a step, apart from arithmetic? No GPU is needed.

The model has 24 layers of hidden size 32 and a vocabulary of a few hundred tokens: its time is that of Python and of
the calls of operators, which on a GPU is the time in which kernels are launched. One thread computes, in float32.

Training: the same pairs through Plaudit's trainer as a forest and padded, and through TRL's trainer. Scoring: their
sequences through Plaudit's engine as a forest and padded, and through plain transformers, padded. Runs alternate, and
of each part of a step the median over the steps counts (of the part "logging", of which not every step has one, the
mean). Further steps count operators and synchronisations with the device, with Plaudit's guard against numbers that are
not finite as it works on a GPU; `host_parts.py` says what is counted.

One sequence: the model alone on one sequence, laid out by Plaudit as a forest, and padded for plain transformers: a
training step (forward, backward, clipping, AdamW) and a scoring step. The goal is a ratio of at most 1.15.

Usage: OMP_NUM_THREADS=1 python benchmarks/host_time.py [--short] [--output FILE]
"""

import argparse
import copy
import importlib
import statistics
import tempfile
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import accelerate.data_loader
import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from host_parts import ATTENTION, FIRST_LAYER, LATE, REST, SET_UP, Parts
from results import add_output, write_results
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Qwen3Config,
    TrainerCallback,
    set_seed,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3 import modeling_qwen3
from transformers.utils.logging import disable_progress_bar
from workload import make_tokenizer

from plaudit.engine import ScoringEngine
from plaudit.forest.attention import enable
from plaudit.models.inputs import forest_inputs, padded_inputs
from plaudit.models.reward_head import bind_reward_forward
from plaudit.training.callbacks.finite import FiniteGuard
from plaudit.training.reward_log import RewardLog

LAYERS = 24
GOAL = 1.15
WARMUP = 2
PAIRS = 4  # a step
PROMPT, ANSWER = 48, 16  # tokens


def write_model(folder, tokenizer):
    """A reward model that is all overhead, as a folder."""
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=512, num_labels=1,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    set_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32")


def make_pairs(steps, vocabulary):
    """Tokenised pairs of a common prompt and two answers."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(steps * PAIRS):
        prompt = generator.integers(4, vocabulary, PROMPT).tolist()
        answers = generator.integers(4, vocabulary, (2, ANSWER)).tolist()
        rows.append({"chosen_ids": prompt + answers[0], "rejected_ids": prompt + answers[1]})
    return rows


class StepEnds(TrainerCallback):
    """Ends a step of the parts where the Trainer ends one."""

    def __init__(self, parts):
        self.parts = parts

    def on_step_end(self, _args, state, _control, **_):
        """End the step, and forget the first ones."""
        self.parts.end_step(keep=state.global_step > WARMUP)


def train(parts, folder, rows, layout, *, counting):
    """Train a new model for some steps."""
    library = importlib.import_module("trl" if layout == "TRL" else "plaudit")
    options = {} if layout == "TRL" else {"batch_layout": layout, "verify_on_save": False}
    config = library.RewardConfig(
        str(folder / "out"), per_device_train_batch_size=PAIRS, max_steps=len(rows) // PAIRS, logging_steps=10,
        activation_checkpointing=False, bf16=False, use_cpu=True, train_sampling_strategy="sequential",
        save_strategy="no", report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = library.RewardTrainer(
        model=load(folder), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[StepEnds(parts)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    if counting and layout != "TRL":
        trainer.guard.reads_late = True
    accelerator, collator = trainer.accelerator, type(trainer.data_collator)
    timed = [
        (collator, "torch_call" if layout == "TRL" else "__call__", "collator"),
        (accelerate.data_loader, "send_to_device", "transfer"),
        (trainer, "compute_loss", "loss"),
        (accelerator, "backward", "backward"),
        (accelerator, "clip_grad_norm_", "optimiser and clipping"),
        (torch.optim.AdamW, "step", "optimiser and clipping"),
        (trainer.model, "zero_grad", "optimiser and clipping"),
        (trainer, "log", "logging"),
        (RewardLog, "add", "logging"),
        (FiniteGuard, "check", LATE),
        *((FiniteGuard, name, "guards") for name in ("note", "add", "on_step_begin", "on_pre_optimizer_step")),
    ]
    with ExitStack() as stack:
        for each in timed:
            stack.enter_context(parts.timed(*each))
        time_forward(stack, parts, trainer.model)
        stack.enter_context(parts.counting(counting))
        trainer.train()


def time_forward(stack, parts, model):
    """Charge a model's forward passes, masks and attention to their parts while the stack is open."""
    stack.enter_context(parts.timed_forward(model))
    stack.enter_context(parts.timed(modeling_qwen3, "create_causal_mask", SET_UP))
    stack.enter_context(parts.timed_attention(ALL_ATTENTION_FUNCTIONS, model.config._attn_implementation))


def _score_with(engine, sequences, _parts):
    return engine.score(sequences)


def make_scorers(folder):
    """The model, and the function from sequences to rewards, of each way to score."""
    engines = {layout: ScoringEngine(load(folder), max_tokens_per_batch=1 << 14) for layout in ("forest", "padded")}
    plain = load(folder).eval()
    pad = plain.config.pad_token_id

    def score_plain(sequences, parts):
        with torch.inference_mode():
            with parts.part("collator"):
                inputs = padded_inputs(sequences, pad)
            return plain(**inputs).logits[:, 0].float().cpu().numpy()

    scorers = {}
    for layout, engine in engines.items():
        engine.score([[5, 6], [5, 7]])  # which settles the layout
        engine.layout = layout
        scorers[layout] = engine.model, partial(_score_with, engine)
    return scorers | {"transformers": (plain, score_plain)}


def score(parts, scorer, sequences, steps, *, counting):
    """Score the same sequences some times."""
    model, function = scorer
    engine = importlib.import_module("plaudit.engine")
    with ExitStack() as stack:
        time_forward(stack, parts, model)
        for name in ("forest_inputs", "padded_inputs"):
            stack.enter_context(parts.timed(engine, name, "collator"))
        stack.enter_context(parts.counting(counting))
        for step in range(WARMUP + steps):
            function(sequences, parts)
            parts.end_step(keep=step >= WARMUP)


def summarise(times, counts):
    """Milliseconds, operators and synchronisations of a step by part, the set-up of attention apart."""
    names = {name for steps in (times.steps, counts.steps) for step in steps for each in step for name in each}
    figures = {}
    for name in names:
        middle = statistics.fmean if name == "logging" else statistics.median
        figures[name] = [
            1e3 * middle(seconds[name] for seconds, _, _ in times.steps),
            statistics.fmean(operators[name] for _, operators, _ in counts.steps),
            statistics.fmean(syncs[name] for _, _, syncs in counts.steps),
        ]
    # The first layer makes what all layers share: what it takes more than the others is set-up.
    layer = [value / (LAYERS - 1) for value in figures[ATTENTION]]
    first, made = figures.pop(FIRST_LAYER), figures.get(SET_UP, [0, 0, 0])
    figures[SET_UP] = [m + max(f - one, 0) for m, f, one in zip(made, first, layer, strict=True)]
    figures[ATTENTION] = [LAYERS * one for one in layer]
    figures["the step"] = [sum(values) for values in zip(*figures.values(), strict=True)]
    figures["the step"][0] = 1e3 * statistics.median(sum(seconds.values()) for seconds, _, _ in times.steps)
    return figures


PARTS = [
    "collator", "transfer", "forward", SET_UP, ATTENTION, "loss", "guards", LATE, "backward", "optimiser and clipping",
    "logging", REST, "the step",
]  # fmt: skip


def measure_steps(workload, run, layouts, repeats):
    """Rows of the table of a workload; `run(parts, layout, counting=...)` runs some steps."""
    times, counts = ({layout: Parts() for layout in layouts} for _ in range(2))
    for _ in range(repeats):
        for layout in layouts:
            run(times[layout], layout, counting=False)
    for layout in layouts:
        run(counts[layout], layout, counting=True)
    rows = []
    for layout in layouts:
        figures = summarise(times[layout], counts[layout])
        steps = len(counts[layout].steps)
        places = {place: number / steps for place, number in counts[layout].places.most_common()}
        for part in PARTS:
            if part in figures:
                milliseconds, operators, syncs = figures[part]
                rows.append({
                    "workload": workload, "layout": layout, "part": part, "milliseconds": round(milliseconds, 3),
                    "operators": round(operators, 1), "synchronisations": round(syncs, 2),
                })  # fmt: skip
        rows[-1]["places"] = places
    return rows


def show(rows):
    """Print the table of a workload, and the places of its synchronisations."""
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    cells = {(row["part"], row["layout"]): row for row in rows}
    print(f"\n{rows[0]['workload']}: milliseconds, operators, synchronisations of a step\n")
    print("| part | " + " | ".join(layouts) + " |")
    print("| --- |" + " ---: |" * len(layouts))
    for part in PARTS:
        if any((part, layout) in cells for layout in layouts):
            found = [cells.get((part, layout)) for layout in layouts]
            texts = [
                "" if each is None
                else f"{each['milliseconds']:.2f}, {each['operators']:.0f}, {each['synchronisations']:.1f}"
                for each in found
            ]  # fmt: skip
            print(f"| {part} | " + " | ".join(texts) + " |")
    for row in rows:
        for place, number in row.get("places", {}).items():
            print(f"{row['layout']}: {number:.1f} synchronisations a step at {place}")


def one_sequence(folder, sequence, steps):
    """Rows of the goal: one sequence through the model alone, as a forest and by plain transformers."""
    plain = load(folder)
    forest = copy.deepcopy(plain)
    bind_reward_forward(forest)
    enable(forest)
    pad = plain.config.pad_token_id
    ways = {
        "forest": (forest, lambda: forest_inputs([sequence], [0])),
        "transformers": (plain, lambda: padded_inputs([sequence], pad)),
    }
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) for name, (model, _) in ways.items()}

    def training_step(name):
        model, inputs = ways[name]
        model(**inputs()).logits.sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[name].step()
        model.zero_grad()

    def scoring_step(name):
        model, inputs = ways[name]
        with torch.inference_mode():
            return model(**inputs()).logits.cpu().numpy()

    rows = []
    for workload, step in (("training, one sequence", training_step), ("scoring, one sequence", scoring_step)):
        taken = {name: [] for name in ways}
        for number in range(WARMUP + steps):
            for name, times in taken.items():
                parts = Parts()
                step(name)
                parts.end_step()
                if number >= WARMUP:
                    times.append(1e3 * sum(parts.steps[0][0].values()))
        ours, theirs = (statistics.median(times) for times in taken.values())
        rows.append({
            "workload": workload, "forest_milliseconds": round(ours, 3), "transformers_milliseconds": round(theirs, 3),
            "ratio": round(ours / theirs, 3), "goal": GOAL,
        })  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--short", action="store_true", help="a few steps, to see that the benchmark runs")
    add_output(parser)
    options = parser.parse_args()
    steps, repeats = (2, 1) if options.short else (15, 3)
    disable_progress_bars()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = make_tokenizer([{"text": "Is the sky blue?"}], vocab_size=300)
        write_model(folder, tokenizer)
        pairs = make_pairs(WARMUP + steps, len(tokenizer))
        training = ["forest", "padded", *(["TRL"] if find_spec("trl") else [])]
        trained = measure_steps("training", lambda *a, **k: train(a[0], folder, pairs, a[1], **k), training, repeats)
        show(trained)
        scorers = make_scorers(folder)
        sequences = [row[side] for row in pairs[:PAIRS] for side in ("chosen_ids", "rejected_ids")]
        scored = measure_steps(
            "scoring", lambda *a, **k: score(a[0], scorers[a[1]], sequences, steps, **k), list(scorers), repeats
        )
        show(scored)
        alone = one_sequence(folder, pairs[0]["chosen_ids"], 2 * steps)
    print(f"\nOne sequence of {len(pairs[0]['chosen_ids'])} tokens, the model alone (goal: at most {GOAL})\n")
    for row in alone:
        print(
            f"{row['workload']}: forest {row['forest_milliseconds']:.2f} ms, transformers "
            f"{row['transformers_milliseconds']:.2f} ms, ratio {row['ratio']:.2f}"
        )
    write_results(options.output, [*trained, *scored, *alone])


if __name__ == "__main__":
    main()
