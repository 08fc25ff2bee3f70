"""Time `plaudit eval --scores` on 3,000 pairs, whole command, and check that it imports no torch.

python benchmarks/score_file_speed.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from results import add_output, write_results

ROWS, RUNS = 3000, 5


def write_scores(path):
    draw = np.random.default_rng(0)
    header = {"format": "plaudit-scores", "version": 1, "model": "a", "dataset": {"path": "b", "split": "test"}}
    lines = [header]
    for row, rewards in enumerate(draw.normal([0.5, 0], 1, (ROWS, 2)).tolist()):
        subset = f"subset {row % 10}"
        lengths = draw.integers(50, 900, 2).tolist()
        lines.append({"row": row, "rewards": rewards, "prompt_key": row // 3, "subset": subset, "characters": lengths})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_output(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.jsonl")
        write_scores(path)
        command = ["-m", "plaudit.cli", "eval", "--scores", str(path)]
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            seconds.append(time.perf_counter() - start)
        named = [sys.executable, "-X", "importtime", *command]
        imported = " torch\n" in subprocess.run(named, capture_output=True, text=True, check=True).stderr
        data = f"{ROWS:,} pairs of {ROWS // 3:,} prompts in 10 subsets"
        median = sorted(seconds)[RUNS // 2]
        print(f"{data}: {median:.2f} s (median of {RUNS})")
        print(f"torch imported: {imported}")
        write_results(options.output, [{"pairs": ROWS, "seconds": median, "imports torch": imported}])


if __name__ == "__main__":
    main()
