"""The figures of a benchmark: rows shown as a table, and written to a file with the machine that they are from.

A row is a dictionary from the names of columns to numbers and texts. The name of a column holds its unit.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd", "bf16")  # they decide how fast products run
PACKAGES = ("torch", "transformers", "trl")


def add_output(parser):
    """Add the option by which a benchmark is told to write its figures to a file."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="write figures and machine to this file, as JSON")


def write_results(path, rows):
    """Write rows and the machine to a JSON file; without a path, do nothing."""
    if path is not None:
        rows = [{name: plain(value) for name, value in row.items()} for row in rows]
        path.write_text(json.dumps({"rows": rows, "machine": describe_machine()}, indent=1) + "\n")


def plain(value):
    """Return a value that JSON can hold: no scalar of NumPy, and `None` in place of infinity."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_machine():
    """Return what decides figures: processor, instructions, cores, versions, commit and date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*: (.*)$", described, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", described, re.MULTILINE)
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "instructions": [each for each in INSTRUCTIONS if flags and each in flags[1].split()],
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in PACKAGES},
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit():
    """Return the commit of the checkout, marked where files were changed since; `None` outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def shown(value):
    """Write a value for people: numbers to three significant digits, nothing for `None`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:{'#' if abs(value) >= 0.01 else ''}.3g}".rstrip(".")
    if isinstance(value, dict):
        return ", ".join(f"{name}: {shown(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def as_tables(rows):
    """Return Markdown tables with columns in line: one for all rows that have the same columns."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append([shown(value) for value in row.values()])
    return "\n\n".join(as_table([list(columns), *cells]) for columns, cells in groups.items())


def as_table(lines):
    """Return one Markdown table; the first line has the names of the columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
