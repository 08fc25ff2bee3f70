"""Cleaning: a copy of the data without the rows that are surely wrong."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plaudit.auditing.findings import Finding
from plaudit.auditing.row_source import with_progress
from plaudit.checkpoint.atomic import staged_file
from plaudit.data.prompts import without_none

__all__ = ["surely_wrong", "write_clean"]


def surely_wrong(findings: Iterable[Finding]) -> dict[str, list[int]]:
    """Return the rows that are surely wrong by kind, each row once.

    Those are the training rows of exact leaks, rows with identical or empty responses, and exact duplicates but for the
    first of each group that is not wrong already.
    """
    groups = {finding.kind: finding.rows for finding in findings}
    wrong: dict[str, list[int]] = {}
    taken: set[int] = set()
    for kind in ("leaked_exact", "identical", "empty"):
        wrong[kind] = sorted({group[0] for group in groups.get(kind, ())} - taken)
        taken.update(wrong[kind])
    left = ([row for row in group if row not in taken] for group in groups.get("duplicate_exact", ()))
    wrong["duplicate_exact"] = sorted(row for group in left for row in group[1:])
    return {kind: rows for kind, rows in wrong.items() if rows}


def write_clean(path: Path, rows: Iterable[Any], wrong: dict[str, list[int]]) -> int:
    """Write the other rows as JSON lines, completely or not at all, and return how many they are."""
    left_out = {row for numbers in wrong.values() for row in numbers}
    kept = 0
    with staged_file(path) as file:
        for number, row in enumerate(with_progress(rows, "Writing")):
            if number not in left_out:
                file.write(json.dumps(without_none(dict(row)), ensure_ascii=False).encode("utf-8", "surrogatepass"))
                file.write(b"\n")
                kept += 1
    return kept
