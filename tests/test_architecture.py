"""The rules of docs/architecture.md, read from the source: imports between packages, file names, and the tree."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "plaudit"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def allowed_imports():
    """The table of the page: for each package, those that it may import beside itself and `errors`."""
    table = PAGE[PAGE.index("| package | may import |") :].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", table, flags=re.MULTILINE)
    names = [(re.findall(r"`(\w+)`", packages), set(re.findall(r"`(\w+)`", allowed))) for packages, allowed in rows]
    allowed = {package: imports for packages, imports in names for package in packages}
    return allowed | {"cli": set(allowed)}


ALLOWED = allowed_imports()


def package_of(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imported_packages(path):
    """Packages under `plaudit.` that a file imports, at its head or inside its functions, except for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("plaudit."):
                yield name.split(".")[1], node.lineno


FILES = sorted(path for path in SOURCE.rglob("*.py") if package_of(path) != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_package_may(path):
    package = package_of(path)
    allowed = ALLOWED[package] | {package, "errors"}
    wrong = [f"line {line}: plaudit.{name}" for name, line in imported_packages(path) if name not in allowed]
    assert not wrong, f"{path.relative_to(SOURCE)} is in '{package}' and may not import {wrong}"


def test_no_file_is_called_utils():
    assert not [path for path in SOURCE.rglob("*.py") if "util" in path.stem]


def test_metrics_need_numpy_alone():
    tree = ast.parse((SOURCE / "metrics.py").read_text(encoding="utf-8"))
    modules = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules <= {"math", "numpy"}


def test_importing_plaudit_pulls_in_no_torch():
    code = "import sys, plaudit, plaudit.data, plaudit.cli; print('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def paths_of_the_tree():
    """The files that the tree of the page names, relative to `src/plaudit`; a folder's name ends in a slash there."""
    (block,) = re.findall(r"```text\nsrc/plaudit/\n(.*?)```", PAGE, flags=re.DOTALL)
    folders = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, description = line.split(maxsplit=1)
        assert description, line
        folders[depth - 1 :] = [name.rstrip("/")]
        if not name.endswith("/"):
            yield "/".join(folders)


def test_the_page_names_every_module_and_no_other():
    modules = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent == SOURCE]
    assert sorted(paths_of_the_tree()) == sorted(path.relative_to(SOURCE).as_posix() for path in modules)


def test_files_that_the_page_mentions_exist():
    mentioned = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", PAGE))
    missing = [name for name in mentioned if not ((SOURCE / name).exists() or (ROOT / name).exists())]
    assert mentioned
    assert not missing


# At the start of a docstring these words stand for a subject that only the code names.
NO_SUBJECT = {
    "how", "it", "its", "that", "their", "them", "these", "they", "this", "those", "what", "where", "whether", "which",
    "who", "whose", "why",
}  # fmt: skip


def docstrings(path):
    """The line and the text of every docstring of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def test_a_file_name_occurs_once():
    """In `cli/` there is a file for each command, named after it."""
    names = [path.name for path in SOURCE.rglob("*.py") if path.name != "__init__.py" and path.parent.name != "cli"]
    assert not sorted(name for name, count in Counter(names).items() if count > 1)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_docstring_starts_with_its_subject_or_a_verb(path):
    wrong = [
        f"line {line}: {text.splitlines()[0]}"
        for line, text in docstrings(path)
        if re.split(r"\W", text, maxsplit=1)[0].lower() in NO_SUBJECT
    ]
    assert not wrong, f"{path.relative_to(SOURCE)}: begin with a noun of the field or an imperative verb: {wrong}"
