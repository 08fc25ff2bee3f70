"""The files of an audit: its JSON, its HTML page, and the data without the rows that are surely wrong."""

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from plaudit.auditing.audit import Audit
from plaudit.auditing.findings import Finding
from plaudit.auditing.row_source import with_progress
from plaudit.checkpoint.atomic import staged_file, write_atomically
from plaudit.data.prompts import without_none
from plaudit.evaluation.number_texts import percent

__all__ = ["audit_page", "surely_wrong", "write_audit", "write_clean"]


def write_audit(path: Path, result: Audit) -> None:
    """Write an audit as a page if the name of the file ends with .html, else as JSON."""
    text = audit_page(result) if path.suffix == ".html" else json.dumps(result.to_dict(), indent=1, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode("utf-8", "replace"))


def audit_page(result: Audit) -> str:
    """Return the page of an audit: HTML without scripts, in which text of the data is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    template = files("plaudit.auditing").joinpath("audit.html.jinja").read_text("utf-8")
    return environment.from_string(template).render(audit=result.to_dict())


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
                line = json.dumps(without_none(dict(row)), ensure_ascii=False) + "\n"
                file.write(line.encode("utf-8", "surrogatepass"))
                kept += 1
    return kept
