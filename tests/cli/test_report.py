"""`plaudit report`: its files, what it prints, and what it refuses."""

import json

import pytest
from click.testing import CliRunner
from report_data import AUDIT, COMPARISON, LOG, plain_rows, scores_of

from plaudit.cli.report import command
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.score_files import write_scores


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a run, and with files of results beside it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "reward.json").write_text(json.dumps({"verification": {"status": "verified"}}))
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": LOG}))
    write_scores(tmp_path / "scores.jsonl", scores_of(plain_rows()))
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT))
    (tmp_path / "comparison.json").write_text(json.dumps(COMPARISON))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def test_the_report_is_written_and_its_alerts_are_printed(folder):
    code, output = run("run", "scores.jsonl", "audit.json", "--compare", "comparison.json", "--output", "out.html")
    assert code == 0
    size = len((folder / "out.html").read_bytes())
    assert f"The report is in out.html ({size / 1000:,.0f} kB, " in output
    assert "grave In the data: pairs of equal prompts: 2." in output
    assert "note mine and theirs are not separable." in output
    html = (folder / "out.html").read_text(encoding="utf-8")
    for text in ("Reward model: run", "Training: loss", "Reliability", "Against theirs"):
        assert text in html


def test_the_order_of_the_files_does_not_matter(folder):
    run("audit.json", "scores.jsonl", "run", "--output", "one.html")
    run("run", "scores.jsonl", "audit.json", "--output", "two.html")
    assert (folder / "one.html").read_bytes() == (folder / "two.html").read_bytes()


def test_examples_and_title(folder):
    run("scores.jsonl", "--examples", "1", "--title", "Mine & yours")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert '<h1 dir="auto">Mine &amp; yours</h1>' in html
    assert html.count("<article") == 1


def test_what_is_no_result_is_refused_and_no_file_appears(folder):
    (folder / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other.json: expected a score file"):
        run("other.json", "--output", "out.html")
    with pytest.raises(DataError, match=r"missing.jsonl, but there is none"):
        run("missing.jsonl", "--output", "out.html")
    assert not (folder / "out.html").exists()


def test_an_output_that_cannot_be_written_is_refused_at_once(folder):
    with pytest.raises(ConfigError, match="--output run: expected the path of a file"):
        run("scores.jsonl", "--output", "run")
