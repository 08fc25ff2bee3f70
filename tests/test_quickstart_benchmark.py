"""`benchmarks/quickstart_seeds.py`: the figures that it writes, and the promise that it holds the quickstart to."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from plaudit.quickstart.demonstration import QuickstartResult

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "quickstart_seeds.py"


def run_script(monkeypatch, output, accuracy):
    """Run the benchmark with two seeds, each of which reaches the given accuracy."""

    def run(seed, _output_dir):
        return QuickstartResult(
            pairs=5_000, accuracy=accuracy, interval=(accuracy - 0.01, accuracy + 0.01), ceiling=0.91,
            bag_of_words=0.53, longer_wins=0.51, correlation=0.9, prompt="", rewards={}, seconds=40.0 + seed,
        )  # fmt: skip

    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr("plaudit.quickstart.demonstration.run_quickstart", run)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--seeds", "2", "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_figures_of_each_seed_are_written(monkeypatch, tmp_path):
    run_script(monkeypatch, tmp_path / "seeds.json", accuracy=0.895)
    rows = json.loads((tmp_path / "seeds.json").read_text())["rows"]
    assert [(row["seed"], row["seconds"]) for row in rows] == [(0, 40.0), (1, 41.0)]
    assert rows[0]["share_of_ceiling"] == pytest.approx(0.395 / 0.41)
    assert (rows[0]["accuracy_low"], rows[0]["accuracy_high"]) == pytest.approx((0.885, 0.905))


def test_a_broken_promise_ends_with_an_error_after_the_figures_are_written(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="a promise is broken"):
        run_script(monkeypatch, tmp_path / "seeds.json", accuracy=0.85)
    assert len(json.loads((tmp_path / "seeds.json").read_text())["rows"]) == 2
