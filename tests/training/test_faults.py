"""Trainings that are killed, resumed and compared; `make proof` does it twenty times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_a_training_killed_anywhere_in_a_save_or_in_the_last_one_ends_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--kills", "3", "--folder", tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 of 3 killed and resumed trainings ended as the uninterrupted one, byte for byte" in done.stdout
