"""Who may import whom: the table of the design, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "plaudit"

# A package may import itself, `errors`, and these.
ALLOWED = {
    "errors": set(),
    "data": set(),
    "forest": set(),
    "losses": set(),
    "metrics": set(),
    "calibration": {"metrics"},
    "models": {"forest"},
    "checkpoint": {"data", "forest", "models"},
    "engine": {"forest", "models"},
    "training": {"data", "forest", "models", "checkpoint", "losses", "metrics"},
    "scoring": {"data", "forest", "models", "checkpoint", "engine"},
    "evaluation": {"data", "metrics", "calibration", "scoring"},
    "quickstart": {"data", "metrics", "scoring", "training", "evaluation"},
    "cli": {
        "data",
        "forest",
        "models",
        "checkpoint",
        "training",
        "losses",
        "metrics",
        "scoring",
        "evaluation",
        "quickstart",
    },
}


def package_of(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imported_packages(path):
    """Names under `plaudit.` that a file imports, at its head or inside its functions; not those for type checkers."""
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


@pytest.mark.parametrize("name", ["metrics", "calibration"])
def test_metrics_need_numpy_alone(name):
    tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
    modules = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules <= {"math", "numpy", "plaudit"}


def test_importing_plaudit_pulls_in_no_torch():
    code = "import sys, plaudit, plaudit.data, plaudit.cli; print('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
