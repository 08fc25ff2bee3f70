"""The runner of `make proof`, on parts that do nothing: what it records, keeps, repeats and reports."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

GOOD = """
import argparse
from results import add_output, as_tables, write_results

parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
add_output(parser)
options = parser.parse_args()
write_results(options.output, [{"side": "plaudit", "rows/s": options.rate}, {"side": "trl", "rows/s": float("inf")}])
"""
BAD = """
import sys
print("reading rows")
sys.exit("row 3 is broken")
"""


@pytest.fixture
def proof(monkeypatch, tmp_path):
    """Two parts, a goal, and the runner in a folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    import proof
    from proof_parts import Goal, Part

    monkeypatch.setattr(proof, "LOAD_SECONDS", 0.01)
    for name, text in (("good", GOOD), ("bad", BAD)):
        (tmp_path / f"{name}.py").write_text(text)
    parts = [
        Part("broken", f"{tmp_path / 'bad.py'}", "nothing", 1),
        Part("fast", f"{tmp_path / 'good.py'} --rate 50", "speed", 1, short="--rate 2"),
    ]
    goals = [
        Goal("fast", "rows a second", {"side": "plaudit"}, "rows/s", 20),
        Goal("fast", "rows of TRL", {"side": "trl"}, "rows/s", 20),
    ]

    def run(**options):
        given = {
            "data": tmp_path,
            "folder": tmp_path / "proof",
            "only": None,
            "resume": False,
            "short": False,
        } | options
        passed = proof.run_proof(parts, goals, SimpleNamespace(**given))
        return passed, json.loads((tmp_path / "proof" / "results.json").read_text())

    run.folder, run.script = tmp_path / "proof", tmp_path / "bad.py"
    return run


def test_a_part_that_fails_is_recorded_with_its_last_lines_and_the_others_go_on(proof, capsys):
    passed, results = proof()

    assert not passed
    assert {name: part["passed"] for name, part in results["parts"].items()} == {"broken": False, "fast": True}
    assert results["parts"]["broken"]["failure"] == ["exit code 1", "reading rows", "row 3 is broken"]
    assert results["parts"]["fast"]["rows"][0] == {"side": "plaudit", "rows/s": 50.0}
    assert results["seconds"] == pytest.approx(sum(part["seconds"] for part in results["parts"].values()))
    assert {"processor", "cores", "versions", "commit", "date"} <= results["machine"].keys()
    said = capsys.readouterr().out
    assert "[1/2] broken" in said
    assert "failed: broken" in said


def test_the_page_shows_the_parts_the_figures_and_the_goals(proof):
    proof()

    page = (proof.folder / "results.md").read_text()
    assert "| plaudit | 50.0" in page
    assert "row 3 is broken" in page
    assert "at least 20" in page


def test_a_goal_is_held_missed_or_not_measured(proof):
    _, results = proof()
    assert [goal["held"] for goal in results["goals"]] == ["held", "not measured"]

    _, results = proof(short=True)
    assert [goal["held"] for goal in results["goals"]] == ["missed", "not measured"]
    assert results["goals"][0]["value"] == 2.0


def test_a_resumed_proof_runs_what_has_not_passed_with_the_same_command(proof):
    _, before = proof()
    proof.script.write_text("import argparse\n")

    passed, after = proof(resume=True)
    assert passed
    assert after["parts"]["fast"] == before["parts"]["fast"]
    assert after["parts"]["broken"]["rows"] == []

    _, short = proof(resume=True, short=True)
    assert short["parts"]["fast"]["rows"][0]["rows/s"] == 2.0


def test_named_parts_run_anew_and_the_rest_is_kept(proof):
    _, before = proof()

    _, after = proof(only=["broken"])
    assert after["parts"]["fast"] == before["parts"]["fast"]
    assert list(after["parts"]) == ["broken", "fast"]


def test_every_part_runs_a_benchmark_that_writes_its_figures_and_every_goal_names_a_part(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from proof_parts import GOALS, PARTS

    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    for part in PARTS:
        script = BENCHMARKS / part.command.split()[0]
        assert script.exists(), script
    assert {goal.part for goal in GOALS} <= set(names)


def test_the_page_on_speed_has_a_place_for_every_table_and_says_what_was_not_measured(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from draw_proof import draw, fill, tables
    from results import describe_machine

    row = {"file": "hh_harmless_transcripts", "rows": 2, "rows/s": 5.0, "TRL's": 2.5, "times": 2.0}
    part = {"rows": [row], "passed": True, "seconds": 1.0, "load": 0.0}
    results = {"machine": describe_machine(), "seconds": 1.0, "goals": [], "parts": {"tokenising": part}}
    page = fill((BENCHMARKS.parent / "docs" / "speed.md").read_text(encoding="utf-8"), tables(results))
    assert "| hh_harmless_transcripts | 2    | 5.00" in page
    assert (
        page.count("This part was not measured.") == len(tables(results)) - 3
    )  # the machine, the picture and this part
    assert fill(page, tables(results)) == page

    draw(results, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_a_goal_judges_the_worst_row_and_may_be_a_share_of_another_column(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from proof_parts import Goal

    rows = [{"of": "help", "seconds": 0.4, "goal": 0.5}, {"of": "train", "seconds": 6.0, "goal": 5.0}, {"other": 1}]
    assert Goal("a", "b", {}, "seconds", 10, at_least=False).judge(rows)["value"] == 6.0
    assert Goal("a", "b", {}, "seconds", 0.1).judge(rows)["value"] == 0.4
    worst = Goal("a", "b", {}, "seconds", 1, at_least=False, share_of="goal").judge(rows)
    assert (worst["value"], worst["held"]) == (1.2, "missed")
    assert Goal("a", "b", {"of": "help"}, "seconds", 1, at_least=False, share_of="goal").judge(rows)["held"] == "held"
    lost = [*rows, {"seconds": None}]  # as a number that is not finite is written
    assert Goal("a", "b", {}, "seconds", 10, at_least=False).judge(lost)["held"] == "not measured"
