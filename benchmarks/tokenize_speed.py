"""From raw rows to token ids: how many rows a second does Plaudit make, and how many TRL?

Both tokenise the same rows with the same tokenizer, turn by turn in one process, and must give the same ids row by row.
Figures are medians, of the ratio over rounds; processor time is beside them, since it says more where the machine has
other work.
Usage: python benchmarks/tokenize_speed.py DATA.jsonl.gz [--rounds 5] [--chat]
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
from results import add_output, write_results
from workload import make_tokenizer, read_rows

from plaudit.data import hh
from plaudit.data.tokenize import TokenizationRules, tokenize_dataset

try:
    from trl import RewardTrainer
except ImportError:
    sys.exit("this compares with TRL: pip install --no-deps --target FOLDER trl==1.16.0, and put FOLDER on PYTHONPATH")

MAX_LENGTH = 1024


def with_plaudit(dataset, tokenizer):
    return tokenize_dataset(dataset, tokenizer, TokenizationRules(MAX_LENGTH), split="train")[0]


def with_trl(dataset, tokenizer):
    args = SimpleNamespace(dataset_num_proc=None, max_length=MAX_LENGTH)
    return RewardTrainer._prepare_dataset(None, dataset, tokenizer, args, "train")


def ids_of(dataset):
    return [(row["chosen_ids"], row["rejected_ids"]) for row in dataset]


def timed(prepare, rows, tokenizer):
    dataset = datasets.Dataset.from_list(rows)  # a new one each time: nothing is cached
    wall, cpu = time.perf_counter(), time.process_time()
    prepared = prepare(dataset, tokenizer)
    return time.perf_counter() - wall, time.process_time() - cpu, prepared


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="pairs of text, as in the columns `chosen` and `rejected`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chat", action="store_true", help="turn Anthropic's transcripts to messages first")
    add_output(parser)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    raw = read_rows(options.data)
    tokenizer = make_tokenizer(raw)
    rows = [hh(row) for row in raw] if options.chat else raw

    sides = {"plaudit": with_plaudit, "trl": with_trl}
    ids = {name: ids_of(timed(prepare, rows, tokenizer)[2]) for name, prepare in sides.items()}  # and warms up
    told_apart = [pair for pair in ids["trl"] if pair[0] != pair[1]]  # TRL keeps pairs of equal ids
    assert ids["plaudit"] == told_apart, "the two libraries give different ids"
    print(f"{len(rows)} rows; {len(told_apart)} pairs with equal ids in both, {len(ids['trl'])} kept by TRL")

    times = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, prepare in sides.items():
            times[name].append(timed(prepare, rows, tokenizer)[:2])
    wall, cpu = ({name: statistics.median(column[k] for column in times[name]) for name in sides} for k in (0, 1))
    for name in sides:
        print(f"{name:8} {len(rows) / wall[name]:7.0f} rows/s   {wall[name]:.3f} s wall, {cpu[name]:.3f} s processor")
    pairs = list(zip(times["plaudit"], times["trl"], strict=True))
    ratio, ratio_of_cpu = (statistics.median(theirs[k] / ours[k] for ours, theirs in pairs) for k in (0, 1))
    print(f"times as fast as TRL: {ratio:.2f} wall, {ratio_of_cpu:.2f} processor; load {os.getloadavg()[0]:.1f} on "
          f"{os.cpu_count()} cores")  # fmt: skip
    row = {"file": options.data.name.split(".")[0], "rows": len(rows), "rows/s": len(rows) / wall["plaudit"],
           "TRL's": len(rows) / wall["trl"], "times": ratio, "times by processor time": ratio_of_cpu}  # fmt: skip
    write_results(options.output, [row])


if __name__ == "__main__":
    main()
