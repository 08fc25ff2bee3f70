"""The package as it is built and installed: its metadata, its pins, and the wheel in an environment of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import plaudit
from plaudit import RewardModel

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_stated_once_and_the_changelog_begins_with_it():
    assert plaudit.__version__ == PROJECT["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == PROJECT["version"]


def test_transformers_has_an_upper_bound():
    (transformers,) = (each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "transformers")
    assert "6.0.0" not in transformers.specifier


@pytest.mark.parametrize("extra", [None, "check", "docs", "report", "quantization", "test"])
def test_every_requirement_is_pinned_at_a_version_that_it_allows(extra):
    requirements = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    pins = {normalized(name): version for name, version in PINS.items()}
    for requirement in map(Requirement, requirements):
        assert pins[normalized(requirement.name)] in requirement.specifier, requirement


def test_pre_commit_runs_the_linter_of_make_check():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revisions = {Path(each["repo"]).name: each["rev"] for each in repositories}
    assert revisions["ruff-pre-commit"] == f"v{PINS['ruff']}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources, since the build writes beside them."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    run([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder / "dist", folder], folder)
    (built,) = (folder / "dist").iterdir()
    return built


def run(command, folder):
    """The output of a command, run without the variables by which this process found its packages."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, cwd=folder, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = ROOT / "src" / "plaudit"
    found = (path for pattern in ("*.py", "*.jinja", "serving/page/*") for path in package.rglob(pattern))
    sources = {path.relative_to(ROOT / "src").as_posix() for path in found}
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert files == {*sources, "plaudit/py.typed"}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        assert "Requires-Dist: transformers<6,>=5.23" in archive.read(metadata).decode()


@pytest.fixture
def installed(wheel, tmp_path):
    """The `plaudit` of a new environment that holds the wheel, and sees what this one has installed.

    The packages are seen by a path file, which does not follow the path files of the other environment: an editable
    installation of the checkout, or a `PYTHONPATH`, is not seen.
    """
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], tmp_path)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "tested.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run([python, "-c", "import plaudit; print(plaudit.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(packages)
    return folder / "bin" / "plaudit"


@pytest.mark.slow
def test_the_installed_wheel_scores(installed, make_model, tokenizer, tmp_path):
    model = make_model()
    model.config.pad_token_id = tokenizer.pad_token_id
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    texts = ["Is the sky blue? Yes.", "Is the sky blue? No, it is green."]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    assert plaudit.__version__ in run([installed, "--version"], tmp_path)
    run([installed, "score", "rows.jsonl", "--model", "model", "--output", "scored.jsonl"], tmp_path)

    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    expected = RewardModel.from_pretrained(tmp_path / "model", device="cpu").score(texts)
    assert [row["text"] for row in scored] == texts
    assert [row["reward"] for row in scored] == pytest.approx(expected.tolist(), rel=1e-5)
