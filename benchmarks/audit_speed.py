"""Speed and memory of `plaudit.audit` on one core, everything but a tokenizer included.

The data are the rows of a file, again and again, with three words in ten replaced by words of the file, so that lengths
and vocabulary are real and the rows are not near duplicates. Memory is the peak above the imports, beside the size of
the uncompressed file.

Usage: python benchmarks/audit_speed.py [--data FOLDER] [--file hh_harmless] [--rows 24000]
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from results import add_output, write_results
from workload import read_rows

_MEASURE = """
import sys, time
import datasets, scipy.sparse.csgraph, scipy.stats
import sklearn.feature_extraction.text, sklearn.linear_model, sklearn.model_selection
from machine import peak_memory, start_measuring_memory
from plaudit.auditing.audit import audit
before = start_measuring_memory()
start = time.perf_counter()
result = audit(sys.argv[1])
seconds = time.perf_counter() - start
print(result.comparisons, seconds, peak_memory() - before, {each.kind: each.count for each in result.findings})
"""


def made_rows(source, count, generator):
    """Return rows of the file with words replaced."""
    words = [word for row in source for word in re.findall(r"\w+", json.dumps(row, ensure_ascii=False))]

    def changed(value):
        if isinstance(value, str):
            return re.sub(
                r"\w+", lambda match: generator.choice(words) if generator.random() < 0.3 else match[0], value
            )
        if isinstance(value, list):
            return [changed(each) for each in value]
        return {key: item if key == "role" else changed(item) for key, item in value.items()}

    for number in range(count):
        yield changed({key: value for key, value in source[number % len(source)].items() if key != "subset"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--file", default="hh_harmless")
    parser.add_argument("--rows", type=int, default=24_000)
    add_output(parser)
    options = parser.parse_args()
    source = read_rows(Path(options.data) / f"{options.file}.jsonl.gz")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for row in made_rows(source, options.rows, random.Random(0)):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        size = path.stat().st_size
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": folder, "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", _MEASURE, str(path)]
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        pairs, seconds, memory, found = output.strip().split(maxsplit=3)
        rate, ratio = 60 * int(pairs) / float(seconds), int(memory) / size
        print(f"{options.file}: {int(pairs):,} pairs, {size / 1e6:.1f} MB, {float(seconds):.1f} s, {rate:,.0f} pairs a "
              f"minute; memory {int(memory) / 1e6:.1f} MB, {ratio:.2f} of the file; found {found}")  # fmt: skip
        row = {"file": options.file, "pairs": int(pairs), "MB": size / 1e6, "pairs a minute": rate,
               "memory MB": int(memory) / 1e6, "memory to file": ratio}  # fmt: skip
        write_results(options.output, [row])


if __name__ == "__main__":
    main()
