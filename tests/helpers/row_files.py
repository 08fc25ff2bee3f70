"""Files of rows, one JSON object in each line."""

import json
from pathlib import Path

__all__ = ["read", "write"]


def write(path, rows):
    """Write rows (a text is a line as it stands), and leave a file that has them already as it is."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if not path.exists() or path.read_text() != text:  # a file that is written again counts as changed
        path.write_text(text)
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
