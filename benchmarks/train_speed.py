"""How fast does Plaudit train, and in how much memory, beside TRL?

Both train the same weights on the same rows in the same order with the same optimiser, and show equal losses; in bf16
where the processor computes it natively, else in float32, unless `--dtype` says otherwise. Each run has a process of
its own, so that its memory is its own; they alternate, and of each step the fastest of `--repeats` runs counts. The
first `--warmup` steps are not timed. Rows are shuffled once, as training would, then tokenised once: both get the same
token ids, 8 rows a step unless `--rows` says otherwise.

Ranked groups: Plaudit gets 8 groups a step, each as one row, and weighs comparisons alike. TRL, which knows pairs only,
gets all pairs of the same 8 groups, shuffled and cut into 4 micro-batches of equal size (7 pairs on average), so that
its mean is the same. The groups of a step are drawn so that its pairs are a multiple of 4. (All pairs of a step at once
would need more memory than most machines have, and more padding.)

With `--group_by_prompt` Plaudit places rows of one prompt together, in its own random order, and TRL gets the same
batches in the same order, each as one row of its dataset.

Every figure of speed is a median over steps: pairs (comparisons) a second; how many times TRL's seconds are those of
Plaudit for the same step, with the 10th and the 90th percentile over steps; the positions that TRL computes for each
distinct token of Plaudit, and what the first ratio is of the second (above 1, Plaudit gains more than it saves in
tokens); the distinct tokens that Plaudit computes a second; FLOP/s of its linear layers (6 for each parameter and
token, 8 with checkpointing, which computes them forward again) and how much of the rate of bare products in the same
precision this is, measured in the same run on the same shapes. Memory is the peak above that of the process with the
trainer just made.

`--growth` measures Plaudit alone as batches grow from 1k to 64k distinct tokens, with and without checkpointing; with
`--checkpointing`, only with it. Every optimiser step takes as many tokens, in more batches where these are smaller, so
that the time of AdamW and clipping, which no batch changes, is the same share everywhere.

Usage: python benchmarks/train_speed.py [--data FOLDER] [--files NAME ...] [--all] [--checkpointing] [--growth]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from machine import device_name, linear_shapes, matrix_rate
from results import add_output, as_tables, write_results
from transformers import AutoModelForSequenceClassification, set_seed
from transformers.utils.logging import disable_progress_bar
from workload import make_tokenizer, read_rows, write_base_model

from plaudit import RewardConfig
from plaudit.data import comparisons_of_ranking
from plaudit.data.tokenize import TokenizationRules, tokenize_dataset
from plaudit.training.dataloaders import make_batch_sampler

MICRO_BATCHES = 4  # in which TRL takes the pairs of 8 groups
MAX_LENGTH = 1024
SIDES = ["chosen_ids", "rejected_ids"]
FILES = ["hh_harmless_transcripts", "summedits", "tara", "oasst_ranked"]
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
GROWTH = [1 << power for power in range(10, 17)]
CHECKPOINTED_FROM = 1 << 14  # tokens a batch


@dataclass(frozen=True)
class Workload:
    """One file, ready to train on.

    Attributes:
        folder: Where `model`, and the rows of `plaudit` and `trl`, are.
        shapes: Of the model's linear layers.
        parameters: How many it has.
        common: Options of both libraries that were asked for.
        options: Plaudit's options beyond the common ones.
        trl_options: TRL's. With batches of one row, that row holds several pairs.
        pairs: Comparisons of each step.
    """

    folder: Path
    shapes: list[tuple[int, int]]
    parameters: int
    common: dict
    options: dict
    trl_options: dict
    pairs: list[int]


def prepare(path, folder, asked, *, group_by_prompt=False):
    """Rows shuffled and tokenised, and a model of their tokenizer, in `folder`."""
    rows = read_rows(path)
    rows = [rows[number] for number in np.random.default_rng(0).permutation(len(rows))]
    parameters, shapes = write_model(folder / "model", rows, asked)
    rules = TokenizationRules(MAX_LENGTH)
    dataset, _ = tokenize_dataset(Dataset.from_list(rows), make_tokenizer(rows), rules, split="train")
    size, options, trl_options = asked.rows, {}, {}
    common = {"per_device_train_batch_size": size, "use_cpu": asked.device == "cpu", "bf16": asked.dtype == "bf16"}
    if "sequence_ids" in dataset.column_names:
        batches = draw_groups([len(pairs_of_group(row)) for row in dataset], size)
        dataset = dataset.select([number for batch in batches for number in batch])
        groups = [pairs_of_group(row) for row in dataset]
        steps = [list(chain(*groups[start : start + size])) for start in range(0, len(groups), size)]
        options = {"group_weighting": "comparison"}
        trl_options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": MICRO_BATCHES}
        trl = Dataset.from_list([micro_batch for step in steps for micro_batch in cut(step)])
    elif group_by_prompt:
        # In the order of the rows, batches would close as soon as a prompt does not fit; at random they are filled.
        options = {"group_by_prompt": True, "train_sampling_strategy": "random"}
        trl_options = {"per_device_train_batch_size": 1}
        args = RewardConfig(**settings(folder, **common, **options, max_steps=1))
        steps = list(make_batch_sampler(dataset, args, "forest", rows=size))
        trl = Dataset.from_list([dataset.select(step).select_columns(SIDES)[:] for step in steps])
    else:
        steps = [range(start, start + size) for start in range(0, len(dataset) - size + 1, size)]
        trl = dataset
    for name, rows in (("plaudit", dataset), ("trl", trl)):
        rows.save_to_disk(folder / name)
    return Workload(folder, shapes, parameters, common, options, trl_options, [len(step) for step in steps])


def draw_groups(pairs, size):
    """Groups for each step, as numbers, so that the pairs of a step can be cut into equal micro-batches."""
    generator, left, batches = np.random.default_rng(0), np.arange(len(pairs)), []
    pairs = np.array(pairs)
    for _ in range(100 * len(pairs)):
        drawn = generator.choice(left, size, replace=False)
        if pairs[drawn].sum() % MICRO_BATCHES == 0:
            batches.append(drawn.tolist())
            left = np.setdiff1d(left, drawn)
        if len(left) < size:
            break
    return batches


def pairs_of_group(row):
    """All comparisons of a ranked group: ids of the better and of the other."""
    ids = row["sequence_ids"]
    return [(ids[winner], ids[loser]) for winner, loser in comparisons_of_ranking(ids, row["ranks"])]


def cut(pairs):
    """The pairs of a step, shuffled, in micro-batches: each a row of many pairs."""
    order = np.random.default_rng(0).permutation(len(pairs)).reshape(MICRO_BATCHES, -1)
    return [
        {side: [pairs[number][place] for number in part] for place, side in enumerate(SIDES)} for part in order.tolist()
    ]


def write_model(folder, rows, asked):
    """A reward model, head and all, so that both libraries load the same weights."""
    base, _ = write_base_model(folder, rows, hidden=asked.hidden, layers=asked.layers)
    set_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters()), linear_shapes(model)


def settings(folder, **options):
    """The options of a run that both libraries take."""
    return {
        "output_dir": str(folder / "out"),
        "max_length": MAX_LENGTH,
        "learning_rate": 1e-4,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    } | options


def run(library, workload, **options):
    """What one run in a process of its own measured."""
    folder = workload.folder
    job, result = folder / "job.json", folder / "result.json"
    options = workload.common | options | (workload.options if library == "plaudit" else workload.trl_options)
    described = {
        "library": library,
        "model": str(folder / "model"),
        "data": str(folder / library),
        "many_pairs_a_row": library == "trl" and "per_device_train_batch_size" in workload.trl_options,
        "config": settings(folder, **options),
    }
    job.write_text(json.dumps(described))
    command = [sys.executable, str(Path(__file__).with_name("train_once.py")), str(job), str(result)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{library} failed ({done.returncode}):\n{done.stdout[-4000:]}")
    return json.loads(result.read_text())


def step_seconds(results, warmup):
    """Seconds [S] of each step after the first `warmup`: the least of all runs."""
    return np.min([np.diff(result["ends"])[warmup - 1 :] for result in results], axis=0)


def above_loaded(results):
    return max(result["peak"] - result["loaded"] for result in results)


def linear_flops(workload, checkpointing):
    """Of one token."""
    return (8 if checkpointing else 6) * sum(rows * columns for rows, columns in workload.shapes)


def compare(workload, options):
    """One row of the table: both libraries on one file."""
    steps = min(options.warmup + options.steps, len(workload.pairs))
    results = {"plaudit": [], "trl": []}
    for _ in range(options.repeats):
        for library, done in results.items():
            done.append(run(library, workload, max_steps=steps, gradient_checkpointing=options.checkpointing))
    seconds, theirs = (step_seconds(done, options.warmup) for done in results.values())
    tokens, padded = (np.array(done[0]["positions"][options.warmup :]) for done in results.values())
    pairs = np.array(workload.pairs[options.warmup : steps])
    losses = [done[0]["losses"] for done in results.values()]
    if "group_weighting" not in workload.options and len({tuple(done[0]["tokens"]) for done in results.values()}) > 1:
        sys.exit(f"the libraries trained on different rows: {[done[0]['tokens'][:8] for done in results.values()]}")
    memory, memory_of_trl = (above_loaded(done) / 1e9 for done in results.values())
    rate = matrix_rate(
        workload.shapes, int(tokens.mean()), forwards=1 + options.checkpointing, device=options.device,
        dtype=DTYPES[options.dtype],
    )  # fmt: skip
    reached = np.median(linear_flops(workload, options.checkpointing) * tokens / seconds)
    times, positions = theirs / seconds, padded / tokens
    return {
        "steps": len(seconds),
        "pairs/s": np.median(pairs / seconds),
        "TRL's": np.median(pairs / theirs),
        "times": np.median(times),
        "times, 10%": np.percentile(times, 10),
        "times, 90%": np.percentile(times, 90),
        "positions to tokens": np.median(positions),
        "times to positions": np.median(times / positions),
        "peak GB": memory,
        "TRL's GB": memory_of_trl,
        "share of memory": memory / memory_of_trl,
        "tokens/s": np.median(tokens / seconds),
        "linear GFLOP/s": reached / 1e9,
        "bare GFLOP/s": rate / 1e9,
        "reached": reached / rate,
        "losses apart": np.abs(np.subtract(*losses)).max(),
        "last loss": losses[0][-1],
        "TRL's loss": losses[1][-1],
    }


def growth(path, folder, options):
    """Plaudit alone on batches of more and more distinct tokens."""
    workload = prepare(path, folder, options)
    constant = 12 * workload.parameters  # a gradient and AdamW's two moments, in float32
    most = max(options.budgets)
    jobs = [(True, budget) for budget in options.budgets]
    if not options.checkpointing:
        jobs = [(False, budget) for budget in options.budgets if budget < CHECKPOINTED_FROM] + jobs
    rows = []
    for checkpointing, budget in jobs:
        result = run(
            "plaudit",
            workload,
            max_steps=options.warmup + options.steps,
            gradient_accumulation_steps=most // budget,
            gradient_checkpointing=checkpointing,
            max_tokens_per_batch=budget,
            max_length=GROWTH[0] // 2,  # a pair must fit into the smallest batch
        )
        tokens = np.array(result["positions"][options.warmup :])
        row = {
            "budget": budget,
            "checkpointing": checkpointing,
            "steps": options.steps,
            "tokens a batch": tokens.mean() / (most // budget),
            "us a token": 1e6 * np.median(step_seconds([result], options.warmup) / tokens),
            "peak GB": above_loaded([result]) / 1e9,
            "KB a token": (above_loaded([result]) - constant) / result["largest"] / 1e3,
        }
        print(f"{budget} tokens, checkpointing {checkpointing}: {row['us a token']:.0f} us", file=sys.stderr)
        rows.append(row)
    for checkpointing in dict.fromkeys(checkpointing for checkpointing, _ in jobs):
        times = [row["us a token"] for row in rows if row.get("checkpointing") == checkpointing]
        how = "with" if checkpointing else "without"
        rows.append({"time per token": f"{how} checkpointing", "flat within": max(times) / min(times) - 1})
    print(
        f"\nPlaudit alone, {workload.parameters / 1e6:.1f}M parameters, {options.dtype}. KB a token: the peak above "
        f"the loaded model, without {constant / 1e9:.2f} GB of gradients and AdamW's moments, over the tokens of the "
        f"largest batch.\n\n{as_tables(rows)}"
    )
    write_results(options.output, rows)


def compare_all(options):
    files = sorted(options.data.glob("*.jsonl.gz"))
    if not options.all:
        files = [options.data / f"{name}.jsonl.gz" for name in options.files]
    jobs = [(path, options.group_by_prompt) for path in files]
    if not options.group_by_prompt and not options.files_given:
        jobs += [(path, True) for path in files if path.name.startswith("summedits")]
    rows = []
    for path, group_by_prompt in jobs:
        name = path.name.removesuffix(".jsonl.gz") + (", by prompt" if group_by_prompt else "")
        with tempfile.TemporaryDirectory() as folder:
            workload = prepare(path, Path(folder), options, group_by_prompt=group_by_prompt)
            measured = compare(workload, options)
        about = {"file": name, "precision": options.dtype, "parameters": f"{workload.parameters / 1e6:.1f}M"}
        rows.append(about | measured)
        print(f"{name}: {measured['times']:.2f} times TRL", file=sys.stderr, flush=True)
    how = "with" if options.checkpointing else "without"
    print(
        f"\n{device_name(options.device)}, torch {torch.__version__}, {options.rows} rows a step, {how} gradient "
        f"checkpointing, {torch.get_num_threads()} threads; best of {options.repeats}, {options.warmup} steps of "
        f"warming up; load at the end {os.getloadavg()[0]:.1f}.\n\n{as_tables(rows)}"
    )
    write_results(options.output, rows)
    worst = max(row["losses apart"] for row in rows)
    if worst > options.tolerance:
        sys.exit(f"the losses of a step differ by {worst:.2g}, more than {options.tolerance:g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with NAME.jsonl.gz")
    parser.add_argument("--files", nargs="+", metavar="NAME", help=f"default: {' '.join(FILES)}, and one by prompt")
    parser.add_argument("--all", action="store_true", help="every file of the folder")
    parser.add_argument("--group_by_prompt", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="for both")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--budgets", type=int, nargs="+", default=GROWTH, help="tokens of the batches of --growth")
    parser.add_argument("--steps", type=int, default=20, help="timed ones")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 where the device computes it natively")
    parser.add_argument("--rows", type=int, default=8, help="rows a step")
    parser.add_argument("--hidden", type=int, default=512, help="width of the model")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=0.05, help="how far losses may be apart at any step")
    add_output(parser)
    options = parser.parse_args()
    if options.dtype is None:
        options.dtype = "bf16" if RewardConfig("-", use_cpu=options.device == "cpu").bf16 else "float32"
    options.files_given = options.files is not None
    options.files = options.files or FILES
    if options.warmup < 1 or options.steps < 1:
        parser.error("--warmup and --steps must be above 0")
    disable_progress_bars()
    disable_progress_bar()
    if not options.growth:
        if find_spec("trl") is None:
            sys.exit("this compares with TRL: pip install --no-deps --target FOLDER trl==1.16.0, FOLDER on PYTHONPATH")
        compare_all(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        growth(options.data / "hh_harmless_transcripts.jsonl.gz", Path(folder), options)


if __name__ == "__main__":
    main()
