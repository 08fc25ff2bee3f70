"""The short form of the benchmark of the host's share of a step, and what its figures prove without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    output = tmp_path_factory.mktemp("host_time") / "results.json"
    command = [sys.executable, BENCHMARKS / "host_time.py", "--short", "--output", output]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(output.read_text())["rows"]


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_the_trainer_waits_for_the_device_to_log_and_for_nothing_else(rows, layout):
    (step,) = (
        row for row in rows
        if row["workload"] == "training" and row.get("layout") == layout and row.get("part") == "the step"
    )  # fmt: skip
    own = [place for place in step["places"] if "training/" in place]
    assert own
    assert all("reward_log.py" in place for place in own)


@pytest.mark.parametrize(("workload", "layouts"), [("training", ["forest", "padded"]), ("scoring", ["forest"])])
def test_the_parts_of_a_step_add_up(rows, workload, layouts):
    for layout in layouts:
        parts = {row["part"]: row for row in rows if row["workload"] == workload and row.get("layout") == layout}
        step = parts.pop("the step")
        assert {"forward", "attention", "attention set-up"} <= parts.keys()
        operators = sum(row["operators"] for row in parts.values())
        assert operators == pytest.approx(step["operators"], abs=1)
        assert step["operators"] > 24 * 20  # 24 layers


def test_one_sequence_is_compared_with_plain_transformers(rows):
    alone = {row["workload"]: row for row in rows if "ratio" in row}
    assert alone.keys() == {"training, one sequence", "scoring, one sequence"}
    for row in alone.values():
        assert row["ratio"] == pytest.approx(row["forest_milliseconds"] / row["transformers_milliseconds"], abs=1e-2)
