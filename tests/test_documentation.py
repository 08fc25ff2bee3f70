"""The documentation names every public name, and links between its files resolve. `make docs` checks the rest."""

import importlib
import re
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest
from transformers import TrainingArguments

from plaudit import RewardConfig, RewardFunction
from plaudit.cli.score import command as score
from plaudit.cli.serve import command as serve
from plaudit.serving.dialects.native import NATIVE
from plaudit.serving.dialects.registry import DIALECTS

ROOT = Path(__file__).parents[1]
REFERENCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "reference").glob("*.md")))
DOCUMENTED = set(re.findall(r"^::: (\S+)", REFERENCE, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "package", ["plaudit", "plaudit.data", "plaudit.losses", "plaudit.evaluation.figures", "plaudit.evaluation.limits"]
)
def test_the_reference_holds_every_public_name(package):
    names = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    assert names <= DOCUMENTED, f"add to docs/reference: {sorted(names - DOCUMENTED)}"


def test_the_page_on_training_describes_every_option_of_its_own():
    own = {each.name for each in fields(RewardConfig)} - {each.name for each in fields(TrainingArguments)}
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(\w+)`", page[page.index("## Options beyond") : page.index("## Out of memory")]))
    assert own <= described, f"add to docs/training.md: {sorted(own - described)}"


def test_the_page_on_serving_describes_every_option():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    table = page[page.index("## Options") :]
    options = {name for each in serve.params for name in each.opts if name.startswith("--")}
    described = set(re.findall(r"`(--\w+)`", table))
    assert options == described, f"docs/serving.md: {sorted(options ^ described)}"


def test_the_page_on_serving_names_every_field_of_the_native_api():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page[page.index("## The native API") : page.index("| request header |")]))
    fields = {name for endpoint in NATIVE.endpoints for name in endpoint.body.model_fields}
    assert fields <= named, f"docs/serving.md: {sorted(fields - named)}"


def test_the_page_on_files_names_the_options_of_an_uncertain_model_and_that_on_policies_every_option():
    page = (ROOT / "docs" / "score.md").read_text(encoding="utf-8")
    names = [name for each in score.params for name in each.opts if each.name in ("aggregate", "k", "normalize")]
    assert all(f"`{name}" in page for name in names)
    page = (ROOT / "docs" / "rl.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    options = {each.name for each in signature(RewardFunction).parameters.values() if each.kind is each.KEYWORD_ONLY}
    assert options <= described, f"docs/rl.md: {sorted(options - described)}"
    assert all(f"{name}=" in page for name in options)


@pytest.mark.parametrize("dialect", [NATIVE, *DIALECTS.values()], ids=lambda dialect: dialect.name)
def test_the_page_on_dialects_names_every_route(dialect):
    page = (ROOT / "docs" / "serving_dialects.md").read_text(encoding="utf-8")
    routes = re.search(rf"^\| `?{dialect.name}`? \| (`POST .*) \|$", page, flags=re.MULTILINE)[1]
    paths = {each.removeprefix("POST ").removeprefix("GET ") for each in re.findall(r"`(.*?)`", routes)}
    assert paths == {route.path for route in (*dialect.endpoints, *dialect.information)}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_from_the_root_of_the_repository_resolve(page):
    """On a code host, these pages are read outside the site, which checks the links between its own pages."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
