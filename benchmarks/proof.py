"""Run every benchmark of `make proof`, one after the other, and write all figures to one file.

    python benchmarks/proof.py --data FOLDER [--resume] [--only NAME ...] [--short] [--folder proof]

`benchmarks/proof_parts.py` lists the parts, their sizes and the goals of their figures. A part runs in a process of
its own, and writes its figures to `NAME.json` and its output to `NAME.log` in the folder. A part that fails is recorded
with its last lines, and the others go on. After each part, `results.json` and `results.md` hold all figures so far: the
machine, each part with its seconds and the load before it (cores that other processes kept busy), and the goals.

`--resume` keeps the parts of the folder that have passed with the same command, and runs the others. `--only` runs the
named parts anew, and keeps the rest. `--short` runs tiny sizes, which show that each part runs. The exit code is 1 if
a part has failed. A figure that misses its goal is shown as missed; it is no failure.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import psutil
from proof_parts import GOALS, PARTS
from results import as_tables, commit, describe_machine

BENCHMARKS = Path(__file__).parent
LAST_LINES = 15
LOAD_SECONDS = 2


def cores_busy():
    """Return how many cores are busy while this process waits."""
    return psutil.cpu_percent(LOAD_SECONDS) / 100 * psutil.cpu_count()


def run_command(command, log, limit, environment):
    """Run a command with its output in a file; return its exit code, or `None` if it took too long and was ended."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # with its servers and workers
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def command_of(part, short):
    """Return the script and the arguments of a part as one text, with `{data}` in place of the folder of data."""
    return f"{part.command} {part.short}" if short and part.short else part.command


def run_part(part, command, data, folder):
    """Run a part, and return its record."""
    arguments = shlex.split(command.format(data=shlex.quote(str(data))))
    figures, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    figures.unlink(missing_ok=True)
    load, started, begun = cores_busy(), datetime.now(UTC), time.perf_counter()
    script = [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:], "--output", str(figures)]
    limit = 3 * part.seconds + 120
    code = run_command(script, log, limit, {"HF_HUB_OFFLINE": "1"} | part.environment)
    seconds = time.perf_counter() - begun
    record = {
        "proves": part.proves, "command": command, "passed": code == 0, "seconds": seconds, "load": load,
        "commit": commit(), "date": started.isoformat(timespec="minutes"),
        "rows": json.loads(figures.read_text())["rows"] if figures.exists() else [],
    }  # fmt: skip
    if code != 0:
        why = f"took more than {limit} s" if code is None else f"exit code {code}"
        record["failure"] = [why, *log.read_text(errors="replace").splitlines()[-LAST_LINES:]]
    return record


def goals_of(goals, records):
    """Return the goals of the parts that ran, beside their figures."""
    return [goal.judge(records[goal.part]["rows"]) for goal in goals if goal.part in records]


def write_all(folder, records, goals, short):
    """Write `results.json` and `results.md`."""
    results = {
        "machine": describe_machine(), "short": short, "seconds": sum(each["seconds"] for each in records.values()),
        "goals": goals_of(goals, records), "parts": records,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(as_page(results))


def as_page(results):
    """Return the results as Markdown."""
    machine = results["machine"] | results["machine"]["versions"]
    machine = {name: ", ".join(value) if isinstance(value, list) else value for name, value in machine.items()}
    del machine["versions"]
    parts = results["parts"]
    overview = [
        {"part": name, "": "passed" if each["passed"] else "FAILED", "seconds": round(each["seconds"]),
         "cores busy before": each["load"], "commit": each["commit"], "proves": each["proves"]}
        for name, each in parts.items()
    ]  # fmt: skip
    form = "Tiny sizes: the figures mean nothing. " if results["short"] else ""
    text = ["# The proof", f"{form}{len(parts)} parts in {results['seconds'] / 60:.0f} minutes."]
    text += [as_tables([{"machine": name, "": value} for name, value in machine.items()]), as_tables(overview)]
    if results["goals"]:
        text += ["## Goals", as_tables(results["goals"])]
    for name, each in parts.items():
        text += [f"## {name}", f"{each['proves'][0].upper()}{each['proves'][1:]}: `{each['command']}`"]
        if each["rows"]:
            text.append(as_tables(each["rows"]))
        if not each["passed"]:
            text.append("\n".join(["```", *each["failure"], "```"]))
    return "\n\n".join(text) + "\n"


def earlier_records(folder):
    path = folder / "results.json"
    return json.loads(path.read_text())["parts"] if path.exists() else {}


def run_proof(parts, goals, options):
    """Run the parts that were asked for, and return whether all of the folder's parts have passed."""
    options.folder.mkdir(parents=True, exist_ok=True)
    commands = {part.name: command_of(part, options.short) for part in parts}
    earlier = earlier_records(options.folder) if options.resume or options.only else {}
    records = {part.name: earlier[part.name] for part in parts if part.name in earlier}
    wanted = [part for part in parts if not options.only or part.name in options.only]
    if options.resume:
        done = {name for name, each in records.items() if each["passed"]}
        same = {name for name in done if records[name]["command"] == commands[name]}
        wanted = [part for part in wanted if part.name not in same]
    begun = time.perf_counter()
    for number, part in enumerate(wanted):
        rest = sum(each.seconds for each in wanted[number:])
        elapsed = (time.perf_counter() - begun) / 60
        remains = "" if options.short else f", about {rest / 60:.0f} remain"
        print(f"[{number + 1}/{len(wanted)}] {part.name} ({elapsed:.0f} minutes have passed{remains})", flush=True)
        record = run_part(part, commands[part.name], options.data, options.folder)
        records = {each.name: record if each is part else records[each.name] for each in parts
                   if each is part or each.name in records}  # fmt: skip
        write_all(options.folder, records, goals, options.short)
        print(f"    {'passed' if record['passed'] else 'FAILED'} in {record['seconds']:.0f} s", flush=True)
        for line in record.get("failure", []):
            print(f"    {line}", flush=True)
    missed = [each["figure"] for each in goals_of(goals, records) if each["held"] != "held"]
    failed = [name for name, each in records.items() if not each["passed"]]
    print(f"{len(records) - len(failed)} of {len(records)} parts passed; see {options.folder / 'results.md'}")
    print(*(f"failed: {name}" for name in failed), *(f"goal missed: {each}" for each in missed), sep="\n")
    return not failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of public preference data")
    parser.add_argument("--folder", type=Path, default=Path("proof"), help="where results are written")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[part.name for part in PARTS])
    parser.add_argument("--resume", action="store_true", help="keep the parts that have passed")
    parser.add_argument("--short", action="store_true", help="tiny sizes, which show that each part runs")
    options = parser.parse_args()
    if find_spec("trl") is None:
        parser.error("parts compare with TRL: pip install --no-deps --target FOLDER trl==1.16.0, FOLDER on PYTHONPATH")
    if not options.data.is_dir():
        parser.error(f"--data: expected a folder of .jsonl.gz files, got {options.data}")
    try:
        sys.exit(0 if run_proof(PARTS, [] if options.short else GOALS, options) else 1)
    except KeyboardInterrupt:
        sys.exit("\nstopped; with --resume the proof goes on from here")


if __name__ == "__main__":
    main()
