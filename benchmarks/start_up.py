"""How soon do the commands say a word, and how soon is a name that is not there an error?

Measures the help of every command; the first line of `score`, `eval` and `train` beside `import torch, transformers`,
in turns; and names that are on no hub, where nothing listens at the hub's address and where something listens and never
answers. Every time is that of a fresh process, imports included, the least of several where it is short.
Usage: python benchmarks/start_up.py [--output FILE]
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import add_output, write_results

from plaudit.cli import cli

HELP_GOAL, LINE_GOAL, MISSING_GOAL = 0.5, 1.5, 10.0  # seconds; times the import of the libraries; seconds
ROUNDS = 3
ROW = {"prompt": "2 + 2?", "chosen": " 4", "rejected": " 5"}
LIBRARIES = "import torch, transformers"
IN_PYTHON = """
from plaudit import RewardModel
try:
    RewardModel.from_pretrained(["no/such", "nor/this", "nor/that"])
except Exception as error:
    raise SystemExit(f"{error}")
"""


def first_words(folder):
    """The commands whose first line is measured."""
    rows = folder / "rows.jsonl"
    return {
        "score": ["score", rows, "--model", "no/such", "--output", folder / "scored.jsonl"],
        "eval": ["eval", "no/such", rows],
        "train": ["train", "--model_name_or_path", "no/such", "--dataset_name", rows],
    }


def missing_names(folder):
    """What a name that is on no hub is given to: what it is, the process, and the silence of the hub."""
    words = first_words(folder)
    data = ["train", "--model_name_or_path", "no/such", "--dataset_name", "no/such"]
    return [
        ("score, the model", plaudit(words["score"]), "refuses"),
        ("train, the model", plaudit(words["train"]), "refuses"),
        ("train, the dataset", plaudit(data), "refuses"),
        ("RewardModel, three members", [sys.executable, "-c", IN_PYTHON], "refuses"),
        ("score, the model", plaudit(words["score"]), "never answers"),
    ]


def plaudit(arguments):
    return [sys.executable, "-m", "plaudit.cli", *map(str, arguments)]


def seconds(command, environment=None):
    """The time of a process, and its exit code, or 256 where it printed a traceback."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return time.perf_counter() - started, 256 if b"Traceback" in done.stderr else done.returncode


def until_first_line(command):
    """The time until a process prints its first line, to whichever stream; it is ended then."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        line = process.stdout.readline()
        found = time.perf_counter() - started
        process.kill()
    if not line.strip():
        sys.exit(f"{command} printed no first line")
    return found


def measure_help():
    for name in cli.list_commands(None):
        found, code = min(seconds(plaudit([name, "--help"])) for _ in range(ROUNDS))
        yield row(f"plaudit {name} --help", found, HELP_GOAL, code == 0)


def measure_first_lines(folder):
    """Rows of the import and of each command, which take turns."""
    times = {"libraries": []} | {name: [] for name in first_words(folder)}
    for _ in range(ROUNDS):
        times["libraries"].append(seconds([sys.executable, "-c", LIBRARIES])[0])
        for name, arguments in first_words(folder).items():
            times[name].append(until_first_line(plaudit(arguments)))
    libraries, *lines = (min(each) for each in times.values())
    yield row(LIBRARIES, libraries, None)
    for name, found in zip(first_words(folder), lines, strict=True):
        yield row(f"first line of plaudit {name}", found, LINE_GOAL * libraries)


def measure_missing(folder):
    """Rows of names that are not there; the socket that is bound and does not listen refuses."""
    with socket.socket() as refusing, socket.create_server(("127.0.0.1", 0)) as silent:
        refusing.bind(("127.0.0.1", 0))
        ports = {"refuses": refusing.getsockname()[1], "never answers": silent.getsockname()[1]}
        for what, command, hub in missing_names(folder):
            address = {"HF_ENDPOINT": f"http://127.0.0.1:{ports[hub]}", "HF_HOME": str(folder / "home")}
            online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
            found, code = seconds(command, online | address)
            yield row(f"no such name: {what}; the hub {hub}", found, MISSING_GOAL, code in (1, 2))


def row(measured, found, goal, right=True):
    """A row of the table; a process with a wrong exit code ends the benchmark."""
    if not right:
        sys.exit(f"{measured}: the process ended with another exit code than expected")
    print(f"{found:7.2f} s  {'' if goal is None else f'(goal {goal:5.2f} s)':16}  {measured}", flush=True)
    return {"measured": measured, "seconds": round(found, 3), "goal in seconds": goal and round(goal, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_output(parser)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
        rows = [*measure_help(), *measure_first_lines(folder), *measure_missing(folder)]
    write_results(output, rows)


if __name__ == "__main__":
    main()
