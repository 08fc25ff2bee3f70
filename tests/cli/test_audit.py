"""`plaudit audit`: what it shows, its files, its options and its exit code."""

import json

import pytest
from click.testing import CliRunner
from made_pairs import made_pairs
from row_files import read, write

from plaudit.cli.audit import command
from plaudit.errors import ConfigError


@pytest.fixture(autouse=True)
def plain_console(monkeypatch):
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    monkeypatch.setattr("plaudit.cli.display.console.width", 80, raising=False)


@pytest.fixture
def data(tmp_path):
    rows = made_pairs(30)
    rows += [rows[0], made_pairs(1, seed=1)[0] | {"rejected": ""}]
    rows[2]["chosen"] = "<script>alert(1)</script> [bold] \u05e9\u05dc\u05d5\u05dd"
    rows += [rows[2]]
    return str(write(tmp_path / "pairs.jsonl", rows))


def run(*arguments):
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    return result.exit_code, result.output


def test_findings_are_shown_grave_ones_first_and_then_the_baselines(data, tmp_path):
    tests = write(tmp_path / "tests.jsonl", made_pairs(30)[5:8])
    code, output = run(data, "--against", str(tests))
    assert code == 0
    assert max(len(line) for line in output.splitlines() if data not in line) <= 80
    places = [output.index(word) for word in ("leaked_exact", "(empty)", "duplicate_exact", "a bag of words")]
    assert places == sorted(places)
    assert "[training row,test row] [5,0], [6,1], [7,2]" in output
    assert "3 of 3 test rows are concerned, and 3 training rows" in output
    assert "GRAVE" in output
    assert "Label noise: cannot tell" in output


def test_large_groups_and_many_groups_are_cut_short(tmp_path):
    rows = made_pairs(10)
    _, output = run(str(write(tmp_path / "pairs.jsonl", rows[:9] * 2 + rows[:1] * 6)))
    assert "rows [0,9,18,19,20,21,...], [1,10], [2,11]," in " ".join(output.split())
    assert "[7,16], and 1 more" in " ".join(output.split())


def test_nothing_found_is_said(tmp_path):
    code, output = run(str(write(tmp_path / "pairs.jsonl", made_pairs(30))))
    assert code == 0
    assert "no findings" in output


def test_the_json_file_holds_the_audit(data, tmp_path):
    run(data, "--output", str(tmp_path / "audit.json"))
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["rows"] == 33
    assert [finding["kind"] for finding in content["findings"]] == ["empty", "duplicate_exact"]


def test_the_page_escapes_the_data_and_has_no_script(data, tmp_path):
    run(data, "--output", str(tmp_path / "audit.html"))
    page = (tmp_path / "audit.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    assert "Rows with an empty response: 1" in page
    run(data, "--output", str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_text() == page


def test_the_clean_copy_is_written_and_what_was_taken_out_is_said(data, tmp_path):
    code, output = run(data, "--fix", str(tmp_path / "clean.jsonl"))
    assert code == 0
    assert "30 of 33 rows" in output
    assert "taken out: 1 empty, 2 duplicate_exact" in " ".join(output.split())
    assert len(read(tmp_path / "clean.jsonl")) == 30


@pytest.mark.parametrize(("limit", "code"), [("empty=1", 1), ("empty=0", 1), ("empty=2", 0), ("cycle=0", 0)])
def test_the_exit_code_is_1_where_a_limit_is_reached(data, limit, code):
    found, output = run(data, "--fail_on", limit)
    assert found == code
    assert ("FAILED" in output) == bool(code)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fail_on", "empty"], "expected KIND=N"),
        (["--fail_on", "emptiness=1"], "the kinds are leaked_exact"),
        (["--output", "audit.txt"], "ends with .json or .html"),
        (["--output", "nowhere/audit.json"], "in a folder that you may write to"),
        (["--fix", "clean.csv"], "ends with .jsonl"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options, words):
    with pytest.raises(ConfigError, match=words):
        run("no-such-file.jsonl", *options)


def test_the_data_are_never_overwritten(data):
    with pytest.raises(ConfigError, match="the data itself"):
        run(data, "--fix", data)
