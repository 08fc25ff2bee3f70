"""Does the quickstart keep its promise for any seed? Runs it for several, with the same settings.

Usage: python benchmarks/quickstart_seeds.py [--seeds 3] [--output FILE.json]
"""

import argparse
import sys
import tempfile

import datasets
from results import add_output, write_results

from plaudit.quickstart.demonstration import run_quickstart

_FIGURES = {
    "accuracy": "{:8.3f}", "accuracy_low": "{:5.3f}", "accuracy_high": "{:5.3f}", "ceiling": "{:7.3f}",
    "share_of_ceiling": "{:10.3f}", "bag_of_words": "{:11.3f}", "longer_wins": "{:11.3f}", "correlation": "{:11.3f}",
    "seconds": "{:7.0f}",
}  # fmt: skip


def run(seed):
    """Return the figures of one seed, by name."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_quickstart(seed, folder)
    low, high = result.interval
    figures = {"seed": seed, "accuracy_low": low, "accuracy_high": high}
    return figures | {name: getattr(result, name) for name in _FIGURES if name not in figures}


def is_kept(row):
    """Return whether a seed reaches 90% of the way from chance to the ceiling, which the baselines stay far below."""
    far_below = row["bag_of_words"] <= row["ceiling"] - 0.1 and row["longer_wins"] < 0.6
    return row["share_of_ceiling"] >= 0.9 and far_below


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    add_output(parser)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    print("seed  accuracy  95% interval  ceiling  of the way  bag of word  longer wins  rank correl  seconds")
    rows = []
    for seed in range(options.seeds):
        row = run(seed)
        rows.append(row)
        print(f"{seed:4d}", *(text.format(row[name]) for name, text in _FIGURES.items()), sep="  ", flush=True)
    write_results(options.output, rows)
    if not all(map(is_kept, rows)):
        sys.exit("a promise is broken: 90% of the way, the bag of words 10 points below the ceiling, length below 60%")


if __name__ == "__main__":
    main()
