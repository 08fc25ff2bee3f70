"""A server under more load than it can take; `make proof` loads it for ten minutes, with a larger model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serve_overload.py"


@pytest.mark.slow
def test_under_four_times_its_capacity_every_answer_is_right_and_every_request_is_counted():
    options = ["--seconds", "8", "--capacity_seconds", "3", "--deadline", "2"]
    options += ["--items", "8", "--hidden", "128", "--layers", "2"]
    done = subprocess.run(
        [sys.executable, BENCHMARK, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "wrong answers: 0" in done.stdout
    assert "lost or unsent requests: 0" in done.stdout
