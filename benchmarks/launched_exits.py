"""Does a launched run end? Starts tiny runs of `plaudit train` on two CPU processes, one after the other.

One in ten of them used to hang or abort after its last line. Prints each run's exit code and time, and fails unless all
are 0. Usage: python benchmarks/launched_exits.py [--runs 10]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import add_output, write_results
from workload import write_base_model

ROWS = [{"prompt": f"{n} + {n}?", "chosen": f" {2 * n}", "rejected": f" {2 * n + 1}"} for n in range(40)]
LIMIT = 300  # seconds


def launch(folder, number):
    """Exit code (None if it hangs) of one run, and what it printed last."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "plaudit.cli", "train", "--model_name_or_path", folder / "base", "--dataset_name", folder / "rows.jsonl",
        "--eval_fraction", "0.2", "--max_steps", "2", "--save_strategy", "no", "--verify_on_save", "false",
        "--use_cpu", "true", "--bf16", "false", "--output_dir", folder / f"run-{number}",
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    launched = subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = launched.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        launched.terminate()  # it ends both processes
        said, _ = launched.communicate()
        return None, said[-2000:]
    return launched.returncode, said[-2000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    add_output(parser)
    options = parser.parse_args()
    runs, good = options.runs, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_base_model(folder / "base", ROWS, hidden=64, layers=2, vocab_size=300)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        for number in range(1, runs + 1):
            started = time.perf_counter()
            code, said = launch(folder, number)
            print(f"run {number}: exit code {code}, {time.perf_counter() - started:.0f} s", flush=True)
            good += code == 0
            if code != 0:
                print(said)
    print(f"{good} of {runs} launched runs ended with exit code 0")
    write_results(options.output, [{"launched runs": runs, "ended with exit code 0": good}])
    sys.exit(good != runs)


if __name__ == "__main__":
    main()
