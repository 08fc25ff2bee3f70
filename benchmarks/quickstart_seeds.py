"""Does the quickstart keep its promise for any seed? Runs it for five, with the same settings.

Usage: python benchmarks/quickstart_seeds.py [--seeds 5]
"""

import argparse
import sys
import tempfile

import datasets

from plaudit.quickstart.demonstration import run_quickstart


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print("seed  accuracy  interval       ceiling   of the way  bag of word  longer wins  rank correl  seconds")
    datasets.disable_progress_bars()
    kept = True
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            result = run_quickstart(seed, folder)
        low, high = result.interval
        figures = (result.share_of_ceiling, result.bag_of_words, result.longer_wins, result.correlation)
        print(
            f"{seed:4d}  {result.accuracy:8.3f}  {low:.3f} - {high:.3f}  {result.ceiling:7.3f}  "
            + "  ".join(f"{figure:11.3f}" for figure in figures)
            + f"  {result.seconds:7.0f}"
        )
        kept &= (
            result.share_of_ceiling >= 0.9 and result.bag_of_words <= result.ceiling - 0.1 and result.longer_wins < 0.6
        )
    if not kept:
        sys.exit("a promise is broken: 90% of the way, the bag of words 10 points below the ceiling, length below 60%")


if __name__ == "__main__":
    main()
