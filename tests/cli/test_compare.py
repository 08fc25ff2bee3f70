"""`plaudit compare`: its tables and sentences, its file, and its options."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from plaudit import RewardModel
from plaudit.cli.compare import command
from plaudit.evaluation.score_files import write_scores
from plaudit.evaluation.scores import ScoredRow, Scores


@pytest.fixture(autouse=True)
def narrow_console(monkeypatch):
    """A console of 80 columns, and no handler of its own for log messages."""
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)
    monkeypatch.setattr("plaudit.cli.display.console.width", 80, raising=False)


@pytest.fixture
def files(tmp_path):
    """Score files of 200 pairs in two subsets, of which 160, 120 and 122 are right."""
    for name, right, dtype in (("new", 160, "float32"), ("old", 120, "float32"), ("[tiny]", 122, "bfloat16")):
        rows = [
            ScoredRow(n, [1.0 if n < right else -1 - n / 100, 0.0], subset="easy" if n < 130 else "hard")
            for n in range(200)
        ]
        header = {"model": f"org/{name}", "dtype": dtype, "dataset": {"path": "pairs", "hash": "1"}}
        write_scores(tmp_path / f"{name}.jsonl", Scores(header, rows))
    return [str(tmp_path / f"{name}.jsonl") for name in ("new", "old", "[tiny]")]


def run(*arguments):
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    return result.exit_code, result.output


def words(output):
    return " ".join(output.replace("│", " ").split())


def test_the_better_model_is_named_with_its_difference(files):
    code, output = run(*files[:2])
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    shown = words(output)
    assert "A org/new: 80.0% B org/old: 60.0%" in shown
    assert "A - B +20.0 points (95% interval +1" in shown
    assert "p-value < 0.001 (exact McNemar test) compared 200 comparisons of 200 prompts" in shown
    assert "org/new is better than org/old: by 20.0 points (95% interval 1" in shown
    assert "Note" not in shown


def test_subsets_say_how_many_were_tried(files):
    shown = words(run(*files[:2])[1])
    assert "easy 130 100.0% 92.3% +7.7 +3.8 to +13.1 0.002" in shown
    assert "hard 70 42.9% 0.0% +42.9 " in shown
    assert "2 subsets were tried, p-values are adjusted by Holm's method; separable: easy, hard." in shown


def test_the_rows_on_which_they_part_are_shown_the_furthest_apart_first(files):
    output = run(*files[:2])[1]
    shown = words(output)
    assert "40 rows on which only one is right, the furthest apart first:" in shown
    assert "margin of A margin of B" in shown
    assert "159 hard A +1 -2.59 158 hard A +1 -2.58" in shown
    assert " 149 " not in output  # the eleventh


def test_models_that_are_not_separable_have_the_smallest_difference_that_could_have_been_seen(files):
    code, output = run(*files[1:])
    assert code == 0
    assert "not separable: the smallest difference that could have been seen is 3.0 points" in words(output)
    assert "Note: dtype differs: float32 and bfloat16." in words(output)
    assert "separable: none." in words(output)


def test_each_further_model_is_compared_with_the_first(files, tmp_path):
    output = tmp_path / "result.json"
    code, shown = run(*files, "--output", str(output))
    assert code == 0
    assert shown.count("adjusted for 2 by") == 2
    first, second = json.loads(output.read_text())["comparisons"]
    assert (first["a"], first["b"], second["a"], second["b"]) == ("org/new", "org/old", "org/new", "org/[tiny]")
    assert first["p_value"] == pytest.approx(2 * first["p_unadjusted"], rel=1e-6)
    assert len(first["rows_apart"]) == 40
    assert first["separable"] is True


def test_models_score_the_data(tmp_path, monkeypatch):
    loaded = []

    class Length(RewardModel):
        def __init__(self, sign):
            self.sign, self.truncated = sign, 0

        def score(self, sequences, **_):
            return np.array([self.sign * len(text) for text in sequences], dtype=np.float32)

    def load(path, **options):
        loaded.append((path, options["dtype"]))
        return Length(1 if path == "long" else -1)

    monkeypatch.setattr(RewardModel, "from_pretrained", load)
    rows = [{"prompt": f"{n}", "chosen": "x" * (n + 2), "rejected": "y"} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, output = run("long", "short", "--data", str(tmp_path / "pairs.jsonl"), "--dtype", "float32")
    assert code == 0
    assert loaded == [("long", "float32"), ("short", "float32")]
    assert "is better than" in output
    assert "30 comparisons of 30 prompts" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "split: these are options of the data that models score; name the data too"),
        (["--output", "missing/result.json"], "expected the path of a file in a folder that you may write to"),
    ],
)
def test_options_without_use_are_refused(files, options, message):
    with pytest.raises(ValueError, match=message):
        run(*files[:2], *options)


def test_one_file_is_not_enough(files):
    with pytest.raises(ValueError, match="expected two or more score files or models to compare, got .*new.jsonl"):
        run(files[0])


def test_files_are_compared_without_importing_torch(files):
    code = """if True:
        import sys
        from plaudit.cli.compare import command
        command(sys.argv[1:], standalone_mode=False)
        print(sys.modules.keys() & {"torch", "datasets", "transformers"})
    """
    arguments = [sys.executable, "-c", code, *files[:2]]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert "is better than" in output
    assert output.endswith("set()\n")
